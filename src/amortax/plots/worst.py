"""Which units are worst, what were they answered, and what were their data? One row for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from amortax._errors import DataError
from amortax.psis import FLAT_K

from .canvas import BLUE, LINES, ORANGE, axes_for, entitled, plain

QUANTILES = (0.05, 0.5, 0.95)
MOST_ARGUMENTS = 3


def worst_units(
    report: Any,
    drawn: Any,
    *,
    refined: Any = None,
    data: Any = None,
    site: str | None = None,
    count: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """The worst units of a report, worst on top: 90% intervals at the left, verdict, reason and data at the right.

    Args:
        report: the `Report`.
        drawn: Dataset of `posterior.sample`, of those units at least.
        refined: that of `posterior.refine`, whose intervals stand below the others, or None.
        data: the `Units` that were checked, for a summary of each unit's data, or None.
        site: whose intervals are drawn, its first number where it has many; None for the first site of the units.
        count: how many units, fewer where `drawn` has fewer of them.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where none of the units was drawn, or there is no such site.

    """
    plate = report.unit_name
    known = set(np.asarray(drawn[plate].values).tolist())
    worst = {name: column[:count] for name, column in report.worst(count).items()}
    rows = [i for i, label in enumerate(worst[plate].tolist()) if label in known]
    if not rows:
        raise DataError(f"plot: none of the {len(worst[plate])} worst units is among the draws; sample those units")
    labels, site = worst[plate][rows], _site(drawn, plate) if site is None else site
    axes, place = axes_for(ax, width=9.0, height=1.5 + 0.42 * len(rows)), np.arange(len(rows))
    parts = [(drawn, "sample", BLUE, "o", 0.0 if refined is None else -0.16)]
    parts += [] if refined is None else [(refined, "refine", ORANGE, "s", 0.16)]
    for draws, name, colour, mark, shift in parts:
        low, middle, high = _intervals(draws, plate, site, labels)
        axes.hlines(place + shift, low, high, color=colour, linewidth=2.0)
        axes.plot(middle, place + shift, mark, color=colour, markersize=4.5, label=f"{name}: median and 90% interval")
    axes.set_yticks(place, [plain(label) for label in labels])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=_named(drawn, site))
    axes.grid(axis="x", color=LINES, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(place, [_said(worst, i, label, data) for i, label in zip(rows, labels, strict=True)], fontsize=8)
    beside.tick_params(length=0)
    beside.spines["right"].set_visible(False)
    return entitled(axes, ax, f"The {len(rows)} worst units and their data", columns=2)


def sites_of(drawn: Any, plate: str) -> list[str]:
    """The sites that are numbers of each unit."""
    own = drawn.data_vars.items()
    return [str(name) for name, x in own if {"sample", plate} <= set(x.dims) and x.dtype.kind == "f"]


def _site(drawn: Any, plate: str) -> str:
    """The first site of numbers of each unit, one with a single number where there is one."""
    own = sites_of(drawn, plate)
    if not own:
        raise DataError(f"plot: the draws have no site of numbers for each {plate}; they have {list(drawn.data_vars)}")
    return next((name for name in own if len(drawn[name].dims) == 2), own[0])


def _named(drawn: Any, site: str) -> str:
    more = len(drawn[site].dims) - 2
    return plain(site) + (f"[{', '.join('0' * more)}]" if more else "")


def _intervals(draws: Any, plate: str, site: str, labels: np.ndarray) -> np.ndarray:
    """(3, units) quantiles of the site's first number."""
    if site not in draws:
        raise DataError(f"plot: the draws have no site '{site}'; they have {list(draws.data_vars)}")
    values = draws[site].sel({plate: labels}).transpose("sample", plate, ...).values
    first = values.reshape(*values.shape[:2], -1)[..., 0]
    return np.quantile(np.asarray(first, np.float64), QUANTILES, axis=0)


def _said(worst: dict[str, np.ndarray], i: int, label: Any, data: Any) -> str:
    """Verdict with its reason or k, and the unit's data in a few numbers."""
    verdict, reason = str(worst["verdict"][i]), str(worst["reason"][i])
    first = f"{verdict} {reason}".strip()
    k = float(worst["pareto_k_worst"][i]) if "pareto_k_worst" in worst else np.nan
    if np.isfinite(k):
        first += ", flat weights" if k == FLAT_K else f", k {k:.2f}"
    return first if data is None else f"{first}\n{summary_of(data, label)}"


def summary_of(data: Any, label: Any) -> str:
    """The size of a unit, then mean ± sd of its arguments, or their only value: `7 rows, x 2.1 ± 0.5, size 3`."""
    unit, said = int(np.flatnonzero(np.asarray(data.labels) == label)[0]), []
    if data.lengths:
        said.append(f"{int(next(iter(data.lengths.values()))[unit]):,} rows")
    for name, values in list(data.arrays.items())[:MOST_ARGUMENTS]:
        own, mask = np.asarray(values[unit]), data.masks.get(name)
        own = np.atleast_1d(own)[np.atleast_1d(np.ones(own.shape, bool) if mask is None else np.asarray(mask[unit]))]
        if own.size and own.dtype.kind in "iufb":
            numbers = own.astype(np.float64)
            spread = f" ± {numbers.std():.3g}" if numbers.std() > 0 else ""
            said.append(f"{plain(name)} {numbers.mean():.3g}{spread}")
        elif not own.size:
            said.append(f"{plain(name)} missing")
    return ", ".join(said)
