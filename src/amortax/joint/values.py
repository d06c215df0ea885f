"""Are the observed values possible? Values against supports, indices against axes, gaps against sites, before training.

Compiled code clamps a wrong index, returns a number for an impossible count, and takes what fills a missing place for
a value; here they are errors that name the unit, the place and the value.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._errors import DataError
from .._types import Batch
from .joint import Joint
from .masks import own_places
from .structure import Argument, Site, Structure

CHUNK = 4096


def check_values(joint: Joint, data: Batch, labels: Sequence[Any], stand_ins: Collection[str] = ()) -> None:
    """Raises `DataError` at the first gap that must not be, index out of range, or value outside its support.

    **Arguments**: `data` all units as host arrays; `labels` what each unit is called; `stand_ins` arguments whose
    values nobody gave, and which need not be possible.
    """
    structure = joint.structure
    for argument in structure.arguments:
        if argument.needed:
            _check_complete(argument, data, labels, structure)
        if argument.categories is not None:
            _check_index(argument, data, labels, structure.plate)
    observed = tuple(s for s in structure.of("observed") if s.per_unit)
    given = not stand_ins  # a function of the data can't be told apart from one of a placeholder
    supported = tuple(
        s for s in observed if s.checkable and (given if s.argument is None else s.argument not in stand_ins)
    )
    data = _bucketed(data)
    size = len(labels)
    chunk = min(CHUNK, 1 << (size - 1).bit_length())  # few shapes, so that other numbers of units compile nothing
    for start in range(0, size, chunk) if observed else ():
        rows = np.minimum(np.arange(start, start + chunk), size - 1)
        part = jax.tree.map(lambda x, r=rows: np.asarray(x)[r], data)
        wrong, partly = _faults(joint, supported, observed if data.masks else (), part)
        for site, bad in zip(supported, wrong, strict=True):
            if found := _first(bad):
                _refuse_value(site, part, found, labels[rows[found[0]]], structure)
        for site, bad in zip(observed, partly, strict=False):
            if found := _first(bad):
                _refuse_partly(site, found, labels[rows[found[0]]], structure.plate)


def _bucketed(data: Batch) -> Batch:
    """Ragged axes padded to powers of two, so that other lengths compile nothing."""

    def longer(values: Any, last: bool) -> dict[str, Any]:
        found = {}
        for name, x in values.items():
            more = (1 << max(x.shape[1] - 1, 0).bit_length()) - x.shape[1] if name in data.lengths else 0
            if more:
                tail = np.repeat(np.asarray(x)[:, -1:], more, axis=1)
                x = np.concatenate([x, tail if last else np.zeros_like(tail)], axis=1)
            found[name] = x
        return found

    return Batch(longer(data.arrays, True), longer(data.masks, False), data.lengths)


def _check_complete(argument: Argument, data: Batch, labels: Sequence[Any], structure: Structure) -> None:
    if argument.name not in data.masks:
        return
    mask, plate = data.masks[argument.name], structure.plate
    missing = own_places(mask, data.lengths.get(argument.name)) & ~np.asarray(mask) & ~_idle(argument, data, structure)
    if found := _first(missing):
        count = int(missing.sum())
        raise DataError(
            f"data['{argument.name}'] is missing at {plate} '{labels[found[0]]}'{_place(found[1:])}"
            f"{f' and {count - 1} more places' if count > 1 else ''}, but {argument.needed}; drop those rows, impute "
            f"'{argument.name}', or model it with a sample site"
        )


def _idle(argument: Argument, data: Batch, structure: Structure) -> np.ndarray:
    """Where a covariate may be missing since nothing is observed: its element is no more than padding within a unit."""
    own = {name for site in structure.of("local", "discrete") for name in site.plates}
    beside = [a for a in structure.arguments if a.role == "observed" and a.dims == argument.dims]
    inner = [name for name in argument.dims if name is not None]
    if argument.role == "observed" or len(inner) < 2 or inner[-1] in own or not beside:
        return np.zeros(np.shape(data.arrays[argument.name]), bool)
    shown = [np.asarray(data.masks.get(a.name, np.ones(np.shape(data.arrays[a.name]), bool))) for a in beside]
    return ~np.any(shown, axis=0)


def _check_index(argument: Argument, data: Batch, labels: Sequence[Any], plate: str) -> None:
    name, least, count = argument.name, argument.first_category, argument.categories or 0
    value, mask = np.asarray(data.arrays[name]), data.masks.get(name)
    wrong = (value < least) | (value >= least + count)
    if found := _first(wrong if mask is None else wrong & np.asarray(mask)):
        raise DataError(
            f"data['{name}'] is {value[found]} at {plate} '{labels[found[0]]}'{_place(found[1:])}, but the model "
            f"uses it as an index into an axis of length {count}: expected {least} to {least + count - 1}; correct "
            f"it, or make that axis longer"
        )


@eqx.filter_jit
def _faults(joint: Joint, supported: tuple[Site, ...], masked: tuple[Site, ...], data: Batch) -> tuple[list, list]:
    """Where values of `supported` sites lie outside their support, and events of `masked` ones are missing in part."""

    def one(unit: Batch) -> tuple[list, list]:
        return [~good for good in joint.in_support(unit, supported)], joint.partly_missing(unit, masked)

    return jax.vmap(one)(data)


def _first(bad: Any) -> tuple[int, ...]:
    found = np.argwhere(np.asarray(bad))
    return tuple(int(i) for i in found[0]) if len(found) else ()


def _refuse_value(site: Site, part: Batch, where: tuple[int, ...], label: Any, structure: Structure) -> None:
    values = None if site.argument is None else part.arrays[site.argument]
    value = "" if values is None else f" {values[where[: values.ndim]]!s}"
    raise DataError(
        f"observed site '{site.name}' is{value} at {structure.plate} '{label}'{_place(where[1:])}, outside its support "
        f"{site.support}; correct the value, mark it missing (NaN), or change the distribution"
    )


def _refuse_partly(site: Site, where: tuple[int, ...], label: Any, plate: str) -> None:
    raise DataError(
        f"observed site '{site.name}' is missing in part at {plate} '{label}'{_place(where[1:])}, but its event "
        f"of shape {site.model_shape[len(site.model_shape) - site.event_dim :]} has one joint "
        f"density; make all of that event "
        "missing (NaN), drop it, or write the site with independent elements (.to_event)"
    )


def _place(where: Sequence[int]) -> str:
    return f", element {', '.join(str(i) for i in where)}" if len(where) else ""
