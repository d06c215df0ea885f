"""What one value is: any array-like as (values, mask), with the number types that JAX computes in.

NaN, `numpy.ma`, None, pandas NA and Arrow null all mean missing, for integers and booleans too. Booleans stay booleans,
integers become int32 (unsigned 8 bit stays), floats float32 (float64 where `jax_enable_x64` is set); what doesn't fit
is an error that names the place, because JAX would wrap, clamp or overflow in silence.
"""

from __future__ import annotations

import decimal
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import DataError

Place = Callable[[tuple[int, ...]], str]  # index into the values -> how an error names that place
MERGED = 1e-3  # of the spread of an argument, by which float32 may round it


def read(raw: Any, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """One array-like as numbers of any width, and the mask of what isn't missing (NaN is left to `standard`).

    **Errors:** `DataError` for what isn't an array of numbers.
    """
    if isinstance(raw, np.ma.MaskedArray):
        return _numbers(np.asarray(raw.data), ~np.ma.getmaskarray(raw), place)
    if is_arrow_column(raw):
        return _read_arrow(raw, place)
    try:
        values = np.asarray(raw)
        if isinstance(raw, list) and values.dtype.kind == "f" and (np.abs(values) >= 2.0**63).any():
            values = np.asarray(raw, dtype=object)  # NumPy makes floats of large integers
    except (ValueError, TypeError) as error:
        uneven = "its lists differ in length or in depth" if "inhomogeneous" in str(error) else error
        raise DataError(f"{place(())}: expected an array of numbers, got {_brief(raw)} ({uneven})") from None
    return _numbers(values, np.ones(values.shape, bool), place)


def is_arrow_column(raw: Any) -> bool:
    """True for one column that Arrow reads with its nulls: of pyarrow, pandas, polars."""
    if hasattr(raw, "columns") or getattr(raw, "ndim", 1) != 1:
        return False
    return any(hasattr(raw, name) for name in ("__arrow_c_array__", "__arrow_c_stream__", "__arrow_array__"))


def arrow_column(raw: Any) -> Any:
    """`raw` as a pyarrow.ChunkedArray without dictionaries or views; NaN in pandas, NumPy and lists is null."""
    import pyarrow as pa

    if isinstance(raw, pa.ChunkedArray):
        column = raw
    elif hasattr(raw, "__arrow_c_stream__"):
        column = pa.chunked_array(raw)
    else:
        if isinstance(raw, np.ma.MaskedArray):
            array = pa.array(np.asarray(raw.data), mask=np.ma.getmaskarray(raw), from_pandas=True)
        else:
            is_foreign = hasattr(raw, "__array__") and not is_arrow_column(raw)
            array = pa.array(np.asarray(raw) if is_foreign else raw, from_pandas=True)
        column = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([_decode(chunk) for chunk in column.chunks], _without_view(column.type.value_type))
    return column.cast(_without_view(column.type))


def _decode(encoded: Any) -> Any:
    """Arrow can't decode a dictionary of string views, so the dictionary changes type first."""
    import pyarrow as pa

    values = encoded.dictionary.cast(_without_view(encoded.dictionary.type))
    return pa.DictionaryArray.from_arrays(encoded.indices, values).dictionary_decode()


def _without_view(arrow_type: Any) -> Any:
    import pyarrow as pa

    return pa.large_string() if pa.types.is_string_view(arrow_type) else arrow_type


def is_text(arrow_type: Any) -> bool:
    """True for the three ways in which Arrow holds strings."""
    import pyarrow as pa

    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type)


def _read_arrow(raw: Any, place: Place) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa

    try:
        column = arrow_column(raw)
    except (pa.ArrowException, OverflowError):  # pandas objects of mixed types
        values = np.asarray(raw, dtype=object)
        return _numbers(values, np.ones(values.shape, bool), place)
    return from_arrow(column, place)


def from_arrow(column: Any, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Values and mask of a pyarrow.ChunkedArray of numbers, as `arrow_column` makes it.

    **Errors:** `DataError` for other types, naming the first real cell.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return np.zeros(len(column), bool), np.zeros(len(column), bool)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    mask = column.is_valid().to_numpy().astype(bool, copy=False)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        first = int(np.argmax(mask))
        value = column[first].as_py() if len(column) else None
        raise DataError(f"{place((first,))}: {_not_a_number(value, str(column.type))}")
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(0).cast(column.type))
    return column.to_numpy(), mask


