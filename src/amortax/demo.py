"""Does it work here, on real data? Radon in Minnesota's counties: train, answer, compare with the exact posterior.

Ten of the 85 counties are kept away from training; what the guide says of them is compared with their exact posterior
(`models.radon_exact`), before and after repair. With `every`, all 85 are trained on and compared with 20,000 draws by
Stan (`models.radon`). The folder it leaves is a small project of its own: tables, model file and job file, for the
command line to go on with.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import demo_report, plots
from ._files import write_bytes
from .demo_report import Comparison
from .models import radon

NEW_COUNTIES, SPLIT_SEED = 10, 0  # the same ten for every seed
DRAWS_FOR_PICTURE = 1000  # of counties that are shown, not judged
COLUMNS: dict[str, Any] = {"columns": ["floor", "log_radon"], "unit_columns": ["log_uranium", "floor_by_county"]}
MODEL_FILE = '''"""The radon model of `amortax.models.radon`, as a model file for the command line."""

from __future__ import annotations

import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num


'''
JOB_FILE = """# Train anew: amortax fit radon.toml --force
model = "radon_model.py:model"
plate = "county"

[data]
path = "training.csv"
unit = "county"
columns = ["floor", "log_radon"]
unit_columns = ["log_uranium", "floor_by_county"]

[fit]
num_steps = {num_steps}
seed = {seed}
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What the demo found: comparisons by title, before and after repair, whether a loaded posterior answers the same,
    check, seconds.
    """

    comparisons: dict[str, Comparison]
    repaired: dict[str, Comparison]
    same_after_loading: bool
    report: Any
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        """All comparisons within their limits, before and after repair, the saved file exact, the check not FAIL."""
        both = [*self.comparisons.values(), *self.repaired.values()]
        compared = all(bool(comparison.within.all()) for comparison in both)
        return compared and self.same_after_loading and self.report.verdict != "FAIL"


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, part: str) -> float:
        """The seconds since the last call, noted as those of `part`."""
        now = time.perf_counter()
        self.seconds[part], self._last = now - self._last, now
        return self.seconds[part]


def run(
    output: str | os.PathLike[str] = "amortax-demo",
    *,
    every: bool = False,
    seed: int = 0,
    num_steps: int = 1000,
    num_samples: int = 4000,
    show: Callable[[str], object] = print,
) -> Outcome:
    """Runs the demo, tells its story by `show`, and writes its files to the folder `output`.

    Args:
        output: a folder, made if need be; the files of an earlier demo are replaced.
        every: train on all 85 counties and compare with Stan, instead of keeping ten away.
        seed: of all random keys.
        num_steps: of training.
        num_samples: draws per county for the moments that are compared.
        show: called with each part of the story.

    Returns:
        The `Outcome`; `passed` says whether all comparisons are within the stated limits.

    """
    import jax

    clock, folder = _Clock(), Path(output)
    names = write_project(folder, every=every, seed=seed, num_steps=num_steps)
    show(demo_report.beginning(radon.counties(), 0 if every else NEW_COUNTIES))
    keys = jax.random.split(jax.random.key(seed), 3)
    posterior, tables = _train(folder, list(names), num_steps, keys[0], clock, show)

    judged = next(iter(tables))
    counts = {part: num_samples if part == judged else min(num_samples, DRAWS_FOR_PICTURE) for part in tables}
    drawn = {part: posterior.sample(table, num_samples=counts[part], key=keys[1]) for part, table in tables.items()}
    show(f"\n{num_samples:,} draws for each county in {clock('sample'):.1f} s, compiling included.\n")
    exact = _exact(names)
    comparisons = _compare(drawn, exact, every)
    clock("exact")
    show(demo_report.compared(comparisons, num_samples))

    same = _saved_and_same(posterior, folder / "radon.amx", tables[judged], drawn[judged], keys[1])
    show(_said_of_saving(folder / "radon.amx", same, clock("save, load, sample")))
    report = posterior.check(tables[judged], training=tables["training"], key=keys[2])
    show(demo_report.checked(report, clock("check")))
    refined = _refined(posterior, tables, num_samples, keys[1])
    repaired = _compare({**drawn, judged: refined}, exact, every)
    show(demo_report.repaired(report, refined, comparisons, repaired, clock("refine")))
    answers = {"posterior": posterior, "data": tables[judged], "drawn": drawn[judged], "refined": refined}
    pictures = demo_report.pictures(drawn, exact, _houses()) | plots.pictures(report, **answers)
    _write_report(folder, comparisons, repaired, pictures, report)
    clock("pictures")
    outcome = Outcome(comparisons, repaired, same, report, clock.seconds)
    show(_ending(outcome, folder))
    return outcome


def write_project(folder: Path, *, every: bool, seed: int, num_steps: int) -> dict[str, list[str]]:
    """Tables, model file and job file in `folder`; the names of the counties in each table, the judged one first."""
    folder.mkdir(parents=True, exist_ok=True)
    header, *rows = radon.table().read_text(encoding="utf-8").splitlines()
    everyone = list(_houses())
    away: set[int] = set()
    if not every:
        away = set(np.random.default_rng(SPLIT_SEED).permutation(len(everyone))[:NEW_COUNTIES].tolist())
    new = {"new": [everyone[i] for i in sorted(away)]} if away else {}
    names = {**new, "training": [name for i, name in enumerate(everyone) if i not in away]}
    if not new:
        (folder / "new.csv").unlink(missing_ok=True)  # of an earlier demo: its counties are trained on now
    for part, kept in names.items():
        lines = [header, *(row for row in rows if row.partition(",")[0] in set(kept))]
        write_bytes(folder / f"{part}.csv", "\n".join([*lines, ""]).encode())
    write_bytes(folder / "radon_model.py", (MODEL_FILE + inspect.getsource(radon.model)).encode())
    write_bytes(folder / "radon.toml", JOB_FILE.format(num_steps=num_steps, seed=seed).encode())
    return names


def _train(
    folder: Path, parts: Sequence[str], num_steps: int, key: Any, clock: _Clock, show: Callable[[str], object]
) -> tuple[Any, dict[str, Any]]:
    """(posterior, table of each part); what a user would write."""
    from .data import from_table
    from .fitting import fit
    from .plan import amortize

    tables = {part: from_table(folder / f"{part}.csv", unit="county", **COLUMNS) for part in parts}
    plan = amortize(radon.model, tables["training"], plate="county")
    show(f"\n{plan}\n")
    clock("plan")
    posterior = fit(plan, tables["training"], key=key, num_steps=num_steps)
    show(demo_report.trained(posterior.record, clock("fit")))
    return posterior, tables


def _refined(posterior: Any, tables: Mapping[str, Any], num_samples: int, key: Any) -> Any:
    """Draws of the first table's counties, repaired as far as can be."""
    data, training = next(iter(tables.values())), tables["training"]
    return posterior.refine(data, training=training, num_samples=num_samples, budget="exact", key=key)


