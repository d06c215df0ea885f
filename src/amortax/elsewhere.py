"""Where is it predicted? At other covariates of the same units, checked to be theirs one to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._errors import DataError
from .chunks import row_mask
from .data import Units
from .data.arrays import units
from .intake import conform
from .joint.joint import Joint


def place_of(at: Any, data: Units, joint: Joint) -> Units:
    """`at` as checked units that stand for those of `data`, one to one."""
    found, drawn = complete_responses(at, data, joint)
    place = conform(found, joint, stand_ins=drawn)
    if len(place) != len(data):
        raise DataError(f"at has {len(place)} units but data has {len(data)}; give the same units in the same order")
    unnamed = place.labels.tolist() == list(range(len(place)))
    if not unnamed and (differ := np.flatnonzero(place.labels != data.labels)).size:
        first = int(differ[0])
        raise DataError(
            f"at has {joint.structure.plate} '{place.labels[first]}' where data has '{data.labels[first]}' "
            f"(unit {first}); give the same units in the same order, or `at` without labels"
        )
    _check_elements(place, data, joint)
    return dataclasses.replace(place, labels=data.labels)


def _check_elements(place: Units, data: Units, joint: Joint) -> None:
    """Elements with latents of their own are predicted elsewhere one to one."""
    if not joint.structure.stretches:
        return
    for name, lengths in data.lengths.items():
        differ = np.flatnonzero(lengths != place.lengths[name])
        if differ.size or place.arrays[name].shape != data.arrays[name].shape:
            unit = int(differ[0]) if differ.size else 0
            raise DataError(
                f"at['{name}'] has {place.lengths[name][unit]} elements at {joint.structure.plate} "
                f"'{data.labels[unit]}' where data has {lengths[unit]} (shapes {place.arrays[name].shape[1:]}, "
                f"{data.arrays[name].shape[1:]}), but elements have latents of their own; give the same elements"
            )


def complete_responses(at: Any, data: Units, joint: Joint) -> tuple[Units, list[str]]:
    """`at` with placeholders for the observed arguments it lacks, which are named: only their shapes count."""
    structure = joint.structure
    axes = {a.name: a.axis for a in structure.arguments if a.axis and isinstance(at, Mapping) and a.name in at}
    place = at if isinstance(at, Units) else units(at, axes=axes or None, name=structure.plate)
    names = [argument.name for argument in structure.arguments]
    if unknown := sorted(set(place.arrays) - set(names)):
        raise DataError(f"at has '{unknown[0]}', which is no argument of model '{structure.model}'; it has {names}")
    arrays, masks, lengths, drawn = dict(place.arrays), dict(place.masks), dict(place.lengths), []
    for argument in structure.arguments:
        name = argument.name
        if name in arrays or argument.role != "observed":
            continue
        if name in structure.labels and not argument.ragged:
            raise DataError(
                f"at lacks '{name}', on which other sites depend; give the values for which to predict, one per unit"
            )
        drawn.append(name)
        fill = data.arrays[name]
        if not argument.ragged:
            arrays[name] = np.repeat(fill[:1], len(place), axis=0)
            continue
        beside = [a.name for a in structure.arguments if a.plate == argument.plate and a.ragged and a.name in arrays]
        if not beside:
            raise DataError(
                f"at needs '{name}' or a covariate along '{argument.plate}' to know how many elements to predict"
            )
        size = arrays[beside[0]].shape[1]
        lengths[name] = lengths.get(beside[0], np.full(len(place), size))
        arrays[name] = np.broadcast_to(fill[:1, :1], (len(place), size, *fill.shape[2:]))
        inside = row_mask(lengths[name], size).reshape(len(place), size, *(1,) * (fill.ndim - 2))
        masks[name] = np.broadcast_to(inside, arrays[name].shape)
    return dataclasses.replace(place, arrays=arrays, masks=masks, lengths=lengths), drawn
