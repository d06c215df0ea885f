"""Units from arrays: a dict of arrays or of lists of unequal length, an xarray Dataset, a list of data sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._errors import DataError
from . import cells
from .missing import fill, pad
from .units import Units, read_labels


class _Argument(NamedTuple):
    values: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray | None
    axis: int


def units(data: Any, *, axes: Mapping[str, int] | None = None, labels: Any = None, name: str = "unit") -> Units:
    """`Units` from the data of a model, one entry per argument.

    **Arguments:**

    - `data`: argument -> array with units on axis 0 (NumPy, JAX, `numpy.ma`, pandas, polars, Arrow), or -> list of one
      array per unit, whose axis 0 may differ in length (ragged), or of one list of arrays per unit (its classes, each
      with its pupils), which may differ in length too. NaN, None, masked, NA and null are missing.
      Or an `xarray.Dataset` with the dimension `name`; or a list of dicts, each a whole data set; or a `Units`.
    - `axes`: argument -> its unit axis in the model's layout, where that isn't 0. Arrays have it there and are moved;
      lists and Datasets are already by unit, for them it is only remembered.
    - `labels`: one per unit, all different; 0, 1, ... by default.
    - `name`: what a unit is called.

    **Errors:** `DataError` naming the argument, the unit and the position.

    **Example:**

    ```python
    >>> units({"x": [[1.0, None], [3.0]], "n": [4, 5]}, name="school")
    Units(2 x school; x: float32[2, 2] ragged, n: int32[2])

    ```
    """
    if isinstance(data, Units):
        return data
    is_dataset = hasattr(data, "data_vars") and hasattr(data, "dims")
    by_unit = is_dataset or isinstance(data, list | tuple)
    if is_dataset:
        data, labels = _from_dataset(data, name, labels)
    elif isinstance(data, list | tuple):
        data = _from_data_sets(data)
    given = _check_names(data, dict(axes or {}))
    known = None if labels is None else read_labels(labels)
    found = {key: _read(key, raw, given.get(key, 0), known, not is_dataset) for key, raw in data.items()}
    if by_unit and not is_dataset:
        found = {key: _dense(argument) for key, argument in found.items()}
    num_units = _count_units(found)
    return _assemble(found, np.arange(num_units) if known is None else read_labels(known, num_units), name)


def _assemble(found: Mapping[str, _Argument], labels: np.ndarray, name: str) -> Units:
    arrays, masks, lengths = {}, {}, {}
    for key, argument in found.items():
        who = f"data[{key!r}]"
        if argument.lengths is not None:
            arrays[key], masks[key] = pad(argument.values, argument.mask, argument.lengths, who)
            lengths[key] = argument.lengths
            continue
        arrays[key] = fill(argument.values, argument.mask)
        if not argument.mask.all():
            masks[key] = argument.mask
    return Units(arrays, masks, lengths, labels, name, {key: item.axis for key, item in found.items() if item.axis})


def _check_names(data: Any, axes: dict[str, int]) -> dict[str, int]:
    if not isinstance(data, Mapping):
        raise DataError(
            f"data: expected a dict of argument name -> array, an xarray.Dataset or Units, got {type(data).__name__}; "
            "read a table with from_table"
        )
    if not data:
        raise DataError("data: expected at least one argument, got an empty dict")
    if odd := [key for key in data if not isinstance(key, str)]:
        raise DataError(f"data: expected the names of the model's arguments as keys, got {odd[0]!r}")
    if unknown := sorted(set(axes) - set(data)):
        raise DataError(f"axes: {unknown[0]!r} is not an argument; data has {sorted(data)}")
    return axes


def _count_units(found: Mapping[str, _Argument]) -> int:
    counts = {key: len(item.values) if item.lengths is None else len(item.lengths) for key, item in found.items()}
    (first, num_units), *others = counts.items()
    for key, count in others:
        if count != num_units:
            raise DataError(
                f"data[{first!r}] has {num_units} units but data[{key!r}] has {count}; "
                "give arrays of equal leading size (units on axis 0, or say which axis in axes=)"
            )
    if not num_units:
        raise DataError(f"data[{first!r}] has zero units; expected at least one")
    return num_units


def _from_dataset(dataset: Any, name: str, labels: Any) -> tuple[dict[str, Any], Any]:
    """Variables of an xarray.Dataset, the dimension `name` first, and its coordinate as labels."""
    if name not in dataset.dims:
        raise DataError(f"dataset: no dimension {name!r}, it has {list(map(str, dataset.dims))}; say which with name=")
    arrays = {}
    for key, variable in dataset.data_vars.items():
        if name not in variable.dims:
            raise DataError(
                f"data[{key!r}] has dimensions {variable.dims} without {name!r}; "
                "drop it, or bind it with functools.partial"
            )
        arrays[key] = np.asarray(variable.transpose(name, ...).values)
    if labels is None and name in dataset.coords:
        labels = dataset.coords[name].values
    return arrays, labels


def _from_data_sets(data: Sequence[Any]) -> dict[str, list]:
    """A list of dicts as a dict of lists."""
    if not data or not isinstance(data[0], Mapping):
        kind = type(data[0]).__name__ if data else "nothing"
        raise DataError(f"data: expected a dict of argument name -> array, got a list of {kind}; name the argument")
    for index, item in enumerate(data):
        if not isinstance(item, Mapping) or set(item) != set(data[0]):
            got = sorted(item) if isinstance(item, Mapping) else type(item).__name__
            raise DataError(f"data set {index}: expected the arguments {sorted(data[0])}, as data set 0 has, got {got}")
    return {key: [item[key] for item in data] for key in data[0]}


def _dense(argument: _Argument) -> _Argument:
    """Without lengths where all are equal: whole data sets are ragged only if they differ."""
    lengths = argument.lengths
    if lengths is None or not len(lengths) or (lengths != lengths[0]).any():
        return argument
    shape = (len(lengths), int(lengths[0]), *argument.values.shape[1:])
    return argument._replace(values=argument.values.reshape(shape), mask=argument.mask.reshape(shape), lengths=None)


def _read(key: str, raw: Any, axis: int, labels: np.ndarray | None, move: bool) -> _Argument:
    """One argument with units on axis 0; ragged ones as the rows of all units, one unit after the other."""
    raw = _as_list(raw)
    if isinstance(raw, list) and not all(map(_is_scalar, raw)):
        return _read_ragged(key, raw, axis, labels)
    moved = axis if move and not isinstance(raw, list) else 0

    def place(index: tuple[int, ...]) -> str:
        if not -len(index) <= moved < len(index):
            return f"data[{key!r}]"
        unit_axis = moved % len(index)
        return _place(key, labels, index[unit_axis], index[:unit_axis] + index[unit_axis + 1 :])

    values, mask = cells.read(raw, place)
    if not values.ndim:
        raise DataError(f"data[{key!r}] is a single value; bind constants with functools.partial(model, {key}=...)")
    if not -values.ndim <= axis < values.ndim:
        raise DataError(f"axes[{key!r}] is {axis} but data[{key!r}] has {values.ndim} axes")
    axis, moved = axis % values.ndim, moved % values.ndim
    values, mask = cells.standard(values, mask, place)
    if moved:
        values, mask = (np.ascontiguousarray(np.moveaxis(array, moved, 0)) for array in (values, mask))
    return _Argument(values, mask, None, axis)


def _read_ragged(key: str, raws: list, axis: int, labels: np.ndarray | None) -> _Argument:
    parts, longest = [], _longest_inside(raws)
    for unit, raw in enumerate(raws):
        here = _place(key, labels, unit, ())
        if _is_scalar(raw):
            raise DataError(f"{here}: expected an array, as other units have, got {raw!r}; no rows is an empty list")
        place = functools.partial(_place, key, labels, unit)
        values, mask = cells.read(raw, place) if longest is None else _read_inside(raw, longest, place)
        parts.append((values if mask.any() else np.zeros(values.shape, bool), mask))  # no say in the type
    trailing = next((values.shape[1:] for values, _ in parts if values.size), None)
    if trailing is None:  # of all units nothing, as deep as they are
        deepest = max((values.shape for values, _ in parts), key=len, default=(0,))
        trailing = tuple(max(n, 1) for n in deepest[1:])
    for unit, (values, _) in enumerate(parts):
        if not values.size:
            count = len(values) if values.ndim > 1 else 0  # of elements without any of their own
            parts[unit] = (np.zeros((count, *trailing), bool), np.zeros((count, *trailing), bool))
        elif values.shape[1:] != trailing:
            here = _place(key, labels, unit, ())
            raise DataError(f"{here}: expected shape (any, *{trailing}), got {values.shape}; only axis 0 may differ")
    lengths = np.array([len(values) for values, _ in parts])
    starts = np.cumsum(lengths) - lengths

    def place(index: tuple[int, ...]) -> str:
        unit = int(np.searchsorted(starts + lengths, index[0], side="right"))
        return _place(key, labels, unit, (index[0] - int(starts[unit]), *index[1:]))

    rows = np.concatenate([values for values, _ in parts])
    rows, real = cells.standard(rows, np.concatenate([mask for _, mask in parts]), place)
    ndim = rows.ndim + 1
    if not -ndim <= axis < ndim:
        raise DataError(f"axes[{key!r}] is {axis} but data[{key!r}] has {ndim} axes")
    return _Argument(rows, real, lengths, axis % ndim)


def _longest_inside(raws: list) -> int | None:
    """The longest element of any unit, where units are lists of arrays that differ in length; else None."""
    if not all(isinstance(raw, list | tuple) and not any(map(_is_scalar, raw)) for raw in raws):
        return None
    lengths = {len(item) for raw in raws for item in raw}
    return max(lengths) if len(lengths) > 1 else None


def _read_inside(raw: Sequence[Any], longest: int, place: Callable) -> tuple[np.ndarray, np.ndarray]:
    """The elements of one unit, each padded to `longest` with missing places."""
    parts = [cells.read(item, functools.partial(_inside, place, number)) for number, item in enumerate(raw)]
    trailing = next((value.shape[1:] for value, _ in parts if value.size), ())
    values, masks = [], []
    for number, (value, mask) in enumerate(parts):
        if value.size and value.shape[1:] != trailing:
            raise DataError(
                f"{place((number,))}: expected shape (any, *{trailing}), got {value.shape}; only axis 0 may differ"
            )
        for found, array in ((values, value), (masks, mask)):
            own = array if array.size else np.zeros((0, *trailing), bool)
            found.append(np.pad(own, [(0, longest - len(own)), *[(0, 0)] * len(trailing)]))
    none = np.zeros((0, longest), bool)
    return (np.stack(values), np.stack(masks)) if parts else (none, none)


def _inside(place: Callable, number: int, index: tuple[int, ...]) -> str:
    return place((number, *index))


def _as_list(raw: Any) -> Any:
    """Lists, tuples, and columns whose elements are lists, as a list; anything else as it is."""
    if isinstance(raw, list | tuple):
        return list(raw)
    kind = str(getattr(raw, "type", None) or getattr(raw, "dtype", "")).lower()
    is_flat_objects = kind == "object" and getattr(raw, "ndim", 1) == 1
    if is_flat_objects or kind.startswith(("list", "large_list", "fixed_size_list")):
        convert = next(name for name in ("to_pylist", "to_list", "tolist") if hasattr(raw, name))
        items = getattr(raw, convert)()
        if any(isinstance(item, list | tuple | np.ndarray) for item in items):
            return items
    return raw


def _is_scalar(item: Any) -> bool:
    return isinstance(item, str | bytes) or getattr(item, "ndim", 1) == 0 or not hasattr(item, "__len__")


def _place(key: str, labels: np.ndarray | None, unit: int, index: tuple[int, ...]) -> str:
    called = unit if labels is None or unit >= len(labels) else repr(labels[unit].item())
    return f"data[{key!r}], unit {called}" + (f", position {list(index)}" if index else "")
