"""What do `sample`, `check` and `info` do? Read the artifact, read the table as the training table was read, answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_bytes
from .errors import VERDICT_FAIL, InputError
from .model_file import read_model
from .output import check_output, summary, write_draws

if TYPE_CHECKING:
    from ..data import Units
    from ..posterior import Posterior

DRAWS, TABLES, REPORTS = (".nc", ".parquet"), (".csv", ".parquet"), (".html", ".json")


def sample(
    posterior_file: Path,
    model: str,
    table: Path,
    output: Path,
    *,
    num_samples: int,
    seed: int,
    as_summary: bool,
    force: bool,
) -> str:
    """Writes draws, or their summary; returns what was done, in words."""
    check_output(output, TABLES if as_summary else DRAWS, force)
    posterior = _open(posterior_file, model)
    units = _read(table, posterior, posterior_file)
    import jax

    draws = posterior.sample(units, num_samples=num_samples, key=jax.random.key(seed))
    plate, unit = posterior.plan.structure.plate, units.name
    if as_summary:
        from ..data import write_table

        write_table(summary(draws, plate=plate, unit=unit), output)
    else:
        write_draws(draws, output, plate=plate, unit=unit)
    what = f"the summary of {num_samples:,} draws" if as_summary else f"{num_samples:,} draws"
    return f"wrote {what} for {len(units):,} units of '{plate}' to {output}"


def check(
    posterior_file: Path,
    model: str,
    table: Path,
    *,
    training: Path | None,
    num_samples: int,
    seed: int,
    output: Path | None,
    units_output: Path | None,
    force: bool,
) -> Any:
    """The `Report`, written to the files asked for."""
    for path, suffixes in ((output, REPORTS), (units_output, TABLES)):
        if path is not None:
            check_output(path, suffixes, force)
    posterior = _open(posterior_file, model)
    units = _read(table, posterior, posterior_file)
    known = None if training is None else _read(training, posterior, posterior_file)
    import jax

    report = posterior.check(units, key=jax.random.key(seed), training=known, num_samples=num_samples)
    if units_output is not None:
        from ..data import write_table

        write_table(report.units, units_output)
    if output is not None and output.suffix == ".html":
        report.write_html(output, pictures=_pictures(posterior, report))
    elif output is not None:
        write_bytes(output, report.to_json().encode())
    return report


def exit_code(verdict: str, strict: bool) -> int:
    """0 for PASS, and for WARN unless `strict`."""
    return VERDICT_FAIL if verdict == "FAIL" or (strict and verdict == "WARN") else 0


def _pictures(posterior: Posterior, report: Any) -> dict[str, bytes]:
    from ..plots import figure_png, pareto_k_by_unit, training_curve

    record = posterior.record
    figures = {
        "How far to trust each unit": pareto_k_by_unit(report.units["pareto_k"], report.numbers["k_limit"]),
        "How it was trained": training_curve(record.step, record.elbo_per_unit),
    }
    return {title: figure_png(figure) for title, figure in figures.items()}


def _open(path: Path, model: str) -> Posterior:
    function = read_model(model)  # first: it may set jax_enable_x64, which decides how tables are read
    from ..posterior import load

    return load(path, function)


def _read(table: Path, posterior: Posterior, posterior_file: Path) -> Units:
    from ..data import read_like

    if posterior.schema is None:
        raise InputError(
            f"{posterior_file} was trained on arrays, not on a table, so the columns of {table} can't be matched; "
            "answer in Python: amortax.load(...).sample(data, ...)"
        )
    return read_like(table, posterior.schema)
