"""What stands where nothing was measured: a real value, so that no density or gradient meets an impossible one.

Padding repeats the last real row of its unit. A missing cell takes the nearest real value before it on axis 1 of its
unit, else the nearest after it, else another value of the unit, else the first real row of the argument. Zero would do
for the value of a masked density but not for its gradient (`Poisson(0 * exp(b)).mask(False)` has gradient NaN).
"""

from __future__ import annotations

import math

import numpy as np

from .._errors import DataError

_WASTE_CELLS = 2**28  # padding is questioned only above this many cells,
_WASTE_RATIO = 20  # and only where it holds so many times the cells that were given


def fill(values: np.ndarray, mask: np.ndarray, settled: np.ndarray | None = None) -> np.ndarray:
    """`values` with a real value wherever `mask` is False; what stood there has no influence.

    **Arguments:**

    - `values`: shape (units, ...).
    - `mask`: bool of the same shape, True = real.
    - `settled`: bool (units,), units whose missing places already hold what they should.

    Where there is no real value at all, zeros.
    """
    if mask.all():
        return values
    if not mask.any():
        return np.zeros_like(values)
    num_units = len(values)
    length = values.shape[1] if values.ndim > 1 else 1
    filled = values.reshape(num_units, length, -1).copy()
    real = mask.reshape(filled.shape)
    hollow = np.flatnonzero(~(real.all(axis=(1, 2)) if settled is None else settled))
    if not len(hollow):
        return values
    part, known = _nearest(filled[hollow], real[hollow])
    if part.shape[2] > 1 and not known.all():
        flat, known = _nearest(part.reshape(len(part), -1, 1), known.reshape(len(part), -1, 1))
        part = flat.reshape(part.shape)
    filled[hollow] = part
    empty = hollow[~known.any(axis=(1, 2))]
    first_unit, first_row, _ = np.unravel_index(np.argmax(real), real.shape)
    filled[empty] = filled[first_unit, first_row]
    return filled.reshape(values.shape)


def _nearest(values: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest real value along axis 1, the one before first; the second answer says where there was one."""
    length = values.shape[1]
    place = np.arange(length, dtype=np.int32)[None, :, None]
    before = np.maximum.accumulate(np.where(real, place, -1), axis=1)
    after = np.minimum.accumulate(np.where(real, place, length)[:, ::-1], axis=1)[:, ::-1]
    source = np.where(before >= 0, before, after)
    found = np.take_along_axis(values, np.minimum(source, length - 1), axis=1)
    return found, source < length


def pad(rows: np.ndarray, mask: np.ndarray, lengths: np.ndarray, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all units, one unit after the other, as (units, longest, ...) with the mask of the real places.

    **Arguments:**

    - `rows`, `mask`: shape (sum of lengths, ...).
    - `lengths`: (units,) rows of each unit; zero is allowed.
    - `who`: how an error names the argument.

    There is one place at least; where nothing is real, zeros.

    **Errors:** `DataError` where one long unit would make the padding far larger than the data.
    """
    shape = (len(lengths), max(int(lengths.max()), 1), *rows.shape[1:])
    _refuse_waste(shape, rows, lengths, who)
    if not mask.any():
        return np.zeros(shape, rows.dtype), np.zeros(shape, bool)
    place, last = np.arange(shape[1]), lengths[:, None] - 1
    source = (
        np.cumsum(lengths)[:, None] - lengths[:, None] + np.minimum(place, last)
    )  # past the end: the last row again
    padded = rows[np.clip(source, 0, len(rows) - 1)]
    padded_mask = np.zeros(shape, bool)
    padded_mask[place <= last] = mask
    settled = lengths > 0
    if not mask.all():
        unit_of_row = np.repeat(np.arange(len(lengths)), lengths)
        settled[unit_of_row[~mask.reshape(len(mask), -1).all(axis=1)]] = False
    return fill(padded, padded_mask, settled), padded_mask


def _refuse_waste(shape: tuple[int, ...], rows: np.ndarray, lengths: np.ndarray, who: str) -> None:
    cells = math.prod(shape)
    if cells > _WASTE_CELLS and cells > _WASTE_RATIO * rows.size:
        raise DataError(
            f"{who}: unit number {int(lengths.argmax())} has {shape[1]} rows, the median {int(np.median(lengths))}; "
            f"padding all {len(lengths)} units to that length takes {cells} cells for {rows.size} values; "
            "split that unit, or thin it"
        )
