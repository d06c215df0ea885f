"""What a set of units is: named arrays, unit axis first, with masks, lengths and labels.

`Units` is what every verb of amortax takes; `units(...)` in `arrays.py` and `from_table(...)` in `table.py` make one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._errors import DataError
from .schema import TableSchema


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Units:
    """N units: every array has N on axis 0 and a real number in every place.

    **Arguments:**

    - `arrays`: argument -> values; missing and padded places are filled with real values (`missing.py`).
    - `masks`: argument -> bool of the same shape, True = a real value; only for arguments with missing or padded
      places, and for all ragged ones.
    - `lengths`: ragged argument -> (N,) int, how much of axis 1 is the unit's own.
    - `labels`: (N,) what each unit is called.
    - `name`: what a unit is ("county").
    - `axes`: argument -> its unit axis in the model's own layout, where that isn't 0.
    - `categories`: coded argument -> its labels; code k is label k.
    - `schema`: how the table was read, None where there was no table.
    - `rows`: (N,) which row of a trained table is each unit's own, where units have parameters of their own; set by the
      posterior.
    """

    arrays: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    labels: np.ndarray
    name: str = "unit"
    axes: dict[str, int] = dataclasses.field(default_factory=dict)
    categories: dict[str, tuple] = dataclasses.field(default_factory=dict)
    schema: TableSchema | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        parts = []
        for key, array in self.arrays.items():
            notes = [word for word, there in (("ragged", key in self.lengths), ("masked", key in self.masks)) if there]
            parts.append(" ".join([f"{key}: {array.dtype}{list(array.shape)}", *notes[:1]]))
        return f"Units({len(self)} x {self.name}; {', '.join(parts)})"

    def take(self, indices: Any) -> Units:
        """The units at `indices` (integers, a slice, or N booleans), in that order, padded as before.

        **Errors:** `DataError` where an index is out of range or none is left.
        """
        rows = np.arange(len(self))
        try:
            chosen = rows[indices] if isinstance(indices, slice) else rows[np.atleast_1d(np.asarray(indices))]
        except IndexError as error:
            raise DataError(
                f"take: {error}; expected integers from {-len(self)} to {len(self) - 1}, "
                f"a slice, or {len(self)} booleans"
            ) from None
        if chosen.ndim != 1 or not len(chosen):
            raise DataError(f"take: expected at least one of the {len(self)} units, got {indices!r}")
        return self._select(chosen)

    def _select(self, rows: np.ndarray) -> Units:
        def select(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {key: array[rows] for key, array in arrays.items()}

        return dataclasses.replace(
            self,
            arrays=select(self.arrays),
            masks=select(self.masks),
            lengths=select(self.lengths),
            labels=self.labels[rows],
            rows=None if self.rows is None else self.rows[rows],
        )

    def split(self, fraction: float | None = None, *, num: int | None = None, seed: int) -> tuple[Units, Units]:
        """(kept, held out) by whole units drawn at random, each in the order of `self`.

        **Arguments:**

        - `fraction`: share of the units to hold out, 0.1 if neither is given; rounded, at least one unit.
        - `num`: or how many.
        - `seed`: of the NumPy generator that chooses them.

        **Errors:** `DataError` where one side would be empty.
        """
        for what, given, kind in (("fraction", fraction, numbers.Real), ("num", num, numbers.Integral)):
            if not (given is None or isinstance(given, kind)):
                raise DataError(f"split: {what} must be a number, got {given!r}")
        if not isinstance(seed, numbers.Integral) or seed < 0:
            raise DataError(f"split: seed must be a whole number from 0, got {seed!r}")
        if num is None:
            share = 0.1 if fraction is None else fraction
            if not 0 < share < 1:
                raise DataError(
                    f"split: fraction must lie between 0 and 1, got {share}; for a number of units give num="
                )
            num = max(1, round(share * len(self)))
        elif fraction is not None:
            raise DataError(f"split: got both fraction={fraction} and num={num}; give one of them")
        if not 0 < num < len(self):
            raise DataError(f"split: can't hold out {num} of {len(self)} units; expected from 1 to {len(self) - 1}")
        shuffled = np.random.default_rng(seed).permutation(len(self))
        return self._select(np.sort(shuffled[num:])), self._select(np.sort(shuffled[:num]))

    def padded(self, num_units: int, lengths: Mapping[str, int]) -> Units:
        """More units (the last one again) and longer padding (the last row again), so that shapes can be shared.

        **Arguments:**

        - `num_units`: N of the answer; labels and lengths repeat with the last unit.
        - `lengths`: ragged argument -> size of axis 1 in the answer; the mask is False in what is added.

        **Errors:** `DataError` where something would have to shrink, or isn't ragged.
        """
        if num_units < len(self):
            raise DataError(f"padded: num_units is {num_units} but there are {len(self)} units; use take to have fewer")
        arrays, masks = dict(self.arrays), dict(self.masks)
        for key, length in lengths.items():
            if key not in self.lengths:
                raise DataError(f"padded: {key!r} is not a ragged argument; expected some of {sorted(self.lengths)}")
            more = length - arrays[key].shape[1]
            if more < 0:
                raise DataError(f"padded: {key!r} has {arrays[key].shape[1]} places on axis 1, more than {length}")
            arrays[key] = np.concatenate([arrays[key], np.repeat(arrays[key][:, -1:], more, axis=1)], axis=1)
            added = np.zeros((len(self), more, *masks[key].shape[2:]), bool)
            masks[key] = np.concatenate([masks[key], added], axis=1)
        wider = dataclasses.replace(self, arrays=arrays, masks=masks)
        return wider._select(np.minimum(np.arange(num_units), len(self) - 1))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the units are: neither their order nor padding nor what fills a gap counts."""
        digest = hashlib.sha256()
        kinds = {key: (x.dtype.kind, x.shape[1 + (key in self.lengths) :]) for key, x in self.arrays.items()}
        plain = {"name": self.name, "axes": self.axes, "categories": self.categories, "arguments": kinds}
        digest.update(json.dumps(plain, sort_keys=True).encode())
        digest.update(np.sort(self.unit_fingerprints()).tobytes())
        return digest.hexdigest()

    def unit_fingerprints(self) -> np.ndarray:
        """64 bits of every unit's label and real values (N,): by these a unit is known again, wherever it stands."""
        digests = [hashlib.blake2b(str(label).encode(), digest_size=8) for label in self.labels.tolist()]
        for key in sorted(self.arrays):
            values, mask = np.ascontiguousarray(self.arrays[key]), self.masks.get(key)
            lengths = self.lengths.get(key)
            if mask is not None:
                values = np.where(mask, values, values.dtype.type(0))
                mask = np.ascontiguousarray(mask)
            for unit, digest in enumerate(digests):
                own = slice(None) if lengths is None else slice(int(lengths[unit]))
                digest.update(f"/{key}/{'' if lengths is None else lengths[unit]}/".encode())
                digest.update(values[unit][own].tobytes() if values.ndim > 1 else values[unit].tobytes())
                if mask is not None and not (real := mask[unit][own] if mask.ndim > 1 else mask[unit]).all():
                    digest.update(real.tobytes())
        return np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)