def _numbers(values: np.ndarray, mask: np.ndarray, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """`values` if their type is one of numbers; objects are looked at one by one."""
    if values.dtype.kind == "O":
        return _objects(values, mask, place)
    if values.dtype.kind == "V" and values.dtype.name.startswith(("bfloat", "float")):
        return values.astype(np.float32), mask
    if values.dtype.kind not in "biuf":
        wrong = mask
        if values.dtype.kind == "U":  # among numbers of a list, a word turns all of them into texts
            words = [not is_number(text) for text in values.flat]
            wrong = mask & np.reshape(words, values.shape) if any(words) else mask
        first = np.unravel_index(int(np.argmax(wrong)), values.shape) if values.size else ()
        index = tuple(int(i) for i in first)
        value = values[index].item() if values.size else None
        raise DataError(f"{place(index)}: {_not_a_number(value, values.dtype.type.__name__)}")
    return values, mask


def is_number(text: str) -> bool:
    """Whether a text can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _objects(values: np.ndarray, mask: np.ndarray, place: Place) -> tuple[np.ndarray, np.ndarray]:
    mask = mask & np.fromiter((not _is_missing(value) for value in values.flat), bool, values.size).reshape(mask.shape)
    found = []
    for index in map(tuple, np.argwhere(mask)):
        value = values[index]
        value = value.item() if getattr(value, "shape", None) == () else value
        if not isinstance(value, numbers.Real | decimal.Decimal):
            raise DataError(f"{place(tuple(map(int, index)))}: {_not_a_number(value, type(value).__name__)}")
        found.append(float(value) if isinstance(value, decimal.Decimal) else value)
    real = np.asarray(found) if found else np.zeros(0, bool)
    if real.dtype.kind not in "biuf" or (real.dtype.kind == "f" and all(isinstance(value, int) for value in found)):
        index = tuple(map(int, np.argwhere(mask)[0]))
        raise DataError(
            f"{place(index)}: expected numbers of at most 64 bits, got {real.dtype} values in this argument"
        )
    plain = np.zeros(values.shape, real.dtype)
    plain[mask] = real
    return plain, mask


def _is_missing(value: Any) -> bool:
    return value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType")


def _not_a_number(value: Any, kind: str) -> str:
    if "complex" in kind:
        return f"expected a real number, got {value!r} ({kind}); give the real and imaginary parts as two arguments"
    return (
        f"expected a number, got {value!r} ({kind}); code labels as integers 0, 1, ... "
        "(from_table does that with categories={column: labels}) and dates as numbers"
    )


def _brief(raw: Any) -> str:
    text = " ".join(repr(raw).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def standard(
    values: np.ndarray, mask: np.ndarray, place: Place, like: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A fresh array of bool, int32, uint8 or the default float, 0 where missing, and the mask without the NaN.

    **Arguments:**

    - `values`, `mask`: as `read` gives them.
    - `place`: how an error names an index.
    - `like`: the type that this argument had when the model was trained, or None.

    **Errors:** `DataError` for infinities, for integers beyond int32, for floats beyond float32, and for values that
    `like` can't hold.
    """
    if values.dtype.kind == "f":
        mask = mask & ~np.isnan(values)
        _refuse(
            mask & np.isinf(values), values, place, "expected a finite number; correct it, or mark it as missing (NaN)"
        )
    if like is not None and mask.any():
        values = _like(values, mask, np.dtype(like), place)
    if values.dtype.kind in "iu":
        wanted = np.dtype(np.uint8 if values.dtype == np.uint8 else np.int32)
        limits = np.iinfo(wanted)
        outside = mask & ((values < limits.min) | (values > limits.max))
        _refuse(
            outside, values, place, f"expected an integer from {limits.min} to {limits.max}; recode it, or give floats"
        )
    else:
        wanted = np.dtype(bool) if values.dtype.kind == "b" else default_float()
    with np.errstate(over="ignore"):
        narrow = np.where(mask, values, values.dtype.type(0)).astype(wanted)
    if wanted.kind == "f":
        advice = f"too large for {wanted}; rescale the argument, or set jax_enable_x64"
        _refuse(np.isinf(narrow), values, place, advice)
        _refuse_merged(values, narrow, mask, place)
    return narrow, mask


def _refuse_merged(values: np.ndarray, narrow: np.ndarray, mask: np.ndarray, place: Place) -> None:
    """Numbers that differ by less than their type can tell apart: seconds since 1970, projected coordinates."""
    if values.dtype != np.float64 or narrow.dtype == np.float64 or not mask.any():
        return
    wide, off = np.where(mask, values, values[mask].flat[0]), np.abs(np.where(mask, values - narrow, 0.0))
    advice = (
        f"{narrow.dtype} merges it with others (it is off by {off.max():.3g}, all values span {np.ptp(wide):.3g}); "
        "subtract a constant from the argument, or set jax_enable_x64"
    )
    _refuse((off > MERGED * np.ptp(wide)) & (np.ptp(wide) > 0), values, place, advice)


def _like(values: np.ndarray, mask: np.ndarray, wanted: np.dtype, place: Place) -> np.ndarray:
    """Values of another type that mean the same: whole floats as integers, integers as floats or as uint8."""
    if (values.dtype.kind == "b") != (wanted.kind == "b"):
        advice = f"expected {wanted.name}, as in the table this one must be like; convert the column"
        _refuse(mask, values, place, advice)
    if wanted.kind in "iu" and values.dtype.kind == "f":
        advice = "expected an integer, as in the table this one must be like; correct it, or train on floats"
        _refuse(mask & (values != np.round(values)), values, place, advice)
    if wanted == np.uint8:
        _refuse(mask & ((values < 0) | (values > 255)), values, place, "expected an integer from 0 to 255")
        return np.where(mask, values, 0).astype(np.uint8)
    if wanted.kind in "iu":
        return values if values.dtype.kind in "iu" and values.dtype != np.uint8 else _whole(values, mask, place)
    return values.astype(np.float64) if wanted.kind == "f" and values.dtype.kind in "iu" else values


def _whole(values: np.ndarray, mask: np.ndarray, place: Place) -> np.ndarray:
    _refuse(mask & (np.abs(values.astype(np.float64)) > 2.0**62), values, place, "too large for an integer")
    return np.where(mask, values, 0).astype(np.int64)


def _refuse(wrong: np.ndarray, values: np.ndarray, place: Place, advice: str) -> None:
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise DataError(f"{place(index)}: got {values[index].item()!r}; {advice}")


def default_float() -> np.dtype:
    """float32, or float64 where `jax_enable_x64` is set."""
    import jax

    return np.dtype(np.float64 if jax.config.read("jax_enable_x64") else np.float32)
