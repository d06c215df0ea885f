"""Who drives training? Python between compiled blocks: indices in, bounds out, when to slow down, when to stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from .._errors import FitError
from .._types import Batch, PyTree, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..objectives.base import AbstractObjective, batch_size
from .faults import at_fault
from .groups import by_length
from .minibatches import TrainingData, sources, units_per_step
from .natural import check_natural
from .progress import Progress
from .record import Record
from .schedule import MOST_SETBACKS, WINDOW, Schedule, adam, diverges, overfits, rises, set_step_size
from .step import BlockResult, Setting, State, held_out_elbo, run_block, split_trainable

MOST_SKIPPED = 3
MOST_STEPS = 30_000
RESIDENT_BYTES = 4 << 30  # data up to this size stays on the device
HELD_OUT_CHUNK = 1024  # held-out units judged together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """How to train; everything has a default.

    - `num_steps`: exactly so many; None: until the bound stops rising.
    - `batch_size`: units per step; None: all of them up to 512 or where the objective needs all, else 256.
    - `validation`: held-out units, whose bound is recorded and, where the model has no global latents, stops the run
      early and chooses the parameters; None: chosen by the kind of model.
    - `progress`: a bar on standard error; None: if it is a terminal.
    - `focus`: the units to visit more often, without changing what is trained on (see `fit`): a report of `check`, so
      that those that FAIL (or that WARN, if none fails) are half of every step, each once at most; or a number above
      0 for each unit, as an array or by label, 1 where a label is left out.
    """

    num_steps: int | None = None
    batch_size: int | None = None
    validation: Any = None
    progress: bool | None = None
    focus: Any = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, FitError))
        if isinstance(self.validation, bool | int | float | str):
            raise FitError(f"am.Run: validation are held-out units, data as fit takes them, got {self.validation!r}")
        if not (self.progress is None or isinstance(self.progress, bool)):
            raise FitError(f"am.Run: progress must be True, False or None, got {self.progress!r}")


@dataclasses.dataclass
class _Progression:
    """What the loop has seen so far, the best state, and the sum of the states of the last phase."""

    best: PyTree
    best_elbo: float = -np.inf
    settled: PyTree = None
    num_settled: int = 0
    settled_blocks: int = 0
    elbos: list[float] = dataclasses.field(default_factory=list)
    means: list[float] = dataclasses.field(default_factory=list)  # of minus the loss, by which training is judged
    errors: list[float] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    held_out: list[float] = dataclasses.field(default_factory=list)
    since: int = 0  # blocks before training last went back
    skipped: int = 0
    skipped_since: int = 0  # training last went back
    stopped: str = "converged"

    def note(self, step: int, gains: np.ndarray) -> None:
        """Adds a block that ended at `step`, by minus the losses of its finite steps."""
        self.steps.append(step)
        self.means.append(_mean(gains))
        self.errors.append(float(gains.std() / np.sqrt(len(gains))) if len(gains) else float("inf"))

    def skip(self, count: int) -> bool:
        """Adds steps that were rolled back; whether there are too many to go on since training last went back."""
        self.skipped, self.skipped_since = self.skipped + count, self.skipped_since + count
        return self.skipped_since > MOST_SKIPPED

    def wait(self, params: PyTree) -> None:
        """The loss still changes by itself: blocks so far can't be compared with those to come."""
        self.best, self.best_elbo, self.since = params, -np.inf, len(self.means)

    def set_back(self) -> None:
        """Training went back to the best parameters: blocks so far don't count for what comes."""
        self.settled, self.num_settled, self.settled_blocks, self.since = None, 0, 0, len(self.means)
        self.skipped_since = 0

    def settle(self, result: BlockResult) -> None:
        """Adds a block of the last phase to the average, which starts anew where the bound still rises clearly."""
        if len(self.means) >= 2 * WINDOW and rises(self.means, self.errors, by=5.0):
            self.settled, self.num_settled, self.settled_blocks = None, 0, 0
        total = result.sum_of_params
        self.settled = total if self.settled is None else jax.tree.map(jnp.add, self.settled, total)
        self.num_settled += int(result.num_summed)
        self.settled_blocks += 1

    def record(self, num_units: int, batch_size: int, seconds: float, bias: str) -> Record:
        """What is stored of the run."""
        return Record(
            bias=bias,
            num_units=num_units,
            num_steps=self.steps[-1] if self.steps else 0,
            batch_size=batch_size,
            seconds=seconds,
            stopped=self.stopped,
            skipped_steps=self.skipped,
            step=tuple(self.steps),
            elbo_per_unit=tuple(self.elbos),
            validation_elbo_per_unit=tuple(self.held_out),
        )


