"""By what are units grouped? Their size, and whatever the user names, in a few groups each."""

from __future__ import annotations

import numpy as np

from .._errors import DataError
from ..data import Units
from ..joint.structure import Structure
from .options import Checks
from .report_words import number_text

MOST = 4  # groups of a number
MOST_LABELS = 12

Slices = dict[str, tuple[np.ndarray, list[str]]]  # name -> (group of every unit, what each group is called)


def slices_of(data: Units, structure: Structure, checks: Checks) -> Slices:
    """Groups of the units of `data` by size, and by `checks.slices`.

    **Raises** `DataError` where a slice has another number of values than there are units.
    """
    found: Slices = {}
    for plate in structure.plates:
        if plate.argument in data.lengths and len(np.unique(data.lengths[plate.argument])) > 1:
            found[f"size of {plate.name}"] = grouped(data.lengths[plate.argument])
    for name, values in checks.slices.items():
        column = np.asarray(values)
        if column.shape != (len(data),):
            raise DataError(
                f"Checks(slices=): '{name}' has shape {column.shape} but there are {len(data)} units; give one value "
                "for each unit of the data that is checked, in their order"
            )
        found[name] = grouped(column)
    return found


def grouped(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(group of every unit, names of the groups): quarters of numbers that have many values, else one for each value.

    Labels beyond the most common are one group, "other".
    """
    if values.dtype.kind == "f" and np.isnan(values).any():
        missing = np.isnan(values)
        group, names = grouped(np.where(missing, np.nanmedian(values), values))
        return np.where(missing, len(names), group), [*names, "missing"]
    distinct, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    if (edges := quarter_edges(values, distinct)) is not None:
        group = np.searchsorted(edges, values)
        return group, range_names(values, group)
    if len(distinct) <= MOST_LABELS:
        return where, [number_text(value) for value in distinct]
    common = np.argsort(-counts, kind="stable")[: MOST_LABELS - 1]
    place = np.full(len(distinct), MOST_LABELS - 1)
    place[common] = np.arange(MOST_LABELS - 1)
    return place[where], [*(str(distinct[i]) for i in common), "other"]


def quarter_edges(values: np.ndarray, distinct: np.ndarray) -> np.ndarray | None:
    """Upper ends of the quarters but the last (none if most are the largest); None where few numbers differ."""
    if values.dtype.kind not in "iuf" or len(distinct) <= MOST:
        return None
    edges = np.unique(np.quantile(values, np.arange(1, MOST) / MOST, method="lower"))
    return edges[edges < distinct[-1]]


def range_names(values: np.ndarray, group: np.ndarray) -> list[str]:
    """The least and the largest value in each group."""
    return [_range(values[group == number]) for number in range(group.max() + 1)]


def _range(values: np.ndarray) -> str:
    low, high = (number_text(float(value)) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
