"""What do `check` and `report` do? Judge the units of a table, and write what was found, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_bytes
from .answer import TABLES, opened, units_of
from .output import check_output
from .repair import seconds_or_exact, told

if TYPE_CHECKING:
    from ..data import Units
    from ..posterior import Posterior

REPORTS = (".html", ".json")
WORST, DRAWS = 12, 1000  # units whose answers are drawn for the page, and draws of each


def check(
    posterior_file: Path,
    model: str,
    table: Path,
    *,
    training: Path | None,
    output: Path | None,
    units_output: Path | None,
    seed: int,
    force: bool,
    parts: dict[str, Any],
) -> Any:
    """The `Report`, written to the files asked for; `parts` are arguments of `Checks`, how much of each runs."""
    for path, suffixes in ((output, REPORTS), (units_output, TABLES)):
        if path is not None:
            check_output(path, suffixes, force)
    posterior, units, known = _read(posterior_file, model, table, training)
    found = _checked(posterior, units, known, seed, parts)
    if units_output is not None:
        from ..data import write_table

        write_table(found.units, units_output)
    if output is not None and output.suffix == ".html":
        from ..plots import write_html

        write_html(found, output, posterior=posterior, data=units, drawn=_worst_drawn(posterior, units, found, seed))
    elif output is not None:
        write_bytes(output, found.to_json().encode())
    return found


def report(
    posterior_file: Path,
    model: str,
    table: Path,
    *,
    training: Path | None,
    output: Path,
    seed: int,
    force: bool,
    budget: str | None,
    refined: bool,
    parts: dict[str, Any],
) -> tuple[Any, str]:
    """(the `Report`, what was repaired in words), written as a page; `refined`: units are repaired, within `budget`."""
    check_output(output, (".html",), force)
    most = seconds_or_exact(budget)
    posterior, units, known = _read(posterior_file, model, table, training)
    import jax

    from ..plots import write_html
    from ..repair import by_rung

    found = _checked(posterior, units, known, seed, parts)
    if not refined:
        write_html(found, output, posterior=posterior, data=units, drawn=_worst_drawn(posterior, units, found, seed))
        return found, ""
    options = {"num_samples": DRAWS, "key": jax.random.key(seed)}
    drawn = posterior.sample(units, **options)
    mended = posterior.refine(units, training=known, budget=most, **options)
    rungs = by_rung(mended)
    tables = {"What repair did": rungs} if rungs else {}
    write_html(found, output, posterior=posterior, data=units, drawn=drawn, refined=mended, tables=tables)
    return found, told(mended, units.name)


def _read(
    posterior_file: Path, model: str, table: Path, training: Path | None
) -> tuple[Posterior, Units, Units | None]:
    posterior = opened(posterior_file, model)
    units = units_of(table, posterior, posterior_file)
    return posterior, units, None if training is None else units_of(training, posterior, posterior_file)


def _checked(posterior: Posterior, units: Units, known: Units | None, seed: int, parts: dict[str, Any]) -> Any:
    import jax

    from ..checks.options import Checks

    return posterior.check(units, key=jax.random.key(seed), training=known, checks=Checks(**parts))


def _worst_drawn(posterior: Posterior, units: Units, found: Any, seed: int) -> Any:
    """Draws of the worst units alone."""
    import jax
    import numpy as np

    worst = np.flatnonzero(np.isin(units.labels, found.worst(WORST)[found.unit_name]))
    return posterior.sample(units.take(worst), num_samples=DRAWS, key=jax.random.key(seed))
