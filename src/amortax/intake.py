"""Does this data fit this model? Whatever the user gives becomes `Units`, and units become checked batches.

Everything here runs on the host, before compiled code, so that errors can name unit, argument and value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from ._errors import DataError, ModelError
from ._types import Batch
from .data.arrays import units
from .data.units import Units
from .joint.joint import Joint
from .joint.observe import observe
from .joint.structure import Argument, Structure
from .joint.values import check_values
from .joint.whole import Whole


def as_units(data: Any, model: Callable, plate: str, axes: Mapping[str, int] | None = None) -> Units:
    """`Units` from whatever the user gave; the unit axis of plain arrays is read from the plates, or is `axes`'.

    **Raises** `DataError` where nothing of an argument is known: there is nothing to learn from it.
    """
    if isinstance(model, Whole):  # whose arrays of one data set have no axis of units
        found = dataclasses.replace(units(data, axes=axes, name=plate), axes={})
    elif isinstance(data, Units):
        found = data
    else:
        if isinstance(data, Mapping) and axes is None and all(hasattr(x, "shape") for x in data.values()):
            axes = _read_axes(data, model, plate)
        found = units(data, axes=axes, name=plate)
    for name, mask in found.masks.items():
        if not mask.any():
            raise DataError(
                f"data['{name}']: all {mask.size} values are missing, expected at least one real value; give one, or "
                "leave the argument out"
            )
    return found


def _read_axes(data: Mapping[str, Any], model: Callable, plate: str) -> dict[str, int]:
    """Where the unit axis is not the first: the axis of the plate's size, in an abstract run on the arrays as given."""
    arrays = {name: np.asarray(x) for name, x in data.items()}
    if any(x.ndim == 0 or x.dtype.kind not in "biuf" for x in arrays.values()):
        return {}
    specs = {n: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for n, x in arrays.items()}
    try:
        seen = observe(model, specs)
    except (ModelError, TypeError):
        return {}  # said better once the structure is read
    size = seen[plate].sizes[0] if plate in seen and seen[plate].sizes else None
    axes = {}
    for site in seen.values():
        dim = next((dim for name, dim, _ in site.plates if name == plate), None)
        if site.argument is not None and dim is not None:
            axes[site.argument] = site.argument_axis(dim)
    elsewhere = any(axes.values())
    for name, array in arrays.items():
        fitting = [axis for axis, n in enumerate(array.shape) if n == size]
        if name in axes or not fitting or (fitting[0] == 0 and not (elsewhere and len(fitting) > 1)):
            continue
        if len(fitting) > 1:
            if _fits_first_axis(model, specs, plate):
                return {}
            raise DataError(
                f"data['{name}'] has {len(fitting)} axes of the size of plate '{plate}' ({size}); say which holds the "
                f"units: amortax.units(data, axes={{'{name}': {fitting[-1]}, ...}}), of every argument"
            )
        axes[name] = fitting[0]
    return {name: axis for name, axis in axes.items() if axis != 0}


def _fits_first_axis(model: Callable, specs: Mapping[str, jax.ShapeDtypeStruct], plate: str) -> bool:
    """Whether the plate follows the first axis of the arrays."""
    one = {name: jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for name, spec in specs.items()}
    try:
        return observe(model, one)[plate].sizes[0] == 1
    except ModelError:
        return False


def to_batch(data: Units) -> Batch:
    """All units as one host batch."""
    lengths = {name: np.asarray(n, np.int32) for name, n in data.lengths.items()}
    return Batch(data.arrays, data.masks, lengths, data.rows)  # type: ignore[arg-type]


