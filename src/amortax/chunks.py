"""How are any number of units answered in bounded memory? In chunks of a few bucketed sizes, so that little compiles.

Unit i draws with `fold_in(key, i)` and draw s of it with `fold_in(., s)`: neither the chunk nor the number of draws
changes a draw. Globals have a key of their own, shared by all chunks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._types import Batch
from .data import Units
from .intake import drop_full_masks, to_batch
from .joint.levels import levels_of
from .joint.structure import Structure

UNIT_BUCKETS = (1, 4, 16, 64, 256)
BYTES = 256 << 20  # that the arrays of one chunk may take, by estimate
TEMPORARIES = 8  # arrays of the size of the data that one evaluation of the model holds, by estimate


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some units, padded to a bucket: rows `start` to `stop` of the request are its first `stop - start` units."""

    batch: Batch
    index: Array
    start: int
    stop: int


def bucketed_lengths(data: Units) -> dict[str, int]:
    """The padded length of every ragged argument, rounded up to a power of two."""
    return {name: _power_of_two(int(n.max(initial=1))) for name, n in data.lengths.items()}


def chunks(data: Units, structure: Structure, draws: int, lengths: dict[str, int] | None = None) -> Iterator[Chunk]:
    """Cuts checked units into chunks for `draws` draws of each, padded to `lengths` (None: to the data's own)."""
    lengths = bucketed_lengths(data) if lengths is None else lengths
    data = _trimmed(data, lengths)
    most = _units_per_chunk(data, structure, draws)
    for start in range(0, len(data), most):
        stop = min(start + most, len(data))
        size = next(bucket for bucket in UNIT_BUCKETS if bucket >= min(most, len(data)))
        part = data.take(slice(start, stop)).padded(size, lengths)
        batch = drop_full_masks(jax.tree.map(jnp.asarray, to_batch(part)), structure)
        yield Chunk(batch, jnp.minimum(start + jnp.arange(size), len(data) - 1), start, stop)


def bucketed(data: Units) -> Units:
    """All units padded as `chunks` does, so that they have the same number of locals."""
    lengths = bucketed_lengths(data)
    return _trimmed(data, lengths).padded(len(data), lengths)


def evenly(size: int, most: int) -> np.ndarray:
    """At most so many of `size` places, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))


def draws_per_call(data: Units, structure: Structure, draws: int) -> int:
    """Draws of one unit that fit the memory bound together."""
    return max(1, min(draws, BYTES // bytes_per_draw(data, structure)))


def _units_per_chunk(data: Units, structure: Structure, draws: int) -> int:
    together = draws_per_call(data, structure, draws)
    room = BYTES // (bytes_per_draw(data, structure) * together)
    fitting = [bucket for bucket in UNIT_BUCKETS if bucket <= max(room, 1)]
    return fitting[-1]


def bytes_per_draw(data: Units, structure: Structure) -> int:
    """What one draw of one unit takes, by estimate."""
    numbers = sum(math.prod(x.shape[1:]) for x in data.arrays.values()) + structure.size("local") ** 2
    assignments = math.prod(level.size for level in levels_of(structure, structure.drawn))
    return 4 * TEMPORARIES * max(numbers, 8) * assignments


def _trimmed(data: Units, lengths: dict[str, int]) -> Units:
    """Without padding beyond the bucketed lengths (a `take` may leave it)."""
    arrays = {n: x[:, : lengths[n]] if n in lengths else x for n, x in data.arrays.items()}
    masks = {n: x[:, : lengths[n]] if n in lengths else x for n, x in data.masks.items()}
    return dataclasses.replace(data, arrays=arrays, masks=masks)


def _power_of_two(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


def row_mask(lengths: np.ndarray, size: int) -> np.ndarray:
    """(N, size) bool: True where an element is the unit's own."""
    return np.arange(size) < lengths[:, None]
