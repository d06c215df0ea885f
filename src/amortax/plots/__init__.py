"""Pictures of answers, reports, trainings and repairs, by Matplotlib: each a function that returns Axes.

All take `ax=`, Axes to draw on; without it they make a Figure of their own, `axes.figure`. What is drawn comes from a
`Report`, or from columns by name as `report.units` and `report.tables` have them.
"""

from .calibration import coverage_curve, rank_histogram, rank_histograms
from .canvas import figure_png
from .gaps import gap_bars
from .page import pictures, write_html
from .repairs import before_and_after
from .training import training_curve
from .units import intervals_against_exact, k_against_shift, pareto_k_by_unit
from .worst import worst_units

__all__ = [
    "before_and_after",
    "coverage_curve",
    "figure_png",
    "gap_bars",
    "intervals_against_exact",
    "k_against_shift",
    "pareto_k_by_unit",
    "pictures",
    "rank_histogram",
    "rank_histograms",
    "training_curve",
    "worst_units",
    "write_html",
]
