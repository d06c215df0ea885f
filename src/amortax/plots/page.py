"""Which pictures belong to a report? Those for which there is something to draw, as PNGs, and the page with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from amortax.psis import FLAT_K

from .calibration import coverage_curve, rank_histograms
from .canvas import figure_png
from .gaps import gap_bars
from .repairs import before_and_after
from .training import training_curve
from .units import k_against_shift, pareto_k_by_unit
from .worst import sites_of, worst_units


def pictures(
    report: Any, *, posterior: Any = None, data: Any = None, drawn: Any = None, refined: Any = None
) -> dict[str, bytes]:
    """PNGs by title, for `report.to_html(pictures=)`; what there is nothing to draw of is left out.

    Args:
        report: the `Report` of `posterior.check`.
        posterior: for its training curve, or None.
        data: what was checked, for a summary of the worst units, or None; in any form where there is a `posterior`.
        drawn: Dataset of `posterior.sample`, of the worst units at least, or None.
        refined: that of `posterior.refine`, or None; beside `drawn` of the same units it is shown before and after.

    """
    found = {}
    if data is not None and posterior is not None:
        data = posterior.answerable(data)
    if "pareto_k_worst" in report.units and len(report):
        found |= _trust(report)
    if drawn is not None and len(report) and sites_of(drawn, report.unit_name):
        found["The worst units, and their data"] = worst_units(report, drawn, refined=refined, data=data)
    if drawn is not None and refined is not None and "rung" in refined:
        found["Before and after repair"] = before_and_after(drawn, refined)
    if "ranks" in report.tables:
        found["Ranks of the truth among draws"] = rank_histograms(report)[0]
    if "coverage" in report.tables:
        found["Coverage, found and nominal"] = coverage_curve(report)
    if "gaps" in report.tables and np.isfinite(report.tables["gaps"]["nats"]).any():
        found["Gaps"] = gap_bars(report)
    if posterior is not None and np.isfinite(posterior.record.elbo_per_unit).any():
        found["How it was trained"] = training_curve(posterior.record.step, posterior.record.elbo_per_unit)
    return {title: figure_png(axes.figure) for title, axes in found.items()}


def _trust(report: Any) -> dict[str, Any]:
    """k against shift, or k alone where nothing is known of shift; nothing where all weights are flat."""
    title, k = "How far to trust each unit", np.asarray(report.units["pareto_k_worst"], np.float64)
    shift = [np.asarray(report.units[name]) for name in ("input_shift", "context_shift") if name in report.units]
    if shift and np.any(np.isfinite(k) & np.isfinite(shift).any(axis=0)):
        return {title: k_against_shift(report)}
    if np.any(np.isfinite(k) & (k != FLAT_K)):
        return {
            title: pareto_k_by_unit(k, float(report.numbers.get("k_limit", 0.7)), title="Worst Pareto k of each unit")
        }
    return {}


def write_html(
    report: Any,
    path: str | os.PathLike[str],
    *,
    posterior: Any = None,
    data: Any = None,
    drawn: Any = None,
    refined: Any = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the report as one page with all its `pictures`; further `tables` by title, columns by name."""
    drawings = pictures(report, posterior=posterior, data=data, drawn=drawn, refined=refined)
    report.write_html(path, pictures=drawings, tables=tables)
