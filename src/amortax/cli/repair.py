"""What does `refine` do? Answer as `sample` does, repair what is answered badly, and say what each unit needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .answer import DRAWS, opened, units_of
from .errors import InputError
from .output import check_output, write_draws

MOST_LABELS = 10  # of units that failed, which are named


def refine(
    posterior_file: Path,
    model: str,
    table: Path,
    *,
    training: Path | None,
    output: Path,
    budget: str | None,
    num_samples: int,
    seed: int,
    force: bool,
) -> tuple[str, str]:
    """Writes repaired draws; returns (what was done in words, FAIL where units are still not to be relied on)."""
    check_output(output, DRAWS, force)
    most = seconds_or_exact(budget)
    posterior = opened(posterior_file, model)
    units = units_of(table, posterior, posterior_file)
    known = None if training is None else units_of(training, posterior, posterior_file)
    import jax

    key = jax.random.key(seed)
    found = posterior.refine(units, key=key, num_samples=num_samples, budget=most, training=known)
    plate = posterior.plan.structure.plate
    write_draws(found, output, plate=plate, unit=units.name)
    wrote = f"wrote {num_samples:,} draws for {len(units):,} units of '{plate}' to {output}"
    return f"{told(found, units.name)}\n{wrote}", "FAIL" if failed(found) else "PASS"


def seconds_or_exact(budget: str | None) -> float | str | None:
    """The option --budget as `Posterior.refine` takes it."""
    if budget is None or budget == "exact":
        return budget
    try:
        seconds = float(budget)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"--budget {budget}: expected seconds above zero, or exact")
    return seconds


def failed(refined: Any) -> list[str]:
    """The labels of units that no rung could mend."""
    if "verdict" not in refined:
        return []
    plate = refined["verdict"].dims[0]
    return [str(label) for label in refined[plate].values[refined["verdict"].values == "FAIL"]]


def told(refined: Any, name: str) -> str:
    """Rungs with their units, verdicts and seconds; the globals; who failed."""
    from ..repair import by_rung

    table = by_rung(refined)
    lines = [f"{'rung':<10}{'units':>8}{'PASS':>8}{'FAIL':>8}{'seconds':>10}"] if table else []
    for rung, units, good, bad, seconds in zip(*table.values(), strict=True):
        lines.append(f"{rung:<10}{units:>8,}{good:>8,}{bad:>8,}{seconds:>10.2f}")
    lines.append(f"globals: {refined.attrs['globals_rung']}")
    if "globals_reason" in refined.attrs:
        lines[-1] += f" ({refined.attrs['globals_reason']})"
    if labels := failed(refined):
        more = f" and {len(labels) - MOST_LABELS:,} more" if len(labels) > MOST_LABELS else ""
        lines.append(f"FAIL, not to be relied on: {name} {', '.join(labels[:MOST_LABELS])}{more}")
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
