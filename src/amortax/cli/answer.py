"""What does `sample` do? Read the artifact, read the table as the training table was read, answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import VERDICT_FAIL, InputError
from .model_file import read_model
from .output import check_output, summary, write_draws

if TYPE_CHECKING:
    from ..data import Units
    from ..posterior import Posterior

DRAWS, TABLES = (".nc", ".parquet"), (".csv", ".parquet")


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
    posterior = opened(posterior_file, model)
    units = units_of(table, posterior, posterior_file)
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


def exit_code(verdict: str, strict: bool) -> int:
    """0 for PASS, and for WARN unless `strict`."""
    return VERDICT_FAIL if verdict == "FAIL" or (strict and verdict == "WARN") else 0


def opened(path: Path, model: str) -> Posterior:
    """The posterior of a file, with the model that it was trained with."""
    function = read_model(model)  # first: it may set jax_enable_x64, which decides how tables are read
    from ..posterior import load

    return load(path, function)


def units_of(table: Path, posterior: Posterior, posterior_file: Path) -> Units:
    """The units of a table that is read as the training table was."""
    from ..data import read_like

    if posterior.schema is None:
        raise InputError(
            f"{posterior_file} was trained on arrays, not on a table, so the columns of {table} can't be matched; "
            "answer in Python: amortax.load(...).sample(data, ...)"
        )
    return read_like(table, posterior.schema)
