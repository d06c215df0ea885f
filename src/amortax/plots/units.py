"""How far is each unit to be trusted? Intervals beside exact ones, Pareto k of every unit, and k against shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from amortax._errors import DataError
from amortax.psis import FLAT_K

from .canvas import BLUE, GREY, LINES, ORANGE, VERDICT_MARKS, axes_for, entitled, far_apart, part, plain

Interval = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]


def intervals_against_exact(
    labels: Sequence[str],
    ours: Interval,
    exact: Interval,
    counts: Sequence[int] | Integer[np.ndarray, " unit"],
    *,
    axis_label: str = "log radon (log pCi/L)",
    title: str = "90% intervals, amortized and exact",
    ax: Axes | None = None,
) -> Axes:
    """One row per unit with two intervals, ours above the exact one, the unit with the most data on top.

    Args:
        labels: name of each unit.
        ours: mean, 5% and 95% quantile of each unit, each of length `len(labels)`.
        exact: the same of the exact posterior.
        counts: number of observations of each unit, shown behind its name.
        axis_label: quantity and unit of the intervals.
        title: title of the picture.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where lengths differ.

    """
    rows = np.array([*ours, *exact], np.float64)
    if rows.shape != (6, len(labels)) or len(counts) != len(labels):
        raise DataError(f"plot: {len(labels)} labels, {len(counts)} counts, intervals {rows.shape}; give one per unit")
    order = np.argsort(-np.asarray(counts), kind="stable")
    rows, place = rows[:, order], np.arange(len(labels))
    dense = len(labels) > 30
    axes = axes_for(ax, width=8.0, height=max(2.9, 1.6 + (0.17 if dense else 0.3) * len(labels)))
    both = (("amortized", rows[:3], BLUE, "o", -0.16), ("exact", rows[3:], ORANGE, "s", 0.16))
    for name, (mean, low, high), colour, marker, shift in both:
        axes.hlines(place + shift, low, high, color=colour, linewidth=1.2 if dense else 2.0)
        axes.plot(
            mean,
            place + shift,
            marker,
            color=colour,
            markersize=3.0 if dense else 4.5,
            label=f"{name}: mean and 90% interval",
        )
    axes.set_yticks(place, [f"{plain(labels[i])} ({counts[i]})" for i in order])
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel=axis_label, ylabel="unit (number of observations)")
    axes.grid(axis="x", color=LINES, linewidth=0.8)
    axes.tick_params(axis="y", length=0, labelsize=7 if dense else None)
    return entitled(axes, ax, title, columns=2)


def pareto_k_by_unit(
    k: Sequence[float] | Float[np.ndarray, " unit"],
    limit: float,
    *,
    title: str = "Pareto k of each unit",
    ax: Axes | None = None,
) -> Axes:
    """The units in order of their Pareto k, and the limit above which weights are not reliable.

    Args:
        k: Pareto k of each unit; what is not finite is counted in the legend.
        limit: min(1 - 1/log10(S), 0.7) for S draws.
        title: title of the picture.
        ax: Axes to draw on, or None for a Figure of their own.

    """
    values = np.asarray(k, np.float64)
    shown = np.sort(values[np.isfinite(values)])
    place, above = np.arange(1, len(shown) + 1), shown > limit
    axes = axes_for(ax, width=7.0, height=4.0)
    size = 5.0 if len(shown) <= 300 else 2.5
    axes.plot(place[~above], shown[~above], "o", color=BLUE, markersize=size, label=f"at or under: {(~above).sum():,}")
    axes.plot(place[above], shown[above], "^", color=ORANGE, markersize=size, label=f"above: {above.sum():,}")
    if len(shown) < len(values):
        axes.plot([], [], " ", label=f"not finite, not drawn: {len(values) - len(shown):,}")
    axes.axhline(limit, color=GREY, linestyle="--", linewidth=1.2, label=f"limit: {limit:.2f}")
    axes.grid(axis="y", color=LINES, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("unit, in order of k")
    axes.set_ylabel("Pareto k (no unit)")
    return entitled(axes, ax, title, columns=4)


def k_against_shift(found: Any, limit: float | None = None, *, ax: Axes | None = None) -> Axes:
    """Every unit by how far it is from the training units, and by the tail of its weights; both limits are drawn.

    Right of the limit, the unit is unlike the training; above the limit, its answer needs repair; weights without a
    tail stand at the bottom.

    Args:
        found: a `Report`, or columns `pareto_k_worst`, `input_shift`, `verdict`, and `context_shift` if any.
        limit: of Pareto k; None for that of the report, or 0.7.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where nothing is known of shift.

    """
    units = part(found, "units")
    names = [name for name in ("input_shift", "context_shift") if name in units]
    if not names:
        raise DataError(
            "plot: nothing is known of the units' shift, as where training had fewer than 20 units or there is no "
            "encoder; draw pareto_k_by_unit"
        )
    most = float(getattr(found, "numbers", {}).get("k_limit", 0.7) if limit is None else limit)
    both = np.array([np.asarray(units[name], np.float64) for name in names])
    shift, k = np.nanmax(both, axis=0, initial=0.0), np.asarray(units["pareto_k_worst"], np.float64)
    drawn, flat = np.isfinite(k) & np.isfinite(shift) & ~np.isnan(both).all(axis=0), k == FLAT_K
    bottom = min(0.0, np.min(k[drawn & ~flat], initial=0.0)) - 0.1
    axes = axes_for(ax, width=7.0, height=4.6)
    for verdict, (mark, colour) in VERDICT_MARKS.items():
        own = drawn & (np.asarray(units["verdict"]) == verdict)
        if own.any():
            at = np.where(flat, bottom, k)[own]
            axes.scatter(
                shift[own], at, 22, colour, marker=mark, alpha=0.75, label=f"{verdict}: {own.sum():,}", linewidths=0
            )
    if not drawn.all():
        axes.plot([], [], " ", label=f"not finite, not drawn: {(~drawn).sum():,}")
    axes.axhline(most, color=GREY, linestyle="--", linewidth=1.2)
    axes.axvline(1.0, color=GREY, linestyle=":", linewidth=1.2)
    far_apart(axes, shift[drawn])
    axes.set_xlim(left=0.0)
    axes.set_xlabel("shift from the training units, input or context (1 is the limit, dotted)")
    axes.set_ylabel(f"worst Pareto k (limit {most:.2f}, dashed)" + "\nflat weights at the bottom" * bool(flat.any()))
    return entitled(axes, ax, "Pareto k of each unit against its shift", columns=4)
