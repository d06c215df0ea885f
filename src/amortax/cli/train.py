"""What does `amortax fit JOB.toml` do? The job's table, its model and its recipes become one posterior file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import INTERRUPTED
from .job import Job, read_job, recipes
from .model_file import read_model
from .objective import objective
from .output import check_output

if TYPE_CHECKING:
    from ..posterior import Posterior


def read(path: Path, *, seed: int | None, num_steps: int | None, output: Path | None, force: bool) -> Job:
    """The job, with what the command line says instead."""
    job = read_job(path)
    given = {"seed": seed, "num_steps": num_steps, "posterior": output}
    job = dataclasses.replace(job, **{name: value for name, value in given.items() if value is not None})
    check_output(job.posterior, (".amx",), force)
    return job


def fit(job: Job, *, show: Callable[[str], object]) -> Posterior:
    """The trained posterior; nothing is written yet. The plan is shown before training starts."""
    model = read_model(job.model, job.file.parent)
    import jax

    from ..data import from_table
    from ..fitting import fit as train
    from ..plan import amortize

    chosen = objective(f"{job.file}: key 'fit.objective'", job.objective)
    table = {"unit": job.unit, "columns": job.columns, "unit_columns": job.unit_columns, "categories": job.categories}
    units = from_table(job.table, **table)
    plan = amortize(model, units, plate=job.plate, missing=job.missing, **recipes(job))
    show(str(plan))
    return train(
        plan,
        units,
        key=jax.random.key(job.seed),
        objective=chosen,
        num_steps=job.num_steps,
        batch_size=job.batch_size,
    )


def save(job: Job, posterior: Posterior) -> int:
    """Writes the posterior; the exit code. An interrupted training is saved as far as it came."""
    interrupted = posterior.record.stopped == "interrupted"
    if interrupted and not posterior.record.num_steps:
        raise KeyboardInterrupt  # before the first steps were done: there is nothing to keep
    posterior.save(job.posterior)
    return INTERRUPTED if interrupted else 0
