"""Which units are in which step? Epochs shuffled on the host; indices into resident data, or the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import FitError
from .._types import Batch, PyTree
from ..objectives.base import AbstractObjective, batch_size

BLOCK = 100  # steps per visit to the host
BLOCK_BYTES = 256 << 20  # rows of larger data that are sent for one block
ALL_UP_TO, ELSE = 512, 256  # units per step by default


def units_per_step(objective: AbstractObjective, asked: int | None, size: int, *, held_out: bool) -> int:
    """How many of `size` units every step takes."""
    if not objective.needs_all_units:
        return min(asked or (size if size <= ALL_UP_TO else ELSE), size)
    if (asked or size) < size:
        raise FitError(
            f"weigh_shared=True weighs draws of the globals by all {size} units, and batch_size={asked} shows it "
            "fewer; leave batch_size out, or weigh_shared"
        )
    if held_out:
        raise FitError("weigh_shared=True has no bound of held-out units alone; leave run.validation out")
    return size


def sources(data: Batch, batch: int, resident: bool, generator: np.random.Generator) -> Iterator[PyTree]:
    """What every block reads: indices into resident data, or the rows themselves; epochs shuffled on the host."""
    size = batch_size(data)
    if batch == size and resident:
        while True:
            yield jnp.zeros((BLOCK, 0), jnp.int32)
    unit_bytes = sum(x.nbytes for x in jax.tree.leaves(data)) // size
    steps = BLOCK if resident else int(np.clip(BLOCK_BYTES // max(batch * unit_bytes, 1), 1, BLOCK))
    gather: Callable = (lambda rows: jnp.asarray(rows, jnp.int32)) if resident else _gather(data)
    order, need = np.empty(0, np.int64), steps * batch
    epoch = size if data.rows is None else size - size % batch  # a row of a unit's own may be in a step only once
    while True:
        parts = [order]
        while sum(map(len, parts)) < need:
            parts.append(generator.permutation(size)[:epoch])
        order = np.concatenate(parts)
        rows, order = order[:need], order[need:]
        yield gather(rows.reshape(steps, batch))


def _gather(data: Batch) -> Callable[[np.ndarray], Batch]:
    return lambda rows: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), data)