def conform(data: Any, joint: Joint, stand_ins: Collection[str] = ()) -> Units:
    """New data for a trained posterior: `Units` with the arguments, shapes, masks and values it was trained for.

    Observed arguments that may be missing may be left out: they are missing everywhere, and the answer is the prior's.

    **Arguments**: `stand_ins` names arguments whose values are placeholders, which need not be possible.

    **Raises** `DataError` naming argument, expected and got.
    """
    structure = joint.structure
    given = data if isinstance(data, Mapping) else {a.name for a in structure.arguments}
    axes = {a.name: a.axis for a in structure.arguments if a.axis and a.name in given}
    found = data if isinstance(data, Units) else units(data, axes=axes or None, name=structure.plate)
    found = _with_unknown(found, structure)
    names = {a.name for a in structure.arguments}
    if set(found.arrays) != names:
        missing, extra = sorted(names - set(found.arrays)), sorted(set(found.arrays) - names)
        raise DataError(
            f"new data for model '{structure.model}' has {'no ' + str(missing) if missing else ''}"
            f"{' and ' if missing and extra else ''}{'unknown ' + str(extra) if extra else ''}; "
            f"expected exactly {sorted(names)}{_why_needed(structure, missing)}"
        )
    found = _possible_where_nothing_is_real(_in_stored_types(found, structure), structure)
    batch = to_batch(found)
    masks: dict[str, Any] = dict(batch.masks)
    for argument in structure.arguments:
        _check_argument(argument, batch, structure.plate, found.labels)
        if argument.masked and argument.name not in masks:
            masks[argument.name] = np.ones(batch.arrays[argument.name].shape, bool)
    lengths = dict(found.lengths)
    for argument in structure.arguments:
        if argument.ragged and argument.name not in lengths:
            array = found.arrays[argument.name]
            lengths[argument.name] = np.full(len(found), array.shape[1], np.int32)
    _check_lengths(structure, lengths, found.labels)
    _check_sizes(structure, found)
    complete = dataclasses.replace(found, masks=masks, lengths=lengths)
    check_values(joint, to_batch(complete), complete.labels.tolist(), stand_ins)
    return complete


def _why_needed(structure: Structure, missing: Collection[str]) -> str:
    """For the first missing argument that is observed: posteriors can do without many of those."""
    observed = [a for a in structure.arguments if a.name in missing and a.role == "observed"]
    if needed := [a for a in observed if a.needed]:
        return f"; of '{needed[0].name}' nothing may be missing: {needed[0].needed}"
    if never := [a.name for a in observed if not a.masked]:
        return (
            f"; '{never[0]}' can't be left out, since nothing of it was missing in training and the encoder can't read "
            "units without it: train on data that has missing values (NaN) too"
        )
    return ""


def _with_unknown(data: Units, structure: Structure) -> Units:
    """The units with what was observed in training, and nobody gave, as all missing, where it may be."""
    arrays, masks, lengths = dict(data.arrays), dict(data.masks), dict(data.lengths)
    for argument in structure.arguments:
        name, label = argument.name, argument.name in structure.labels
        beside = [a.name for a in structure.arguments if a.ragged and a.plate == argument.plate and a.name in arrays]
        may_be = label or (argument.role == "observed" and argument.masked and not argument.needed)
        if name in arrays or not may_be or (argument.ragged and not beside):
            continue
        sizes = dict(zip(argument.dims, argument.shape, strict=False))
        if argument.ragged:
            lengths[name] = lengths.get(beside[0], np.full(len(data), arrays[beside[0]].shape[1], np.int32))
            others = structure.argument(beside[0]).dims
            sizes |= {p: n for p, n in zip(others, arrays[beside[0]].shape[1:], strict=False) if p}
        shape = [len(data)]
        for dim, n in zip(argument.dims or (None,) * len(argument.shape), argument.shape, strict=True):
            size = sizes.get(dim) if n is None else n
            shape.append(arrays[beside[0]].shape[1] if size is None else size)
        arrays[name], masks[name] = np.zeros(shape, argument.dtype), np.zeros(shape, bool)
    return dataclasses.replace(data, arrays=arrays, masks=masks, lengths=lengths)


def _possible_where_nothing_is_real(data: Units, structure: Structure) -> Units:
    """Something possible in the place of arguments of which nothing is real: no density or slope meets another."""
    arrays = dict(data.arrays)
    supports = {site.argument: site.support.lower() for site in structure.of("observed")}
    for argument in structure.arguments:
        name = argument.name
        if name not in data.masks or np.any(data.masks[name]):
            continue
        whole = any(word in supports.get(name, "") for word in ("int", "bool", "multinomial"))
        value = argument.first_category if argument.categories else 0 if whole else 0.5
        if name in structure.labels:
            value = structure.labels[name].choices[0]
        arrays[name] = np.full(arrays[name].shape, value, argument.dtype)
    return dataclasses.replace(data, arrays=arrays)


def _in_stored_types(data: Units, structure: Structure) -> Units:
    """Numbers in the types of training where they mean the same: whole floats as integers, integers as floats."""
    arrays = dict(data.arrays)
    for argument in structure.arguments:
        array, wanted = arrays[argument.name], np.dtype(argument.dtype)
        if array.dtype.kind == "f" and wanted.kind in "iu":
            wrong = (array != np.round(array)) & np.asarray(data.masks.get(argument.name, True))
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise DataError(
                    f"data['{argument.name}'] is {array[where]} at {structure.plate} '{data.labels[where[0]]}', but "
                    f"the posterior was trained on whole numbers ({wanted}); correct it, or train on floats"
                )
        elif not np.can_cast(array.dtype, wanted, casting="same_kind"):
            raise DataError(
                f"data['{argument.name}'] has type {array.dtype}, but the posterior was trained on {wanted}; "
                "convert it, or train on data of this type"
            )
        arrays[argument.name] = np.asarray(array, wanted)
    return dataclasses.replace(data, arrays=arrays)