def train(
    pair: tuple[Joint, Guide],
    data: TrainingData,
    *,
    key: Array,
    objective: AbstractObjective,
    optimizer: optax.GradientTransformation | None,
    run: Run,
) -> tuple[Joint, Guide, Record]:
    """Trains (joint, guide); returns the best pair and the record. Ctrl-C returns the best so far."""
    size = data.num_units
    batch = units_per_step(objective, run.batch_size, data)
    data = data.weighed(batch)
    resident = sum(x.nbytes for x in jax.tree.leaves(data.units)) <= RESIDENT_BYTES
    transformation = optax.with_extra_args_support(optimizer or adam())
    check_natural(transformation, objective, pair[1])
    params, rest = split_trainable(*pair)
    groups = (by_length(data.units) if batch == size else (data.units,)) if resident else None
    resident_groups = jax.tree.map(jnp.asarray, groups)
    by_rows = data.units.rows is not None and batch < size
    by = {"by_rows": by_rows, "on_pairs": data.units.latents is not None}
    setting = Setting(rest, objective, transformation, resident_groups, jnp.asarray(float(size)), **by)
    seed_key, key = jax.random.split(key)
    generator = np.random.default_rng(np.asarray(jax.random.bits(seed_key, (4,))))
    source = sources(data.units, batch, resident, generator, data.frequency)
    state = State(params, transformation.init(params), key, jnp.zeros((), jnp.int32))
    schedule = Schedule(run.num_steps, MOST_STEPS)
    seen, start = _Progression(best=params), time.perf_counter()
    if data.held_out is not None and _chooses(setting):
        found = _judge(setting, params, data.held_out)  # going on from a posterior must not make it worse
        seen.best_elbo = found if np.isfinite(found) else -np.inf
    with Progress(run.num_steps or MOST_STEPS, run.progress) as progress:
        try:
            for step in _blocks(setting, state, source, schedule, seen, data):
                progress.update(step, seen.elbos[-1], step * batch)
        except KeyboardInterrupt:
            seen.stopped = "interrupted"
    joint, guide = eqx.combine(_answer(setting, seen, data.held_out if _chooses(setting) else None), rest)
    if setting.on_pairs:
        seen.held_out = []  # losses, no bounds
    return joint, guide, seen.record(size, batch, time.perf_counter() - start, objective.bias)


def _blocks(
    setting: Setting,
    state: State,
    source: Iterator[PyTree],
    schedule: Schedule,
    seen: _Progression,
    data: TrainingData,
) -> Iterator[int]:
    """Trains block by block and yields the steps done so far, until it is time to stop."""
    step = 0
    while True:
        rows = next(source)
        most = jax.tree.leaves(rows)[0].shape[0]
        count = most if schedule.num_steps is None else min(most, schedule.num_steps - step)
        state = eqx.tree_at(lambda s: s.optimizer, state, set_step_size(state.optimizer, schedule.factor(step)))
        settling = schedule.settling(step)
        state, result = run_block((setting, rows, jnp.asarray(count)), state)
        loss, elbo = (np.asarray(x)[:count] for x in (result.loss, result.elbo_per_unit))
        finite = np.isfinite(loss)
        began, step = step, step + count
        seen.note(step, -loss[finite])
        seen.elbos.append(_mean(elbo[finite]))
        _keep_best(setting, state, seen, data)
        if _goes_back(setting, state, rows, finite, schedule, seen, data):
            state = State(seen.best, setting.optimizer.init(seen.best), state.key, state.step)
            schedule.set_back()
            seen.set_back()
        elif not setting.objective.is_settled(began):
            seen.wait(state.params)
            schedule.since = 0
        elif settling:
            seen.settle(result)
        yield step
        if _chooses(setting) and overfits(seen.held_out[seen.since :]):
            seen.stopped = "validation"
            return
        if schedule.finished(step, seen.means[seen.since :], seen.errors[seen.since :]):
            seen.stopped = _why(schedule, step)
            return


