"""What is looked at in a unit's responses? Mean, spread, extremes, zeros, what follows on what, and the user's own.

Built-in statistics take values (draws, units, elements) and the mask (units, elements) of what the units really have;
each is NaN where it says nothing (the sd of one value). A user's takes the arguments of one unit, a dict of arrays
without the unit axis: cut to the unit's own length, NaN where missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .._errors import DataError
from ..data import Units
from ..joint.structure import Argument, Structure

Arrays = dict[str, np.ndarray]
Values = Float[np.ndarray, "draws units elements"]
Own = Bool[np.ndarray, "units elements"]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean(values: Values, own: Own) -> Float[np.ndarray, "draws units"]:
    """Mean of a unit's own values."""
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(own, values, 0.0), axis=-1) / own.sum(axis=-1)


def spread(values: Values, own: Own) -> Float[np.ndarray, "draws units"]:
    """Their sd, of two or more."""
    count = own.sum(axis=-1)
    away = np.where(own, values - mean(values, own)[..., None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 1, np.sqrt(np.sum(away**2, axis=-1) / (count - 1)), np.nan)


def smallest(values: Values, own: Own) -> Float[np.ndarray, "draws units"]:
    """The smallest."""
    found = np.min(np.where(own, values, np.inf), axis=-1)
    return np.where(own.any(axis=-1), found, np.nan)


def largest(values: Values, own: Own) -> Float[np.ndarray, "draws units"]:
    """The largest."""
    return -smallest(-values, own)


def zeros(values: Values, own: Own) -> Float[np.ndarray, "draws units"]:
    """The share of zeros among counts."""
    return mean((values == 0).astype(np.float64), own)


def following(values: Float[np.ndarray, "draws units rest steps"], own: Bool[np.ndarray, "units rest steps"]) -> Any:
    """Autocorrelation of one step with the next, (draws, units), of three or more steps."""
    flat = values.reshape(*values.shape[:2], -1), own.reshape(len(own), -1)
    away = np.where(own, values - mean(*flat)[..., None, None], 0.0)
    both = own[..., 1:] & own[..., :-1]
    product = np.sum(np.where(both, away[..., 1:] * away[..., :-1], 0.0), axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = product / np.sum(away**2, axis=(-2, -1))
    return np.where(both.sum(axis=(-2, -1)) > 1, found, np.nan)


def built_in(structure: Structure, argument: Argument, values: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """Every statistic that says something of a response, (draws, units), by name.

    **Arguments**: `values` (draws, units, ...), the first draw the data themselves, and `own` (units, ...).
    """
    flat, mask = values.reshape(*values.shape[:2], -1).astype(np.float64), own.reshape(len(own), -1)
    if mask.shape[1] == 1:
        return {f"value of {argument.name}": np.where(mask[:, 0], flat[..., 0], np.nan)}
    found = {"mean": mean(flat, mask), "sd": spread(flat, mask)}
    found |= {"smallest": smallest(flat, mask), "largest": largest(flat, mask)}
    counts = np.issubdtype(values.dtype, np.integer) and np.all(flat[:, mask] >= 0) and np.any(flat[:, mask] > 1)
    if counts and np.any(flat[:, mask] == 0):
        found["share of zeros"] = zeros(flat, mask)
    ordered = {plate.name for plate in structure.plates if plate.ordered}
    for axis, name in enumerate(argument.dims):
        if name in ordered:
            steps, shown = np.moveaxis(values, axis + 2, -1), np.moveaxis(own, axis + 1, -1)
            steps = steps.reshape(*steps.shape[:2], -1, steps.shape[-1]).astype(np.float64)
            found["autocorrelation"] = following(steps, shown.reshape(len(own), -1, shown.shape[-1]))
    return {f"{name} of {argument.name}": x for name, x in found.items() if np.isfinite(x[0]).any()}


def of_user(
    statistics: Mapping[str, Callable[[Arrays], Any]], data: Units, start: int, drawn: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The user's statistics of the units from `start` on, (draws, units), the first draw the data themselves.

    **Arguments**: `drawn` the responses (draws, units, ...), of all else `data` tells.

    **Raises** `DataError` naming statistic and unit where a function fails, or gives anything but one number.
    """
    if not statistics:
        return {}
    draws, count = next(iter(drawn.values())).shape[:2]
    found = {name: np.empty((draws, count)) for name in statistics}
    for unit in range(count):
        row = start + unit
        for draw in range(draws):
            own = {
                name: _shown(data, name, row, drawn[name][draw, unit] if name in drawn else None)
                for name in data.arrays
            }
            for name, function in statistics.items():
                found[name][draw, unit] = _number(name, function, own, f"{data.name} '{data.labels[row]}'")
    return found


def _shown(data: Units, name: str, row: int, value: np.ndarray | None) -> np.ndarray:
    """One argument of one unit as the user knows it."""
    value, mask = np.asarray(data.arrays[name][row] if value is None else value), data.masks.get(name)
    if name in data.lengths:
        value = value[: data.lengths[name][row]]
    if mask is None:
        return value
    shown = mask[row][: len(value)] if value.ndim else mask[row]
    return value if shown.all() else np.where(shown, value, np.nan)


def _number(name: str, function: Callable[[Arrays], Any], unit: Arrays, where: str) -> float:
    try:
        value = np.asarray(function(unit))
    except Exception as error:
        raise DataError(
            f"Checks(statistics=): '{name}' failed on {where}: {type(error).__name__}: {error}; it is given a dict "
            f"with the arrays {sorted(unit)} of one unit, NaN where missing"
        ) from error
    if value.ndim or value.dtype.kind not in "biuf":
        what = f"an array of shape {value.shape}" if value.ndim else f"{value.dtype}"
        raise DataError(f"Checks(statistics=): '{name}' gave {what} on {where}; give one number per unit")
    return float(value)
