"""How did the training go? The bound against the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from amortax._errors import DataError

from .canvas import BLUE, GREY, LINES, axes_for, entitled

LEAST_SPAN = 0.05  # nats: less than that is noise, and no picture should make it look like progress


def training_curve(
    steps: Sequence[int] | Integer[np.ndarray, " record"],
    elbo_per_unit: Sequence[float] | Float[np.ndarray, " record"],
    *,
    title: str = "Training",
    ax: Axes | None = None,
) -> Axes:
    """The bound against the step; a steep first fifth runs out of the picture, so that the end can be read.

    Args:
        steps: the step of each record.
        elbo_per_unit: the bound there, nats per unit; records that are not finite are left out.
        title: title of the picture.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where lengths differ.

    """
    at, value = np.asarray(steps), np.asarray(elbo_per_unit, np.float64)
    if at.shape != value.shape:
        raise DataError(f"plot: {at.shape} steps and {value.shape} bounds; give one bound per step")
    at, value = at[np.isfinite(value)], value[np.isfinite(value)]
    axes = axes_for(ax, width=7.0, height=4.0)
    axes.plot(at, value, color=BLUE, linewidth=1.5, marker="o" if len(at) < 3 else None)
    late = value[len(value) // 5 :]
    if late.size and value.min() < late.min() - 3 * (np.ptp(late) + 1e-12):
        top = value.max() + 0.1 * max(np.ptp(late), LEAST_SPAN)
        axes.set_ylim(min(late.min() - 0.3 * np.ptp(late), top - LEAST_SPAN), top)
        said = f"from {value[0]:,.1f} at step {at[0]:,}, below this picture"
        axes.annotate(said, (0.98, 0.03), xycoords="axes fraction", color=GREY, fontsize=9, ha="right", va="bottom")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(color=LINES, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO per unit (nats, higher is better)")
    return entitled(axes, ax, title)
