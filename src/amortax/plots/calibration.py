"""Do intervals cover what they say? Ranks of the truth with bands of chance, and coverage against its nominal value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes

from amortax._errors import DataError
from amortax.checks.bands import BINS, bin_band

from .canvas import BAND, BLUE, GREY, LINES, ORANGE, axes_for, bare, entitled, new_figure, part, plain

LEVEL = 0.99  # of the band that all bins of a picture stay in by chance
MOST_PANELS, MOST_CURVES = 12, 6
_BESIDE = ("to rank", "low", "high")


def rank_histogram(counts: Sequence[int] | Int[np.ndarray, " bins"], *, name: str = "", ax: Axes | None = None) -> Axes:
    """How many simulated units have the rank of their truth in each bin; bins outside the band of chance in orange.

    A hill is a q that is too wide, a valley one too narrow, a slope one that is too high or too low.

    Args:
        counts: units in each of equally wide bins, as a column of `report.tables["ranks"]`.
        name: of the site.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where there is no count.

    """
    bars = np.asarray(counts)
    if bars.ndim != 1 or not bars.sum():
        raise DataError(f"plot: rank_histogram of {name or 'a site'} got {bars.shape} counts with sum {bars.sum()}")
    axes = axes_for(ax, width=4.0, height=2.8)
    low, high = bin_band(int(bars.sum()), LEVEL) if len(bars) == BINS else (bars.sum() / len(bars),) * 2
    edges = np.linspace(0.0, 1.0, len(bars) + 1)
    colours = np.where((bars < low) | (bars > high), ORANGE, BLUE)
    axes.axhspan(low, high, color=BAND, linewidth=0)
    axes.bar(edges[:-1], bars, np.diff(edges), align="edge", color=colours, alpha=0.9, edgecolor="white", linewidth=0.5)
    axes.axhline(bars.sum() / len(bars), color=GREY, linewidth=0.8)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.15 * max(float(bars.max()), high)), xticks=(0.0, 0.5, 1.0))
    axes.set_title(plain(name), fontsize=9)
    axes.tick_params(labelsize=8)
    return axes


def rank_histograms(found: Any) -> np.ndarray:
    """A panel per site, of a `Report` or of its table of ranks; the most uneven ones where there are many.

    Returns:
        the Axes of the panels (panels,), of one Figure.

    Raises:
        DataError: where the report has no ranks.

    """
    table = {name: np.asarray(counts) for name, counts in part(found, "ranks").items() if name not in _BESIDE}
    names = sorted((name for name in table if table[name].sum()), key=lambda name: -_unevenness(table[name]))
    shown = [name for name in table if name in names[:MOST_PANELS]]
    if not shown:
        raise DataError("plot: the table of ranks has no site with a count; simulate more units")
    across = 2 if len(shown) in (2, 4) else min(len(shown), 3)
    down = -(-len(shown) // across)
    figure = new_figure(width=0.4 + 2.9 * max(across, 2), height=0.9 + 1.9 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, name in zip(axes, shown, strict=False):
        bare(panel)
        rank_histogram(table[name], name=name, ax=panel)
    for panel in axes[len(shown) :]:
        panel.set_axis_off()
    left = f"; the {len(shown)} most uneven of {len(names)}" if len(shown) < len(names) else ""
    figure.suptitle(f"Ranks of the truth{left}: flat is right, the grey band is chance", fontsize=11)
    figure.supxlabel("rank among draws of q (share)", fontsize=9)
    figure.supylabel("simulated units", fontsize=9)
    return axes[: len(shown)]


def _unevenness(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(np.sum((counts - expected) ** 2) / expected)


def coverage_curve(found: Any, *, ax: Axes | None = None) -> Axes:
    """How often intervals hold the truth, against how often they say so, with the band of chance.

    Args:
        found: a `Report`, or columns `of`, `nominal`, `found`, `low`, `high` with an entry per site and level.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where the report has no coverage.

    """
    table = {name: np.asarray(column) for name, column in part(found, "coverage").items()}
    axes = axes_for(ax, width=6.0, height=5.0)
    levels = np.unique(table["nominal"])
    rows = [table["nominal"] == level for level in levels]
    low, high = ([edge(table[name][row]) for row in rows] for name, edge in (("low", np.min), ("high", np.max)))
    axes.fill_between([0.0, *levels, 1.0], [0.0, *low, 1.0], [0.0, *high, 1.0], color=BAND, label="by chance")
    axes.plot((0.0, 1.0), (0.0, 1.0), color=GREY, linewidth=0.8, linestyle="--")
    for name, style in _styles(table).items():
        own = table["of"] == name
        axes.plot(table["nominal"][own], table["found"][own], **style)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), xlabel="nominal coverage of the interval", ylabel="coverage found")
    axes.grid(color=LINES, linewidth=0.8)
    return entitled(axes, ax, "Coverage: above the band too wide, below it too narrow", columns=2)


def _styles(table: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """How each curve is drawn: those outside their bands in orange, the most outside first in the legend."""
    beyond = np.maximum(table["low"] - table["found"], table["found"] - table["high"])
    worst = {str(name): float(beyond[table["of"] == name].max()) for name in table["of"]}
    order = sorted(worst, key=lambda name: -worst[name])
    marks, styles = "osD^v<", {}
    for i, name in enumerate(order):
        out, told = worst[name] > 0, i < MOST_CURVES
        label = plain(name) + " (outside)" * out if told else f"{len(order) - i} more" if i == MOST_CURVES else None
        colour = ORANGE if out else BLUE
        styles[name] = {"color": colour, "marker": marks[i % len(marks)] if told else ".", "label": label}
        styles[name] |= {"linewidth": 1.2, "markersize": 5, "alpha": 0.9 if told else 0.4}
    return styles
