"""Which units are to be visited more often in training? Read from a report, or from what the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._errors import FitError
from .data import Units


def visits_of(focus: Any, data: Units, labels: np.ndarray) -> np.ndarray | None:
    """How often each of the units `labels` of `data` is visited, in any unit of measure; None: all alike.

    `focus` is a report of exactly these units, label -> number, or one number for each unit of `data` in its order.
    Flagged units of a report are half of all visits, unless they are half of all units anyway.

    **Raises** `FitError` for other units, and for numbers that are not finite and above 0.
    """
    if focus is None:
        return None
    if hasattr(focus, "units") and hasattr(focus, "unit_name"):
        known = _of_report(focus, data)
    elif isinstance(focus, Mapping):
        known = _of_labels(focus, data)
    else:
        known = _of_array(focus, data)
    found = np.array([known[label] for label in labels.tolist()], np.float64)
    if not (np.all(np.isfinite(found)) and np.all(found > 0)):
        first = int(np.argmax(~(np.isfinite(found) & (found > 0))))
        raise FitError(
            f"run.focus: {data.name} '{labels[first]}' has {found[first]}; give finite numbers above 0: a unit that is "
            "never visited would be missing from what is trained"
        )
    return None if np.all(found == found[0]) else found


def _of_report(report: Any, data: Units) -> dict[Any, float]:
    """Units that FAIL, or those that WARN where none does, as often as all others together."""
    judged = {
        str(label): str(v) for label, v in zip(report.units[report.unit_name], report.units["verdict"], strict=True)
    }
    asked = [str(label) for label in data.labels.tolist()]
    strange = sorted(set(judged) - set(asked)) + [label for label in asked if label not in judged]
    if strange:
        where = "the report and not in data" if strange[0] in judged else "data and not in the report"
        raise FitError(
            f"run.focus: the report is of {len(judged)} units of '{report.unit_name}' and data has {len(asked)}; "
            f"'{strange[0]}' is in {where}, with {len(strange) - 1} more that are in one alone; check exactly the "
            "units that you train on, or give focus={label: number}"
        )
    level = "FAIL" if "FAIL" in judged.values() else "WARN"
    flagged = sum(verdict == level for verdict in judged.values())
    more = max(len(judged) / flagged - 1, 1.0) if flagged else 1.0
    return {
        label: more if judged[name] == level else 1.0 for label, name in zip(data.labels.tolist(), asked, strict=True)
    }


def _of_labels(focus: Mapping, data: Units) -> dict[Any, float]:
    labels = data.labels.tolist()
    if unknown := [label for label in focus if label not in set(labels)]:
        raise FitError(
            f"run.focus: {unknown[0]!r} is no {data.name} of data, whose labels are like {labels[:3]}; give label -> "
            "number"
        )
    return {label: _number(focus.get(label, 1.0)) for label in labels}


def _of_array(focus: Any, data: Units) -> dict[Any, float]:
    array = np.asarray(focus)
    if array.shape != (len(data),) or array.dtype.kind not in "biuf":
        raise FitError(
            f"run.focus has shape {array.shape} of {array.dtype}; expected a report of check, label -> number, or one "
            f"number for each of the {len(data)} units of data"
        )
    return dict(zip(data.labels.tolist(), array.astype(np.float64).tolist(), strict=True))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