def _houses() -> dict[str, int]:
    data = radon.counties()
    return {name: len(floor) for name, floor in zip(data["county"], data["floor"], strict=True)}


def _exact(names: Mapping[str, list[str]]) -> dict[str, Any]:
    """The exact effects of each table's counties, and the globals as `globals`."""
    new = radon.counties(names["new"]) if "new" in names else None
    answer = radon.exact_posterior(radon.counties(names["training"]), new=new)
    return {"training": answer.train, "new": answer.new, "globals": answer.globals}


def _compare(drawn: Mapping[str, Any], exact: Mapping[str, Any], every: bool) -> dict[str, Comparison]:
    """The effects of the counties, then what all counties share."""
    part, by, houses = "training" if every else "new", "Stan" if every else "exact", _houses()
    draws = drawn[part]
    labels, effects = draws["county"].values.tolist(), draws["county_effect"].values.astype(np.float64)
    if every:
        stan = radon.reference()
        theirs = np.array([stan[f"county_effect[{label}]"] for label in labels])
        shared = {name: stan[name] for name in exact["globals"]}
    else:
        theirs, shared = np.stack([exact["new"].mean, exact["new"].sd], axis=1), exact["globals"]
    counts = [houses[label] for label in labels]
    ours = np.stack([draws[name].values.astype(np.float64) for name in shared])
    known = np.array(list(shared.values()))
    return {
        f"Effects of the {len(labels)} {demo_report.PARTS[part]}": Comparison(
            labels, effects.mean(0), effects.std(0, ddof=1), theirs[:, 0], theirs[:, 1], counts, by
        ),
        "What all counties share": Comparison(
            list(shared), ours.mean(1), ours.std(1, ddof=1), known[:, 0], known[:, 1], by=by
        ),
    }


def _saved_and_same(posterior: Any, path: Path, table: Any, drawn: Any, key: Any) -> bool:
    """Saves, loads, and draws again from what was loaded; whether that is equal bit for bit."""
    from .posterior import load

    posterior.save(path)
    again = load(path, radon.model).sample(table, num_samples=drawn.sizes["sample"], key=key)
    return again.identical(drawn)


def _said_of_saving(path: Path, same: bool, seconds: float) -> str:
    size = f"\nSaved as {path} ({path.stat().st_size / 1e3:,.0f} kB), loaded, and drawn from again in {seconds:.1f} s: "
    return size + ("the same bit for bit.\n" if same else "NOT the same; this is a bug, please report it.\n")


def _write_report(
    folder: Path,
    comparisons: Mapping[str, Comparison],
    repaired: Mapping[str, Comparison],
    pictures: Mapping[str, bytes],
    report: Any,
) -> None:
    tables = {f"{title}, beside the exact answer": each.columns() for title, each in comparisons.items()}
    for title, after in repaired.items():
        tables[f"{title}, before and after repair"] = demo_report.both(comparisons[title], after)
    report.write_html(folder / "report.html", pictures=pictures, tables=tables)
    write_bytes(folder / "counties.png", next(iter(pictures.values())))


def _ending(outcome: Outcome, folder: Path) -> str:
    table = "new.csv" if (folder / "new.csv").exists() else "training.csv"
    verdict = "PASS" if outcome.passed else "FAIL"
    return (
        f"\n{verdict} in {sum(outcome.seconds.values()):.0f} s.\n"
        f"To look at, in {folder}: report.html, counties.png\n"
        "To go on with: radon.amx, its tables, model file and job file:\n"
        f"  cd {folder}\n"
        f"  amortax sample radon.amx --model radon_model.py:model --data {table} --output draws.nc\n"
        f"  amortax fit radon.toml --output mine.amx"
    )
