"""What are globals and locals of all training units given all data? Joint HMC in the numbers in which q is noise.

The guide places the density near a standard normal (`coordinates`), many chains start at its draws (`chains`), and
blocks follow until every number's rank-normalised split R-hat and effective size are good, or the time is over
(Vehtari et al. 2021, arXiv 1903.08008). Where a first attempt of moderate length isn't good enough, its draws say
better than q where the globals are: a second one has their mean and covariance, and smaller steps. What is not good
enough then is not accepted, and the reason says why.

Learned parameters θ of the model stay as they are. Discrete locals are summed by the joint's density.
"""

from __future__ import annotations

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..chunks import bucketed
from ..data import Units
from ..guide import Guide
from ..intake import to_batch
from ..joint.joint import Joint
from .chains import ACCEPTANCE, BLOCK, CAREFUL, Chains, block, first, warm_blocks
from .coordinates import Coordinates, coordinates_of, reshaped

CHAINS = 16
LARGEST_RHAT, LEAST_ESS, MOST_DIVERGENT = 1.02, 400.0, 0.002  # of an accepted answer
GOAL_ESS = 1000.0  # at which sampling stops: means good to 0.03 sd
MOST_BYTES = 1 << 30  # of kept draws
FIRST_BLOCKS, MOST_BLOCKS = 20, 80  # of a first attempt, and of a second
LOOK = 4  # blocks before the first look, and steps of how many blocks are judged
TOGETHER = 256  # numbers judged at once
LARGEST = 10_000  # dimensions


@dataclasses.dataclass(frozen=True)
class WholeDraws:
    """Draws of everything, chain after chain, and how far they can be trusted.

    Args:
        shared: (S, g) unconstrained globals.
        local: (S, N, d) unconstrained locals of the units in their order; padded as `chunks.bucketed` pads them.
        rhat_max: the largest rank-normalised split R-hat of any number.
        ess_min: the least effective number of draws of any, in bulk and tails.
        divergences: trajectories that diverged.
        acceptance: mean acceptance of trajectories.
        gradients: evaluations of the density's gradient, per chain.
        seconds: spent, compiling included.
        accepted: whether the draws may be used.
        reason: why not, or empty.

    """

    shared: np.ndarray
    local: np.ndarray
    rhat_max: float
    ess_min: float
    divergences: int
    acceptance: float
    gradients: int
    seconds: float
    accepted: bool
    reason: str


def whole_draws(
    joint: Joint, guide: Guide, training: Units, *, key: Array, seconds: float = math.inf, goal: float = GOAL_ESS
) -> WholeDraws:
    """Draws from p(globals, locals of all `training` units | all data), as many as reach `goal`.

    **Arguments**: `seconds` after which no further block is begun.
    """
    begun = time.perf_counter()
    if why := refusal(joint, guide, training):
        return _nothing(joint, training, why, begun)
    shape_key, *keys = jax.random.split(key, 3)
    problem, order = coordinates_of(joint, guide, training, CHAINS, shape_key)
    limits = Limits(begun, seconds, goal, FIRST_BLOCKS)
    found = _attempt(problem, order, keys[0], limits)
    if found is None:
        why = f"the {seconds:g} s ended while the chains were adapting; give more seconds"
        return _nothing(joint, training, why, begun)
    if not found.accepted and not limits.over:
        longer = dataclasses.replace(limits, most=MOST_BLOCKS)
        return _attempt(reshaped(problem, found.shared), order, keys[1], longer, CAREFUL) or found
    return found


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long chains go on: seconds since `begun` (of `time.perf_counter`), wanted effective size, most blocks."""

    begun: float
    seconds: float
    goal: float
    most: int

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return time.perf_counter() - self.begun > self.seconds


def _attempt(
    problem: Coordinates, order: np.ndarray, key: Array, limits: Limits, acceptance: float = ACCEPTANCE
) -> WholeDraws | None:
    """Draws of chains that adapted first, or None where the time ended before they had."""
    start_key, warm_key, draw_key = jax.random.split(key, 3)
    chains = first(problem, problem.start(start_key, 4 * CHAINS), CHAINS, jnp.asarray(acceptance))
    for number, ends in enumerate(warm_blocks()):
        block_key = jax.random.fold_in(warm_key, number)
        chains, _ = block(problem, chains, block_key, jnp.asarray(True), jnp.asarray(ends))
        jax.block_until_ready(chains.metric)
        if limits.over:
            return None
    return _sampled(problem, chains, order, draw_key, limits)


def refusal(joint: Joint, guide: Guide, training: Units) -> str:
    """Why everything can't be drawn together, or empty."""
    if guide.classifier is not None:
        return "numbers of a unit follow a learned discrete choice, which HMC can't move; refine units one by one"
    if guide.filters:
        return "q is a product of beliefs of single steps, and no posterior"
    size = joint.shared_size + len(training) * _numbers(joint, training)
    if size > LARGEST:
        return f"globals and locals are {size} numbers together, above the limit of {LARGEST}"
    return ""


def _numbers(joint: Joint, training: Units) -> int:
    """Of one unit, as all are padded."""
    return joint.structure.at(to_batch(bucketed(training))).size("local")