def read_labels(labels: Any, num_units: int | None = None) -> np.ndarray:
    """Unit labels as a one-dimensional array of strings, integers, numbers or dates, no two alike.

    **Errors:** `DataError` for another length than `num_units`, duplicates, missing labels, and other objects.
    """
    array = np.asarray(labels)
    if array.dtype.kind in "OT":
        items = array.tolist()
        array = np.asarray(items, dtype=str) if all(isinstance(item, str) for item in items) else np.asarray(items)
    if array.ndim != 1 or (num_units is not None and len(array) != num_units):
        raise DataError(f"labels: expected {num_units} labels, one per unit, got shape {array.shape}")
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    missing = np.zeros(len(array), bool)
    if array.dtype.kind in "fMm":
        missing = np.isnan(array)
    elif array.dtype.kind not in "biU":
        missing = np.array([item is None or type(item).__name__ == "NAType" for item in array.tolist()], bool)
        if not missing.any():
            raise DataError(f"labels: expected strings, numbers or dates, got {array.dtype}")
    if missing.any():
        raise DataError(f"labels: unit {int(np.argmax(missing))} has no label; give every unit one")
    if len(np.unique(array)) < len(array):
        label, count = Counter(array.tolist()).most_common(1)[0]
        raise DataError(f"labels: {label!r} names {count} units; every unit needs a label of its own")
    return array
