"""What does an answer, or a training, look like? Pictures by Matplotlib, each a function from numbers to a Figure.

The Figures belong to no window and to no global state (`matplotlib.figure.Figure`, never pyplot), so that drawing in
one thread can't change the picture of another; `figure_png` gives the bytes that a report embeds. Colours are those of
Okabe and Ito (2008), which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amortax._errors import DataError

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#767676"

LEAST_SPAN = 0.05  # nats: less than that is noise, and no picture should make it look like progress

Interval = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]


def intervals_against_exact(
    labels: Sequence[str],
    ours: Interval,
    exact: Interval,
    counts: Sequence[int] | Integer[np.ndarray, " unit"],
    *,
    axis_label: str = "log radon (log pCi/L)",
    title: str = "90% intervals, amortized and exact",
) -> Figure:
    """One row per unit with two intervals, ours above the exact one, the unit with the most data on top.

    Args:
        labels: name of each unit.
        ours: mean, 5% and 95% quantile of each unit, each of length `len(labels)`.
        exact: the same of the exact posterior.
        counts: number of observations of each unit, shown behind its name.
        axis_label: quantity and unit of the intervals.
        title: title of the picture.

    Raises:
        DataError: where lengths differ.

    """
    rows = np.array([*ours, *exact], np.float64)
    if rows.shape != (6, len(labels)) or len(counts) != len(labels):
        raise DataError(f"plot: {len(labels)} labels, {len(counts)} counts, intervals {rows.shape}; give one per unit")
    order = np.argsort(-np.asarray(counts), kind="stable")
    rows, place = rows[:, order], np.arange(len(labels))
    dense = len(labels) > 30
    figure, axes = _axes(width=8.0, height=1.6 + (0.17 if dense else 0.3) * len(labels))
    both = (("amortized", rows[:3], _BLUE, "o", -0.16), ("exact", rows[3:], _ORANGE, "s", 0.16))
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
    axes.set_yticks(place, [f"{labels[i]} ({counts[i]})" for i in order])
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel=axis_label, ylabel="unit (number of observations)")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(axis="y", length=0, labelsize=7 if dense else None)
    figure.suptitle(title, fontsize=12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def training_curve(
    steps: Sequence[int] | Integer[np.ndarray, " record"],
    elbo_per_unit: Sequence[float] | Float[np.ndarray, " record"],
    *,
    title: str = "Training",
) -> Figure:
    """The bound against the step; a steep first fifth runs out of the picture, so that the end can be read.

    Args:
        steps: the step of each record.
        elbo_per_unit: the bound there, nats per unit; records that are not finite are left out.
        title: title of the picture.

    Raises:
        DataError: where lengths differ.

    """
    at, value = np.asarray(steps), np.asarray(elbo_per_unit, np.float64)
    if at.shape != value.shape:
        raise DataError(f"plot: {at.shape} steps and {value.shape} bounds; give one bound per step")
    at, value = at[np.isfinite(value)], value[np.isfinite(value)]
    figure, axes = _axes(width=7.0, height=4.0)
    axes.plot(at, value, color=_BLUE, linewidth=1.5)
    late = value[len(value) // 5 :]
    if late.size and value.min() < late.min() - 3 * (np.ptp(late) + 1e-12):
        top = value.max() + 0.1 * max(np.ptp(late), LEAST_SPAN)
        axes.set_ylim(min(late.min() - 0.3 * np.ptp(late), top - LEAST_SPAN), top)
        said = f"from {value[0]:,.1f} at step {at[0]:,}, below this picture"
        axes.annotate(said, (0.98, 0.03), xycoords="axes fraction", color=_GREY, fontsize=9, ha="right", va="bottom")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO per unit (nats, higher is better)")
    axes.set_title(title, fontsize=12)
    return figure


def pareto_k_by_unit(
    k: Sequence[float] | Float[np.ndarray, " unit"], limit: float, *, title: str = "Pareto k of each unit"
) -> Figure:
    """The units in order of their Pareto k, and the limit above which weights are not reliable.

    Args:
        k: Pareto k of each unit; what is not finite is counted in the legend.
        limit: min(1 - 1/log10(S), 0.7) for S draws.
        title: title of the picture.

    """
    values = np.asarray(k, np.float64)
    shown = np.sort(values[np.isfinite(values)])
    place, above = np.arange(1, len(shown) + 1), shown > limit
    figure, axes = _axes(width=7.0, height=4.0)
    size = 5.0 if len(shown) <= 300 else 2.5
    axes.plot(place[~above], shown[~above], "o", color=_BLUE, markersize=size, label=f"at or under: {(~above).sum():,}")
    axes.plot(place[above], shown[above], "^", color=_ORANGE, markersize=size, label=f"above: {above.sum():,}")
    if len(shown) < len(values):
        axes.plot([], [], " ", label=f"not finite, not drawn: {len(values) - len(shown):,}")
    axes.axhline(limit, color=_GREY, linestyle="--", linewidth=1.2, label=f"limit: {limit:.2f}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("unit, in order of k")
    axes.set_ylabel("Pareto k (no unit)")
    figure.suptitle(title, fontsize=12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def figure_png(figure: Figure, *, dots_per_inch: int = 120) -> bytes:
    """The Figure as PNG bytes; equal figures give equal bytes (no date, no version inside)."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def _axes(*, width: float, height: float) -> tuple:
    """A Figure on a canvas of its own, its parts laid out so that none overlap, and its axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
