"""A small job for the tests of the command line: eight schools with a few pupils each, their model and table."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from typer.testing import CliRunner, Result

from amortax.cli.main import app

MODEL = """
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

NUMBER = 3


def model(size, x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("school", x.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(slope[0] * size[:, None], spread))
        with numpyro.plate("pupil", x.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level + slope[1] * x, 0.5), obs=y)


def other(size, x, y=None):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("school", x.shape[0], dim=-2):
        level = numpyro.sample("elevation", dist.Normal(size[:, None], spread))
        with numpyro.plate("pupil", x.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level + x, 0.5), obs=y)


def careless(size, x, y=None):
    return undefined_name
"""
JOB = """
model = "schools.py:model"
plate = "school"
[data]
path = "pupils.csv"
unit = "school"
columns = ["x", "y"]
unit_columns = ["size"]
[guide]
encoder = { recipe = "deep_set", width = 8, depth = 1 }
[fit]
num_steps = 20
seed = 1
"""


class Workplace(NamedTuple):
    folder: Path
    fitted: Result

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def model(self) -> str:
        return f"{self.path('schools.py')}:model"


def amortax(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_pupils(path: Path, seed: int, schools: list[str]) -> None:
    generator = np.random.default_rng(seed)
    lines = ["school,size,x,y"]
    for number, school in enumerate(schools):
        level = generator.normal()
        for _ in range(2 + number % 3):
            x = generator.normal()
            lines.append(f"{school},{0.1 * number:.1f},{x:.4f},{level + x + 0.5 * generator.normal():.4f}")
    path.write_text("\n".join(lines) + "\n")


def write_job(folder: Path, text: str = JOB) -> Path:
    (folder / "schools.py").write_text(MODEL)
    write_pupils(folder / "pupils.csv", 0, [f"S{i}" for i in range(8)])
    (folder / "schools.toml").write_text(text)
    return folder / "schools.toml"


def seen_in(folder: Path) -> set[str]:
    """Every file and folder in it, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
