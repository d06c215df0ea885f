"""Who drives training? Python between compiled blocks: indices in, bounds out, when to slow down, when to stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from .._errors import FitError
from .._types import Batch, PyTree
from ..guide import Guide
from ..joint.joint import Joint
from ..objectives.base import AbstractObjective
from .groups import by_length
from .progress import Progress
from .record import Record
from .schedule import WINDOW, Schedule, adam, set_step_size
from .step import Setting, State, held_out_elbo, run_block, split_trainable, unit_elbos

BLOCK = 100  # steps per visit to the host
MOST_SKIPPED = 3
MOST_STEPS = 30_000
RESIDENT_BYTES = 4 << 30  # data up to this size stays on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """How to train; everything has a default.

    - `num_steps`: exactly so many; None: until the bound stops rising.
    - `batch_size`: units per step; None: all of them up to 512, else 256.
    - `validation`: held-out units (`Units`) for early stopping; None: chosen by the kind of model.
    - `progress`: a bar on standard error; None: if it is a terminal.
    """

    num_steps: int | None = None
    batch_size: int | None = None
    validation: Any = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise FitError(f"{name} must be a whole number from 1, got {value!r}")


@dataclasses.dataclass
class _Progression:
    """What the loop has seen so far, the best state, and the sum of the states of the last phase."""

    best: PyTree
    best_elbo: float = -np.inf
    settled: PyTree = None
    settled_steps: int = 0
    means: list[float] = dataclasses.field(default_factory=list)
    errors: list[float] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    held_out: list[float] = dataclasses.field(default_factory=list)
    skipped: int = 0
    stopped: str = "converged"

    def note(self, step: int, elbos: np.ndarray) -> None:
        """Adds a block that ended at `step`, by the bounds of its finite steps."""
        self.steps.append(step)
        self.means.append(float(elbos.mean()) if len(elbos) else float("nan"))
        self.errors.append(float(elbos.std() / np.sqrt(len(elbos))) if len(elbos) else float("inf"))

    def record(self, num_units: int, batch_size: int, seconds: float) -> Record:
        """What is stored of the run."""
        return Record(
            num_units=num_units,
            num_steps=self.steps[-1] if self.steps else 0,
            batch_size=batch_size,
            seconds=seconds,
            stopped=self.stopped,
            skipped_steps=self.skipped,
            step=tuple(self.steps),
            elbo_per_unit=tuple(self.means),
            validation_elbo_per_unit=tuple(self.held_out),
        )


def train(
    joint: Joint,
    guide: Guide,
    data: Batch,
    *,
    key: Array,
    objective: AbstractObjective,
    optimizer: optax.GradientTransformation | None,
    run: Run,
    held_out: Batch | None,
    labels: Any,
) -> tuple[Joint, Guide, Record]:
    """Trains (joint, guide) on host `data`; returns the best pair and the record. Ctrl-C returns the best so far."""
    size = len(next(iter(data.arrays.values())))
    batch_size = min(run.batch_size or (size if size <= 512 else 256), size)
    resident = sum(x.nbytes for x in jax.tree.leaves(data)) <= RESIDENT_BYTES
    transformation = optax.with_extra_args_support(optimizer or adam())
    params, rest = split_trainable(joint, guide)
    groups = (by_length(data) if batch_size == size else (data,)) if resident else None
    setting = Setting(rest, objective, transformation, jax.tree.map(jnp.asarray, groups), jnp.asarray(float(size)))
    seed_key, key = jax.random.split(key)
    source = _sources(
        data, size, batch_size, resident, np.random.default_rng(np.asarray(jax.random.bits(seed_key, (4,))))
    )
    state = State(_copy(params), transformation.init(params), key, jnp.zeros((), jnp.int32))
    schedule = Schedule(run.num_steps, MOST_STEPS)
    seen, start = _Progression(best=params), time.perf_counter()
    with Progress(run.num_steps or MOST_STEPS, run.progress) as progress:
        try:
            _loop(setting, state, source, schedule, seen, held_out, progress, data, batch_size, labels)
        except KeyboardInterrupt:
            seen.stopped = "interrupted"
    joint, guide = eqx.combine(_answer(setting, seen, held_out), rest)
    return joint, guide, seen.record(size, batch_size, time.perf_counter() - start)


def _loop(
    setting: Setting,
    state: State,
    source: Iterator[PyTree],
    schedule: Schedule,
    seen: _Progression,
    held_out: Batch | None,
    progress: Progress,
    data: Batch,
    batch_size: int,
    labels: Any,
) -> None:
    step = 0
    while True:
        count = BLOCK if schedule.num_steps is None else min(BLOCK, schedule.num_steps - step)
        rows = next(source)
        state = eqx.tree_at(lambda s: s.optimizer, state, set_step_size(state.optimizer, schedule.factor(step)))
        settling = schedule.settling(step)
        state, result = run_block((setting, rows, jnp.asarray(count)), state)
        elbo, finite = np.asarray(result.elbo_per_unit)[:count], np.asarray(result.finite)[:count]
        step += count
        _count_skipped(setting, state, rows, data, finite, seen, step - count, labels)
        seen.note(step, elbo[finite])
        judged = seen.means[-1]
        if held_out is not None:
            judged = _judge(setting, state.params, held_out)
            seen.held_out.append(judged)
        if np.isfinite(judged) and judged > seen.best_elbo:
            seen.best, seen.best_elbo = _copy(state.params), judged
        if settling:
            total = result.sum_of_params
            seen.settled = total if seen.settled is None else jax.tree.map(jnp.add, seen.settled, total)
            seen.settled_steps += count
        progress.update(step, seen.means[-1], step * batch_size)
        if _overfits(seen.held_out):
            seen.stopped = "validation"
            return
        if schedule.finished(step, seen.means, seen.errors):
            seen.stopped = _why(schedule, step)
            return


def _judge(setting: Setting, params: PyTree, held_out: Batch) -> float:
    return float(held_out_elbo(setting.objective, params, setting.rest, held_out, jax.random.key(7)))


def _answer(setting: Setting, seen: _Progression, held_out: Batch | None) -> PyTree:
    """The average over the last phase, unless that phase was clearly worse than the best block, or its average is."""
    if held_out is not None and seen.held_out and not np.any(np.isfinite(seen.held_out)):
        raise FitError(
            f"the bound of the held-out units was never finite in {seen.steps[-1]} steps and can't choose parameters; "
            "look at those units for extreme values, or give others as run=Run(validation=...)"
        )
    if seen.settled is None:
        return seen.best
    average = jax.tree.map(lambda x: x / seen.settled_steps, seen.settled)
    if held_out is not None:
        return average if _judge(setting, average, held_out) >= seen.best_elbo else seen.best
    late, noise = np.mean(seen.means[-WINDOW:]), np.max(seen.errors[-WINDOW:])
    return average if late >= seen.best_elbo - 5.0 * noise else seen.best


def _why(schedule: Schedule, step: int) -> str:
    if schedule.num_steps is not None:
        return "num_steps"
    return "limit" if step >= schedule.limit else "converged"


def _overfits(held_out: list[float], patience: int = 20) -> bool:
    """No better bound on the held-out units for `patience` blocks."""
    return len(held_out) > patience and max(held_out[-patience:]) <= max(held_out[:-patience])


def _count_skipped(
    setting: Setting,
    state: State,
    rows: PyTree,
    data: Batch,
    finite: np.ndarray,
    seen: _Progression,
    start: int,
    labels: Any,
) -> None:
    bad = np.flatnonzero(~finite)
    seen.skipped += len(bad)
    if seen.skipped <= MOST_SKIPPED:
        return
    raise FitError(
        f"{seen.skipped} training steps gave a bound or gradient that is not finite and were rolled back, first at "
        f"step {start + int(bad[0]) + 1}{_name_units(setting, state, rows, data, int(bad[0]), labels)}; look at those "
        "units, scale extreme covariates, or use narrower priors"
    )


def _name_units(setting: Setting, state: State, rows: PyTree, data: Batch, at: int, labels: Any) -> str:
    """The labels of the units in a bad batch whose own bound is not finite."""
    chosen = jax.tree.map(lambda x: x[at], rows)
    if setting.data is None:
        each = np.asarray(unit_elbos(state.params, setting.rest, chosen, jax.random.key(0)))
        return f", in {np.sum(~np.isfinite(each))} units of the batch"
    index = np.asarray(chosen) if chosen.shape[0] else np.arange(len(labels))
    batch = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), data)
    each = np.asarray(unit_elbos(state.params, setting.rest, batch, jax.random.key(0)))
    wrong = np.flatnonzero(~np.isfinite(each))
    return f", units {[labels[i] for i in index[wrong][:5]]}" if len(wrong) else ""


def _sources(
    data: Batch, size: int, batch_size: int, resident: bool, generator: np.random.Generator
) -> Iterator[PyTree]:
    """What every block reads: indices into resident data, or the rows themselves; epochs shuffled on the host."""
    if batch_size == size and resident:
        while True:
            yield jnp.zeros((BLOCK, 0), jnp.int32)
    order = np.empty(0, np.int64)
    need = BLOCK * batch_size
    gather: Callable = (lambda rows: jnp.asarray(rows, jnp.int32)) if resident else _gather(data)
    while True:
        parts = [order]
        while sum(map(len, parts)) < need:
            parts.append(generator.permutation(size))
        order = np.concatenate(parts)
        rows, order = order[:need], order[need:]
        yield gather(rows.reshape(BLOCK, batch_size))


def _gather(data: Batch) -> Callable[[np.ndarray], Batch]:
    return lambda rows: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), data)


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
