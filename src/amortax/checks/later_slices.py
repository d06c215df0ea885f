"""Which slice is a unit in, and a later unit? By its size, a covariate, or whatever the user names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from .._errors import DataError
from ..data import Units
from ..joint.structure import Structure
from .report_words import number_text
from .slices import quarter_edges, range_names


@dataclasses.dataclass(frozen=True)
class Slicing:
    """By what units are sliced, in a form that finds the slice of a later unit.

    `by` is the argument or plate, "by" for values that come with the units, "" for one slice. `edges` are upper ends of
    all slices of numbers but the last; without any, `labels` are the values of the slices.
    """

    by: str
    edges: tuple[float, ...]
    labels: tuple[Any, ...]
    names: tuple[str, ...]

    def of(self, values: np.ndarray, data: Units) -> Int[np.ndarray, " n"]:
        """The slice of every unit; `DataError` for a value that no slice has."""
        if not self.by:
            return np.zeros(len(values), int)
        if self.edges:
            return np.searchsorted(np.asarray(self.edges), values)
        found = [self.labels.index(x) if x in self.labels else -1 for x in values.tolist()]
        if -1 in found:
            first = found.index(-1)
            raise DataError(
                f"recalibration by {self.by!r}: {data.name} '{data.labels[first]}' has {values.tolist()[first]!r}, of "
                f"which no unit was simulated; expected one of {list(self.labels)}"
            )
        return np.asarray(found)


def slicing(by: Any, data: Units, structure: Structure) -> tuple[Slicing, Int[np.ndarray, " n"]]:
    """Quarters of numbers that have many values, else one slice for each value; and the slice of every unit."""
    if by is None:
        return Slicing("", (), (), ("all units",)), np.zeros(len(data), int)
    name, values = (by if isinstance(by, str) else "by"), slice_values(by, data, structure)
    distinct = np.unique(values)
    if (edges := quarter_edges(values, distinct)) is not None:
        group = np.searchsorted(edges, values)
        return Slicing(
            name, tuple(map(float, edges)) or (float(np.finfo(float).max),), (), tuple(range_names(values, group))
        ), group
    found = Slicing(name, (), tuple(distinct.tolist()), tuple(number_text(x) for x in distinct))
    return found, found.of(values, data)


def slice_values(by: Any, data: Units, structure: Structure) -> np.ndarray:
    """One value for each unit: of a covariate, the size along a ragged plate, or those given.

    **Raises** `DataError` for what is none of these, for responses, and for missing values.
    """
    if isinstance(by, str):
        values = _named(by, data, structure)
    else:
        values = np.asarray(by)
        if values.shape != (len(data),):
            raise DataError(
                f"recalibration: by= has shape {values.shape} but there are {len(data)} units; give one value for "
                "each unit, in their order"
            )
    if values.dtype.kind == "f" and np.isnan(values).any():
        first = int(np.argmax(np.isnan(values)))
        raise DataError(f"recalibration: {data.name} '{data.labels[first]}' has no value to slice by; give it one")
    return values


def _named(by: str, data: Units, structure: Structure) -> np.ndarray:
    sizes = {plate.name: plate.argument for plate in structure.plates if plate.argument in data.lengths}
    plain = [a.name for a in structure.arguments if a.role == "covariate" and not a.shape]
    argument = sizes.get(by, by)
    if argument in data.lengths:
        return np.asarray(data.lengths[argument])
    if by not in plain:
        raise DataError(
            f"recalibration: by={by!r} is no ragged plate and no covariate with one number for each unit, whose slice "
            f"simulated units share; expected one of {sorted({*sizes, *plain})}, or one value for each unit"
        )
    return np.asarray(data.arrays[by])
