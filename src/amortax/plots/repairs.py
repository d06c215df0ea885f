"""What did repair change? How far each unit's answer moved, by the rung that it ended on."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from amortax._errors import DataError
from amortax.repair import RUNGS

from .canvas import BLUE, GREEN, GREY, LINES, ORANGE, axes_for, entitled, far_apart

ABSENT = "plot: the second Dataset has no '{}' for each unit; give that of posterior.refine"


def before_and_after(before: Any, after: Any, *, ax: Axes | None = None) -> Axes:
    """How far the means of every unit moved by repair, in sds of the repaired draws, a row of units for each rung.

    Args:
        before: Dataset of `posterior.sample`.
        after: that of `posterior.refine`, of the same units.
        ax: Axes to draw on, or None for a Figure of their own.

    Raises:
        DataError: where `after` says nothing of rungs, or units differ.

    """
    for name in ("rung", "verdict"):
        if name not in after:
            raise DataError(ABSENT.format(name))
    moved, rung, failed = moves(before, after), after["rung"].values, after["verdict"].values == "FAIL"
    known = [name for name in RUNGS if np.any(rung == name)]
    axes = axes_for(ax, width=7.0, height=1.7 + 0.55 * len(known))
    for place, name in enumerate(known):
        own = np.flatnonzero(rung == name)
        spread = place + (0.5 * ((np.arange(len(own)) * 0.618) % 1.0) - 0.25)
        for chosen, mark, colour in (
            (~failed[own], "o", GREEN if name != "encoder" else BLUE),
            (failed[own], "s", ORANGE),
        ):
            axes.scatter(moved[own][chosen], spread[chosen], 20, colour, marker=mark, alpha=0.7, linewidths=0)
    kinds = (("encoder", BLUE, "o", rung == "encoder"), ("repaired", GREEN, "o", rung != "encoder"))
    for label, colour, mark, which in (*((*k[:3], k[3] & ~failed) for k in kinds), ("FAIL", ORANGE, "s", failed)):
        if which.any():
            axes.scatter([], [], 20, colour, marker=mark, label=f"{label}: {which.sum():,}", linewidths=0)
    counts = [f"{name}: {np.sum(rung == name):,}" for name in known]
    axes.set_yticks(np.arange(len(known)), counts)
    axes.set_ylim(len(known) - 0.5, -0.5)
    far_apart(axes, moved)
    axes.set_xlim(-0.02 * max(1.0, float(moved.max(initial=0.0))), max(1.0, 1.05 * float(moved.max(initial=0.0))))
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_xlabel("largest move of a posterior mean (sds of the repaired draws)")
    axes.set_ylabel("rung: units")
    axes.grid(axis="x", color=LINES, linewidth=0.8)
    return entitled(axes, ax, "Before and after repair")


def moves(before: Any, after: Any) -> Float[np.ndarray, " unit"]:
    """Of every unit, the largest |difference of means| over its numbers, in sds of `after`; 0 where neither varies.

    Raises:
        DataError: where the two are not of the same units.

    """
    plate = after["rung"].dims[0]
    labels = np.asarray(after[plate].values)
    if not np.array_equal(np.asarray(before[plate].values), labels):
        raise DataError(
            f"plot: the two Datasets differ in their {len(labels)} units of '{plate}'; draw both of the same"
        )
    largest = np.zeros(len(labels))
    for name, variable in after.data_vars.items():
        if not {"sample", plate} <= set(variable.dims) or variable.dtype.kind not in "fiub":
            continue
        first, last = (
            x[name]
            .transpose("sample", plate, ...)
            .values.astype(np.float64)
            .reshape(x.sizes["sample"], len(labels), -1)
            for x in (before, after)
        )
        sd = last.std(axis=0)
        apart = np.abs(last.mean(axis=0) - first.mean(axis=0))
        far = np.where(sd > 0, apart / np.where(sd > 0, sd, 1.0), 0.0)
        largest = np.fmax(largest, np.nanmax(far, axis=1, initial=0.0, where=np.isfinite(far)))
    return largest