def _check_lengths(structure: Structure, lengths: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Ragged arguments along one plate must agree in length in every unit."""
    ragged = [a for a in structure.arguments if a.ragged and a.plate is not None]
    for argument in ragged:
        first = next(a for a in ragged if a.plate == argument.plate)
        differ = np.flatnonzero(np.asarray(lengths[first.name]) != np.asarray(lengths[argument.name]))
        if len(differ):
            unit = differ[0]
            raise DataError(
                f"data['{first.name}'] and data['{argument.name}'] both run along plate '{argument.plate}' but "
                f"differ in length at {structure.plate} '{labels[unit]}': {lengths[first.name][unit]} and "
                f"{lengths[argument.name][unit]}; give both one value per element, NaN where an observed one is missing"
            )


def _check_sizes(structure: Structure, data: Units) -> None:
    """Arguments along one plate whose size the data decide must agree on it."""
    sizes: dict[str, tuple[str, int]] = {}
    for argument in structure.arguments:
        for plate, n in zip(argument.dims, data.arrays[argument.name].shape[1:], strict=False):
            first, size = sizes.setdefault(plate or "", (argument.name, n))
            if plate in structure.loose and n != size:
                raise DataError(
                    f"data['{first}'] has {size} places along plate '{plate}' and data['{argument.name}'] {n}; give "
                    "both one value per element, NaN where an observed one is missing"
                )


def _how_to_fit(argument: Argument, shape: tuple[int, ...]) -> str:
    """What to do with an array of this shape, units first, of which one unit's is another than in training."""
    usual = "give arrays with the unit axis first and the same axes after it"
    if shape == argument.shape:
        return f"it is as long as one unit: give am.units([{{'{argument.name}': ...}}]), or the array with [None]"
    if len(shape) != len(argument.shape) + 1:
        deep = "lists of lists of arrays" if len(argument.shape) > 1 else "lists of arrays"
        if argument.ragged:
            return f"{usual}, or {deep}: one entry for each unit, {len(argument.shape)} axes in each"
        return usual
    got, want = next((n, m) for n, m in zip(shape[1:], argument.shape, strict=True) if m not in (None, n))
    if got > want:
        return f"longer ones need a posterior that was trained on {got}, or on lists of unequal length (ragged)"
    if argument.masked and not argument.needed:
        return f"pad with NaN to {want}: what is missing is left out"
    return (
        f"fewer than {want} need a posterior trained on data with missing values (NaN), or on lists of unequal length"
    )


def _check_argument(argument: Argument, batch: Batch, plate: str, labels: np.ndarray) -> None:
    array = np.asarray(batch.arrays[argument.name])
    shape = array.shape[1:]
    fits = len(shape) == len(argument.shape) and all(
        want is None or want == got for want, got in zip(argument.shape, shape, strict=True)
    )
    if not fits:
        want = tuple("any" if n is None else n for n in argument.shape)
        raise DataError(
            f"data['{argument.name}'] has shape {shape} per {plate}, but the posterior was trained for {want}; "
            + _how_to_fit(argument, array.shape)
        )
    if argument.name in batch.lengths and not argument.ragged:
        raise DataError(
            f"data['{argument.name}'] is ragged, but the posterior was trained on {argument.shape} per {plate}; "
            "give one array of that shape for every unit"
        )
    if argument.name in batch.masks and not argument.masked and not argument.needed:
        where = np.argwhere(~np.asarray(batch.masks[argument.name]))
        if len(where):
            raise DataError(
                f"data['{argument.name}'] is missing at {plate} '{labels[where[0][0]]}', but nothing was missing there "
                "in training, so the encoder can't read it; drop the unit, or plan anew (amortize) with data that has "
                "missing values too, and train on it"
            )


def drop_full_masks(batch: Batch, structure: Structure) -> Batch:
    """Without the masks of arguments for which the guide was built unmasked (they are all True)."""
    masked = {a.name for a in structure.arguments if a.masked}
    return dataclasses.replace(batch, masks={n: m for n, m in batch.masks.items() if n in masked})
