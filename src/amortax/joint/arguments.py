"""What is each argument of the model? Observed or covariate, along which plate, a category, allowed to be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from .._types import AnyArray, Batch
from .depends import Dependencies
from .masks import own_places
from .observe import Seen
from .structure import Argument, InnerPlate


def ragged_groups(data: Batch) -> tuple[tuple[str, ...], ...]:
    """Ragged arguments of equal lengths, unit by unit, together."""
    groups: dict[bytes, list[str]] = {}
    for name, lengths in data.lengths.items():
        groups.setdefault(np.asarray(lengths).tobytes(), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def argument_of(
    name: str,
    data: Batch,
    axes: Mapping[str, int],
    one: Mapping[str, Seen],
    links: Dependencies,
    inner: tuple[InnerPlate, ...],
    plate: str,
    *,
    label: Label,
) -> Argument:
    """The facts about the argument `name`, from the sites `one` of a single unit and what depends on what."""
    array = data.arrays[name]
    shape: list[int | None] = list(array.shape[1:])
    if name in data.lengths:
        shape[0] = None
    plate_name, plate_axis = _along(name, array, data, one, inner, plate)
    least, count = links.indexed.get(name, (0, None)) if array.dtype.kind in "iu" else (0, None)
    observing = [seen for seen in one.values() if seen.argument == name]
    return Argument(
        name,
        str(jax.dtypes.canonicalize_dtype(array.dtype)),
        tuple(shape),
        axes.get(name, 0),
        "observed" if name in links.observed_arguments else "covariate",
        plate_name,
        plate_axis,
        _dims(name, array, data, one, inner, plate),
        masked=name in data.masks,
        categories=count,
        first_category=least if count else 0,
        positive=any(
            word in s.support.lower() for s in observing for word in ("nonnegative", "positive", "multinomial")
        ),
        needed="" if label.summed else unplanned(name) if label.could_be else _needed(name, array, one, links),
        complete=label.complete,
    )


class Label(NamedTuple):
    """What is done where an argument is missing, if it is observed by a discrete site on which others depend."""

    could_be: bool = False  # summed over: it has finitely many values
    summed: bool = False
    complete: bool = False  # though none of it is missing yet


def label_sites(one: Mapping[str, Seen], links: Dependencies, plate: str) -> dict[str, str]:
    """Observed discrete sites on which other sites depend, by argument: where missing a mask won't do, a sum does."""
    found = {}
    for name in links.lagged:
        sites = [s for s in one.values() if s.argument == name and any(frame == plate for frame, _, _ in s.plates)]
        if len(sites) == 1 and sites[0].discrete and not sites[0].order:
            found[name] = sites[0].name
    return found


def label_of(name: str, data: Batch, choices: object, *, declared: bool) -> Label:
    """Of an argument whose site can have the values `choices`, if these can be listed."""
    if not choices:
        return Label()
    mask = data.masks.get(name)
    gaps = mask is not None and bool((own_places(mask, data.lengths.get(name)) & ~np.asarray(mask)).any())
    return Label(True, gaps or declared, declared and not gaps)


def unplanned(name: str) -> str:
    """Why a label may not be missing that was complete when the model was read."""
    return (
        f"no '{name}' was missing when the model was read; where some may be, plan with "
        f"am.amortize(..., missing=['{name}']), and fit again: those are summed over"
    )


def _along(
    name: str, array: AnyArray, data: Batch, one: Mapping[str, Seen], inner: tuple[InnerPlate, ...], plate: str
) -> tuple[str | None, int]:
    """The inner plate along which an argument's elements lie, and the axis of one unit's array."""
    if name in data.lengths:
        group = next(group for group in ragged_groups(data) if name in group)
        return next((p.name for p in inner if p.argument in group), None), 0
    for seen in one.values():
        if seen.argument == name:
            return _along_site(seen, plate)
    for frame, size in _fixed_sizes(one, inner, plate).items():
        if size in array.shape[1:]:
            return frame, array.shape[1:].index(size)
    return None, 0


def _fixed_sizes(one: Mapping[str, Seen], inner: tuple[InnerPlate, ...], plate: str) -> dict[str, int]:
    """Inner plates by which arrays can be known; a ragged one is as long as its longest unit, which says nothing."""
    others = {plate, *(p.name for p in inner if p.ragged)}
    return {f: size for seen in one.values() for f, _, size in seen.plates if f not in others and size > 1}


def _dims(
    name: str, array: AnyArray, data: Batch, one: Mapping[str, Seen], inner: tuple[InnerPlate, ...], plate: str
) -> tuple[str | None, ...]:
    """The inner plate along every axis of one unit's array: as its site has them, or one like it has, or by size."""
    dims: list[str | None] = [None] * (array.ndim - 1)
    like = [s for s in one.values() if s.argument == name]
    both = [other for other, x in data.arrays.items() if x.shape == array.shape and _alike(other, name, data)]
    like += [s for s in one.values() if s.argument in both]
    if like:
        found = {frame: dim for frame, dim, _ in like[0].plates if dim - like[0].event_dim not in like[0].added}
        for frame, dim in found.items():
            if frame != plate and plate in found:
                dims[like[0].unit_axis(dim, found[plate])] = frame
        return tuple(dims)
    sizes = _fixed_sizes(one, inner, plate)
    for axis, size in enumerate(array.shape[1:]):
        ragged = [p.name for p in inner if axis == 0 and p.argument in data.lengths and _alike(p.argument, name, data)]
        fitting = ragged or [f for f, n in sizes.items() if n == size and f not in dims]
        dims[axis] = fitting[0] if fitting else None
    return tuple(dims)


def _alike(first: str, second: str, data: Batch) -> bool:
    """Whether two arguments are ragged with the same lengths, or neither is ragged."""
    if not (first in data.lengths and second in data.lengths):
        return first not in data.lengths and second not in data.lengths
    return any(first in group and second in group for group in ragged_groups(data))


def _along_site(seen: Seen, plate: str) -> tuple[str | None, int]:
    """The innermost plate of a site inside the amortized one, and its axis in the value of one unit."""
    dims = {name: dim for name, dim, _ in seen.plates if dim - seen.event_dim not in seen.added}
    for frame, dim in reversed(dims.items()):
        if frame != plate and plate in dims:
            return frame, seen.unit_axis(dim, dims[plate])
    return None, 0


def _needed(name: str, array: AnyArray, one: Mapping[str, Seen], links: Dependencies) -> str:
    """Why no value of an argument may be missing, or empty: a mask must be able to follow it to every site."""
    if name not in links.observed_arguments:
        return "it is a covariate, and only observed sites may have missing values"
    if name in links.lagged:
        return (
            f"it also changes the distribution of site '{links.lagged[name]}' (as a mask of your own or a lagged value "
            "does; missing values of observed sites are masked by amortax)"
        )
    for site, arguments in links.derived.items():
        if name not in arguments or one[site].argument is not None:
            continue
        if array.dtype.kind != "f" or not np.issubdtype(one[site].dtype, np.floating):
            return f"site '{site}' observes a function of it in which NaN would not show; observe '{name}' itself"
    return ""
