"""On what is a picture drawn? Axes of the user's, or of a Figure that belongs to no window and to no global state.

(`matplotlib.figure.Figure`, never pyplot, so that drawing in one thread can't change the picture of another.) Colours
are those of Okabe and Ito (2008), which readers with any colour vision can tell apart; marks differ in form too.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from amortax._errors import DataError

BLUE, ORANGE, GREEN, PURPLE, YELLOW, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#767676"
BAND, LINES = "#d9d9d9", "#dddddd"

VERDICT_MARKS = {"PASS": ("o", BLUE), "WARN": ("^", YELLOW), "FAIL": ("s", ORANGE)}
LONGEST_LABEL = 32


def new_figure(*, width: float, height: float) -> Figure:
    """A Figure on a canvas of its own, its parts laid out so that none overlap; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_for(ax: Axes | None, *, width: float, height: float) -> Axes:
    """`ax`, or those of a Figure of their own, without upper and right edge."""
    axes = new_figure(width=width, height=height).add_subplot() if ax is None else ax
    bare(axes)
    return axes


def bare(axes: Axes) -> None:
    """Takes away what frames a picture without saying anything."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)


def entitled(axes: Axes, given: Axes | None, title: str, *, columns: int = 3) -> Axes:
    """The Axes with a title and, where something has a label, a legend: below our own Figure, inside `given` Axes."""
    handles, labels = axes.get_legend_handles_labels()
    if given is not None:
        axes.set_title(title, fontsize=11)
        if labels:
            axes.legend(frameon=False, fontsize=8)
        return axes
    figure: Any = axes.figure
    figure.suptitle(title, fontsize=12)
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return axes


def far_apart(axes: Axes, values: Any) -> None:
    """Makes the horizontal axis logarithmic beyond one where values from zero on go far beyond."""
    if np.max(values, initial=0.0) > 4.0:
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_formatter(ScalarFormatter())


def part(found: Any, name: str) -> Any:
    """`units`, or a table by name, of a `Report`; columns by name are taken as they are.

    Raises:
        DataError: where the report has no such table.

    """
    if not hasattr(found, "tables"):
        return found
    if name == "units":
        return found.units
    if name not in found.tables:
        raise DataError(
            f"plot: the report has no table '{name}', only {sorted(found.tables)}; that part of the check was left "
            "out, or could not be done: report.about says why"
        )
    return found.tables[name]


def plain(label: object) -> str:
    """A label as it is: no formula between dollars, no control characters, its middle left out where it is long."""
    text, half = "".join(c if c.isprintable() else "?" for c in str(label)), LONGEST_LABEL // 2
    text = text if len(text) <= LONGEST_LABEL else f"{text[: half - 1]}…{text[-half:]}"
    return text.replace("$", r"\$")


def figure_png(figure: Any, *, dots_per_inch: int = 120) -> bytes:
    """The Figure as PNG bytes; equal figures give equal bytes (no date, no version inside)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # of labels in other scripts
        figure.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()
