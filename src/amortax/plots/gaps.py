"""How much is lost where? The gaps between the evidence and the bound, with standard errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from amortax._errors import DataError

from .canvas import BLUE, GREY, LINES, axes_for, entitled, part, plain


def gap_bars(found: Any, *, ax: Axes | None = None) -> Axes:
    """A bar for each gap, nats per unit, with one standard error to either side; the number stands behind its name.

    Args:
        found: a `Report`, or columns `gap` (names), `nats` and `se`.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where the report has no gaps, or none of them is finite.

    """
    table = part(found, "gaps")
    names = [str(name) for name in table["gap"]]
    nats, error = (np.asarray(table[name], np.float64) for name in ("nats", "se"))
    kept = np.flatnonzero(np.isfinite(nats))
    if not len(kept):
        raise DataError(f"plot: none of the gaps {names} is finite; report.tables['gaps'] has them")
    axes, place = axes_for(ax, width=7.0, height=1.4 + 0.45 * len(kept)), np.arange(len(kept))
    width = np.where(np.isfinite(error[kept]), error[kept], 0.0)
    axes.barh(place, nats[kept], xerr=width, color=BLUE, height=0.6, ecolor=GREY, capsize=3)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_yticks(place, [f"{plain(names[i])}: {nats[i]:.3f} ± {error[i]:.3f}" for i in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.set_xlabel("nats per unit")
    axes.grid(axis="x", color=LINES, linewidth=0.8)
    return entitled(axes, ax, "What is lost between evidence and bound")