def _nothing(joint: Joint, training: Units, why: str, begun: float) -> WholeDraws:
    shared, local = np.zeros((0, joint.shared_size)), np.zeros((0, len(training), _numbers(joint, training)))
    spent = time.perf_counter() - begun
    return WholeDraws(shared, local, math.nan, 0.0, 0, math.nan, 0, spent, accepted=False, reason=why)


def _sampled(problem: Coordinates, chains: Chains, order: np.ndarray, key: Array, limits: Limits) -> WholeDraws:
    kept: list[np.ndarray] = []
    facts: list[tuple[float, ...]] = []
    fixed = jnp.asarray(False)
    most = min(limits.most, max(LOOK, MOST_BYTES // (4 * BLOCK * CHAINS * problem.size)))
    wanted, own = LOOK, problem.own()
    while True:
        chains, drawn = block(problem, chains, jax.random.fold_in(key, len(kept)), fixed, fixed)
        kept.append(_flat(drawn.placed))
        facts.append(
            (float(jnp.sum(drawn.divergent)), float(jnp.mean(drawn.acceptance)), float(jnp.sum(drawn.gradients[:, 0])))
        )
        over = limits.over or len(kept) >= most
        if len(kept) < wanted and not over:
            continue
        draws = np.concatenate(kept)
        rhat, ess = judged(draws[..., own])
        if over or (rhat <= LARGEST_RHAT and ess >= limits.goal):
            break
        wanted = next_blocks(len(kept), ess, limits.goal, rhat)
    divergent, acceptance, gradients = np.array(facts).T
    why = shortcoming(rhat, ess, divergent.sum() / (len(draws) * CHAINS))
    flat = np.moveaxis(draws, 1, 0).reshape(-1, problem.size)
    shared, local = _parted(problem, flat, order)
    spent = time.perf_counter() - limits.begun
    numbers = (rhat, ess, int(divergent.sum()), float(acceptance.mean()), int(gradients.sum()), spent)
    return WholeDraws(shared, local, *numbers, accepted=not why, reason=why)


def next_blocks(done: int, ess: float, goal: float, rhat: float) -> int:
    """How many blocks there should be before the next look."""
    share = 1.2 * goal / ess if ess > 0 else 2.0
    if rhat > LARGEST_RHAT:
        share = max(share, 1.5)
    return math.ceil(done * float(np.clip(share, 1.25, 3.0)))


def shortcoming(rhat: float, ess: float, divergent: float) -> str:
    """Why draws with these numbers are not accepted, or empty; `divergent` is a share of trajectories."""
    if not np.isfinite(rhat):
        return "a number never moved, or is not finite: R-hat is not defined"
    if rhat > LARGEST_RHAT:
        return f"the chains disagree: R-hat {rhat:.3f} (limit {LARGEST_RHAT}); give more seconds, or reparametrise"
    if ess < LEAST_ESS:
        return f"too few draws: the least effective size is {ess:.0f} (limit {LEAST_ESS:.0f}); give more seconds"
    if divergent > MOST_DIVERGENT:
        return (
            f"{divergent:.1%} of trajectories diverged (limit {MOST_DIVERGENT:.1%}): part of the posterior is too "
            "narrow for one step size; reparametrise, or give a better guide"
        )
    return ""


def judged(draws: np.ndarray) -> tuple[float, float]:
    """(largest R-hat, least effective size in bulk and tails) over the numbers of draws (steps, chains, numbers).

    Of `LOOK` blocks' steps spread over all, so that it is compiled once; what is left out makes the size no larger.
    """
    steps = np.linspace(0, len(draws) - 1, min(len(draws), LOOK * BLOCK)).round().astype(int)
    values = np.moveaxis(draws[steps], 1, 0)
    size = values.shape[2]
    rhats, sizes = [], []
    for start in range(0, size, TOGETHER):
        columns = np.minimum(np.arange(start, start + min(TOGETHER, size)), size - 1)
        rhat, ess = _judge(jnp.asarray(values[:, :, columns]))
        rhats.append(float(np.max(rhat)))  # NaN where one is
        sizes.append(float(np.min(ess)))
    return float(np.max(rhats)), float(np.min(sizes))


@jax.jit
def _judge(values: Array) -> tuple[Array, Array]:
    from blackjax import diagnostics

    ess = jnp.minimum(diagnostics.ess_bulk(values), diagnostics.ess_tail(values))
    return diagnostics.rhat(values), ess


def _flat(placed: tuple[Array, list[Array]]) -> np.ndarray:
    """Draws (block, chains, numbers) of globals and locals side by side."""
    shared, local = placed
    return np.concatenate([np.asarray(x).reshape(*x.shape[:2], -1) for x in (shared, *local)], axis=2)


def _parted(problem: Coordinates, flat: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(globals (S, g), locals (S, N, d)) from numbers side by side."""
    size, parts = problem.center.shape[0], []
    start = size
    for units, numbers in problem.sizes:
        parts.append(flat[:, start : start + units * numbers].reshape(len(flat), units, numbers))
        start += units * numbers
    return flat[:, :size], np.concatenate(parts, axis=1)[:, order]