def _keep_best(setting: Setting, state: State, seen: _Progression, data: TrainingData) -> None:
    judged = seen.means[-1]
    if data.held_out is not None:
        seen.held_out.append(_judge(setting, state.params, data.held_out))
        judged = seen.held_out[-1] if _chooses(setting) else judged
    if np.isfinite(judged) and judged > seen.best_elbo:
        seen.best, seen.best_elbo = state.params, judged


def _chooses(setting: Setting) -> bool:
    """Whether held-out units choose the parameters: their bound knows next to nothing of q(v), or of simulations."""
    return setting.rest[1].shared is None and (setting.on_pairs or setting.objective.trains_all)


def _judge(setting: Setting, params: PyTree, held_out: Batch) -> float:
    """The bound per held-out unit, with the globals' part at the share that one training unit has of it."""
    size, total = batch_size(held_out), 0.0
    for number, start in enumerate(range(0, size, HELD_OUT_CHUNK)):
        part = jax.tree.map(lambda x, s=start: jnp.asarray(np.asarray(x)[s : s + HELD_OUT_CHUNK]), held_out)
        key = jax.random.fold_in(jax.random.key(7), number)
        total += batch_size(part) * float(held_out_elbo(setting, params, part, key))
    return total / size


def _answer(setting: Setting, seen: _Progression, held_out: Batch | None) -> PyTree:
    """The average over the last phase, unless that phase was clearly worse than the best block, or its average is."""
    if held_out is not None and seen.held_out and not np.any(np.isfinite(seen.held_out)):
        raise FitError(
            f"the bound of the held-out units was never finite in {seen.steps[-1]} steps and can't choose parameters; "
            "look at those units for extreme values, or give others as run=Run(validation=...)"
        )
    if not seen.num_settled:
        return seen.best
    average = jax.tree.map(lambda x: x / seen.num_settled, seen.settled)
    if held_out is not None:
        return average if _judge(setting, average, held_out) >= seen.best_elbo else seen.best
    window = min(WINDOW, seen.settled_blocks)
    late, noise = np.mean(seen.means[-window:]), np.max(seen.errors[-window:])
    return average if late >= seen.best_elbo - 5.0 * noise else seen.best


def _why(schedule: Schedule, step: int) -> str:
    if schedule.num_steps is not None:
        return "num_steps"
    return "limit" if step >= schedule.limit else "converged"


def _goes_back(
    setting: Setting,
    state: State,
    rows: PyTree,
    finite: np.ndarray,
    schedule: Schedule,
    seen: _Progression,
    data: TrainingData,
) -> bool:
    """Whether to go back and take smaller steps: the bound fell for good, or too many steps were rolled back.

    Raises where those would be no cure: units at fault, nothing finite yet, or gone back too often.
    """
    may = schedule.setbacks < MOST_SETBACKS
    if not seen.skip(int(np.sum(~finite))):
        return may and diverges(seen.means[seen.since :], seen.errors[seen.since :])
    bad = np.flatnonzero(~finite)
    fault = at_fault(setting, state.params, jax.tree.map(lambda x: x[bad[0]], rows), data.units, data.labels)
    if may and not fault and np.isfinite(seen.best_elbo):
        return True
    first = seen.steps[-1] - len(finite) + int(bad[0]) + 1
    raise FitError(
        f"{seen.skipped} training steps gave a bound or gradient that is not finite and were rolled back, of these "
        f"{len(bad)} since step {first}{fault}; look at those units, scale extreme covariates, or use narrower priors"
    )


def _mean(numbers: np.ndarray) -> float:
    return float(numbers.mean()) if len(numbers) else float("nan")
