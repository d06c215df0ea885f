"""What does a table say of a mixed model? Its rows as the arguments x, z and y, with intercepts and contrasts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from amortax._errors import DataError
from amortax.data import Units, from_table

__all__ = ["Design", "design"]


@dataclasses.dataclass(frozen=True)
class Design:
    """What `design` makes of a table: the units, names of the columns of x and of z, labels of categories."""

    units: Units
    fixed: tuple[str, ...]
    random: tuple[str, ...]
    categories: dict[str, tuple]


def design(
    table: Any,
    *,
    group: str,
    response: str | None,
    fixed: Sequence[str] = (),
    random: Sequence[str] = (),
    categories: Mapping[str, Sequence[Any] | None] | None = None,
    beside: Mapping[str, str] | None = None,
) -> Design:
    """The arguments x, z and y of the models from a table with one row per response.

    Args:
        table: whatever `am.from_table` takes.
        group: the column that names the group of a row.
        response: the column of y; None for rows to predict, without y.
        fixed: columns with a fixed effect; the intercept comes first by itself.
        random: columns with a random effect in every group, likewise.
        categories: column -> its labels, None for those found, sorted; each label but the first becomes a column of
            zeros and ones (R's treatment contrasts). For new groups give the `categories` of the first design.
        beside: further argument of the model -> its column: `{"trials": "n"}`, `{"exposure": "time"}`.

    Raises:
        DataError: where a column isn't there, isn't numbers, or is a covariate with a missing value.

    >>> table = {"rat": ["a", "a", "b"], "weight": [2.0, 3.0, 4.0], "diet": ["low", "low", "high"]}
    >>> rows = design(table, group="rat", response="weight", fixed=["diet"], categories={"diet": None})
    >>> rows.fixed, rows.random
    (('1', 'diet[low]'), ('1',))

    """
    beside = dict(beside or {})
    for name, given in (("fixed", fixed), ("random", random)):
        if isinstance(given, str):
            raise DataError(f"design: {name}={given!r}: expected a list of columns, {name}=[{given!r}]")
    responses = [] if response is None else [response]
    columns = list(dict.fromkeys([*responses, *fixed, *random, *beside.values()]))
    found = from_table(table, unit=group, columns=columns, categories=categories)
    own = np.arange(found.arrays[columns[0]].shape[1]) < found.lengths[columns[0]][:, None]
    for column in {*fixed, *random}:
        _check_complete(found, column, own)
    names = {"x": _names(found, fixed), "z": _names(found, random)}
    arrays = {"x": _values(found, fixed, own), "z": _values(found, random, own)}
    masks = {name: np.broadcast_to(own[..., None], array.shape) for name, array in arrays.items()}
    for name, column in {**beside, **({} if response is None else {"y": response})}.items():
        arrays[name], masks[name] = found.arrays[column], found.masks[column]
    lengths = dict.fromkeys(arrays, found.lengths[columns[0]])
    units = Units(arrays, masks, lengths, found.labels, name=found.name)
    _check_exposure(units)
    return Design(units, names["x"], names["z"], dict(found.categories))


def _check_complete(found: Units, column: str, own: np.ndarray) -> None:
    """Raises where a covariate is missing in a row of the table."""
    gaps = own & ~found.masks[column]
    if gaps.any():
        unit, row = np.argwhere(gaps)[0]
        raise DataError(
            f"column {column!r} is missing at {found.name} {found.labels[unit].item()!r}, row {row} of it, but it is a "
            "covariate, and only responses may have missing values; drop those rows, or impute the column"
        )


def _names(found: Units, columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a design matrix: '1' for the intercept, 'column[label]' for a contrast."""
    names = ["1"]
    for column in columns:
        labels = found.categories.get(column)
        names += [column] if labels is None else [f"{column}[{label}]" for label in labels[1:]]
    return tuple(names)


def _values(found: Units, columns: Sequence[str], own: np.ndarray) -> Float[np.ndarray, "group row column"]:
    """A design matrix: ones, then the columns, categories as treatment contrasts."""
    parts = [np.ones(own.shape, np.float32)]
    for column in columns:
        values, labels = found.arrays[column], found.categories.get(column)
        parts += [values] if labels is None else [values == code for code in range(1, len(labels))]
    return np.stack(parts, axis=-1).astype(np.float32)


def _check_exposure(units: Units) -> None:
    """Raises where an exposure is not positive: nothing can have been counted in no time."""
    exposure = units.arrays.get("exposure")
    if exposure is not None and (wrong := np.argwhere((exposure <= 0) & units.masks["exposure"])).size:
        unit, row = wrong[0]
        raise DataError(
            f"data['exposure'] is {exposure[unit, row]:g} at {units.name} {units.labels[unit].item()!r}, row {row} of "
            "it; a rate is multiplied by it: expected a positive number, or drop the row"
        )
