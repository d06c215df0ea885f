"""Which units are in which step? Epochs shuffled on the host; indices into resident data, or the rows themselves.

Some units may be visited more often than others. A step then takes unit i with probability π_i, at most once, where
the π_i add up to B, and counts it B / (N π_i) times, so that the sum over a step, times N / B, is that over all units
in the mean (Horvitz and Thompson 1952): the objective stays what it is, and with it q of the globals. Which units,
systematic sampling says (Madow 1949): these lie at u, u + 1, ..., u + B - 1 along the cumulated π of shuffled units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import FitError
from .._types import Batch, PyTree
from ..objectives.base import AbstractObjective, batch_size

BLOCK = 100  # steps per visit to the host
BLOCK_BYTES = 256 << 20  # rows of larger data that are sent for one block
ALL_UP_TO, ELSE = 512, 256  # units per step by default
LONGEST_EPOCH = 100  # times N / B, in steps
SURE = 1 - 1e-9  # a unit's largest probability; with 1 rounding could take one twice


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Host arrays of the units to train on, what each is called, and those held out, if any.

    `frequency` says how often each unit is to be visited, in any unit of measure; None: all alike.
    """

    units: Batch
    labels: Sequence[Any]
    held_out: Batch | None = None
    frequency: np.ndarray | None = None

    @property
    def num_units(self) -> int:
        """Units to train on."""
        return batch_size(self.units)

    def weighed(self, batch: int) -> TrainingData:
        """The same with weights of units that steps of `batch` units visit by `frequency`, if there is one."""
        if self.frequency is None:
            return self
        weight = batch / self.num_units / inclusion(self.frequency, batch)
        return dataclasses.replace(self, units=dataclasses.replace(self.units, weight=weight.astype(np.float32)))


def inclusion(frequency: np.ndarray, batch: int) -> np.ndarray:
    """The probability that a step has a unit: as `frequency`, at most `SURE`, with sum `batch`; fewer than units."""
    full = np.zeros(len(frequency), bool)
    while True:
        found = np.where(full, SURE, (batch - SURE * full.sum()) * frequency / frequency[~full].sum())
        over = ~full & (found > SURE)
        if not over.any():
            return found
        full |= over


def units_per_step(objective: AbstractObjective, asked: int | None, data: TrainingData) -> int:
    """How many units every step takes; never all where some are to be visited more often."""
    size = data.num_units
    if data.frequency is not None:
        batch = asked or min(ELSE, size // 2)
        if objective.needs_all_units or not 0 < batch < size:
            raise FitError(
                f"run.focus: every step takes all {size} units, and none can be visited more often; give "
                f"batch_size={max(size // 2, 1)}, say, without weigh_shared, or leave focus out"
            )
        return batch
    if not objective.needs_all_units:
        return min(asked or (size if size <= ALL_UP_TO else ELSE), size)
    if (asked or size) < size:
        raise FitError(
            f"weigh_shared=True weighs draws of the globals by all {size} units, and batch_size={asked} shows it "
            "fewer; leave batch_size out, or weigh_shared"
        )
    if data.held_out is not None:
        raise FitError("weigh_shared=True has no bound of held-out units alone; leave run.validation out")
    return size


def sources(
    data: Batch,
    batch: int,
    resident: bool,
    generator: np.random.Generator,
    frequency: np.ndarray | None = None,
) -> Iterator[PyTree]:
    """What every block reads: indices into resident data, or the rows themselves; epochs shuffled on the host."""
    size = batch_size(data)
    if batch == size and resident:
        while True:
            yield jnp.zeros((BLOCK, 0), jnp.int32)
    unit_bytes = sum(x.nbytes for x in jax.tree.leaves(data)) // size
    steps = BLOCK if resident else int(np.clip(BLOCK_BYTES // max(batch * unit_bytes, 1), 1, BLOCK))
    gather: Callable = (lambda rows: jnp.asarray(rows, jnp.int32)) if resident else _gather(data)
    if frequency is not None:
        visits = _visits(inclusion(frequency, batch), batch, generator)
        while True:
            yield gather(np.stack([next(visits) for _ in range(steps)]))
    order, need = np.empty(0, np.int64), steps * batch
    epoch = size if data.rows is None else size - size % batch  # a row of a unit's own may be in a step only once
    while True:
        parts = [order]
        while sum(map(len, parts)) < need:
            parts.append(generator.permutation(size)[:epoch])
        order = np.concatenate(parts)
        rows, order = order[:need], order[need:]
        yield gather(rows.reshape(steps, batch))


def _visits(probability: np.ndarray, batch: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Units of one step after the other, taken with these probabilities.

    They are shuffled anew when the rarest have been visited once. By then all have as many visits as they should, but
    for a part of one, which is less noise than if each step were drawn by itself.
    """
    size = len(probability)
    epoch = min(round(1 / probability.min()), LONGEST_EPOCH * -(-size // batch))
    while True:
        order = generator.permutation(size)
        ends = np.cumsum(probability[order])
        ends *= batch / ends[-1]
        for start in (generator.permutation(epoch) + generator.random(epoch)) / epoch:
            yield order[np.searchsorted(ends, min(start, SURE) + np.arange(batch), side="right")]


def _gather(data: Batch) -> Callable[[np.ndarray], Batch]:
    return lambda rows: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), data)
