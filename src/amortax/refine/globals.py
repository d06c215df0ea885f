"""How do the globals get better? The encoder's draws of q(v), weighted ones, or joint HMC over everything.

The weight of a draw is that of `importance.shared_weights`, over all training units. Flat weights leave nothing to
repair. Where they have next to no tail (k-hat at most 0.3, of at least 8,000 draws) and units are integrated well
enough (Monte-Carlo error of a log weight at most 0.5 nats), draws are taken by smoothed weights; since p̂_K(d_i | v) is
unbiased, its noise costs effective draws and no exactness. Otherwise everything is drawn together (`whole`); only where
that gives nothing, weights with a tail up to the usual limit are taken. Means would allow it sooner, but not sds: where
a normal ends before the tail of a scale's logarithm, k-hat was 0.4 to 0.7, and the sd short by a fifth all the same.
"""

from __future__ import annotations

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..data import Units
from ..guide import Guide
from ..importance import (
    FLAT,
    FLAT_K_LIMIT,
    LARGEST_ERROR,
    SharedWeights,
    shared_draws,
    shared_weights,
)
from ..joint.joint import Joint
from ..psis import effective_sample_size, k_limit, pareto_k, pareto_smoothed_log_weights
from .whole import WholeDraws, whole_draws

SURE_K = 0.3  # of k-hat, up to which weights are preferred to HMC
LEAST_ROUNDS = 4  # of draws of q(v), by which such a k-hat is judged
GOAL_ESS, LEAST_ESS = 1000.0, 400.0  # of weighted draws, means good to 0.03 sd; where HMC gave nothing, to 0.05 sd
ROUNDS = 8  # of draws of q(v) at most, to reach it


@dataclasses.dataclass(frozen=True)
class RepairedGlobals:
    """Draws of the globals given all training units, and what was done to them.

    Args:
        shared: (S, g) unconstrained globals.
        rung: "encoder" (q(v) was right), "reweight", "hmc", or "fail": then the draws are q's, not repaired.
        reason: why the rung is "fail", or empty.
        numbers: by name, for reports.
        whole: under "hmc", the same draws with locals of the training units.

    """

    shared: np.ndarray
    rung: str
    reason: str
    numbers: dict[str, float]
    whole: WholeDraws | None


def repaired_globals(
    joint: Joint, guide: Guide, training: Units, *, num_samples: int, key: Array, seconds: float = math.inf
) -> RepairedGlobals:
    """`num_samples` draws of the globals, by the cheapest rung that is right.

    **Arguments**: `training` all training units; `seconds` after which no further block of HMC is begun.
    """
    begun = time.perf_counter()
    weight_key, pick_key, whole_key = jax.random.split(key, 3)
    if guide.shared is None:
        return RepairedGlobals(np.zeros((num_samples, 0)), "encoder", "", {}, None)
    found, numbers = enough_weights(joint, guide, training, weight_key)
    rung, whole, reason = weighted_rung(numbers), None, ""
    if rung == "hmc":
        left = seconds - (time.perf_counter() - begun)
        whole = whole_draws(joint, guide, training, key=whole_key, seconds=left)
        numbers |= whole_numbers(whole)
        if whole.accepted:
            rows = picked(np.ones(len(whole.shared)), num_samples, pick_key)
            whole = dataclasses.replace(whole, shared=whole.shared[rows], local=whole.local[rows])
        else:
            rung, reason, whole = fallback_rung(numbers), whole.reason, None
    if whole is not None:
        shared = whole.shared
    elif rung == "reweight":
        shared = found.shared[picked(smoothed(found.log_weight), num_samples, pick_key)]
    else:
        shared = np.asarray(shared_draws(pick_key, guide, num_samples)[0], np.float64)
    numbers["globals_seconds"] = time.perf_counter() - begun
    return RepairedGlobals(shared, rung, "" if rung == "reweight" else reason, numbers, whole)


def enough_weights(joint: Joint, guide: Guide, training: Units, key: Array) -> tuple[SharedWeights, dict[str, float]]:
    """Weighted draws of q(v), more of them where that makes them worth `GOAL_ESS`, and what they say."""
    found = shared_weights(key, guide, joint, training)
    numbers = weight_numbers(found)
    rounds = rounds_needed(numbers)
    if not 1 < rounds <= ROUNDS:
        return found, numbers
    keys = jax.random.split(jax.random.fold_in(key, 2), rounds - 1)  # 0 and 1 are the first round's own
    parts = [found, *(shared_weights(k, guide, joint, training) for k in keys)]
    found = SharedWeights(
        *(np.concatenate([getattr(x, name) for x in parts]) for name in ("shared", "log_weight", "log_ratio")),
        error=max(x.error for x in parts),
    )
    return found, weight_numbers(found)


def weight_numbers(found: SharedWeights) -> dict[str, float]:
    """What the weights of draws of q(v) say of it."""
    centred = jnp.asarray(found.log_weight - found.log_weight.max(), jnp.float32)
    return {
        "globals_pareto_k": float(pareto_k(centred)),
        "globals_ess": float(effective_sample_size(centred)),
        "globals_error_nats": found.error,
        "globals_k_limit": k_limit(len(centred)),
        "globals_draws": float(len(centred)),
    }


def whole_numbers(whole: WholeDraws) -> dict[str, float]:
    """What joint HMC says of its own draws."""
    return {
        "whole_rhat": whole.rhat_max,
        "whole_ess": whole.ess_min,
        "whole_divergences": float(whole.divergences),
        "whole_draws": float(len(whole.shared)),
        "whole_seconds": whole.seconds,
    }


def rounds_needed(numbers: dict[str, float]) -> int:
    """Rounds of as many draws until weighted ones are worth `GOAL_ESS`; one where no number of them would help."""
    ess = numbers["globals_ess"]
    if not _usable(numbers, numbers["globals_k_limit"]) or ess < 1.0 or _flat(numbers):
        return 1
    wanted = math.ceil(1.1 * GOAL_ESS / ess) if ess < GOAL_ESS else 1
    return max(wanted, LEAST_ROUNDS) if numbers["globals_pareto_k"] <= SURE_K else wanted


def weighted_rung(numbers: dict[str, float]) -> str:
    """The rung that the weights ask for: "encoder", "reweight" or "hmc"."""
    if _flat(numbers):
        return "encoder"
    return "reweight" if _usable(numbers, SURE_K) and numbers["globals_ess"] >= GOAL_ESS else "hmc"


def fallback_rung(numbers: dict[str, float]) -> str:
    """The rung that the weights allow where HMC gave nothing: "reweight" or "fail"."""
    usable = _usable(numbers, numbers["globals_k_limit"])
    return "reweight" if usable and numbers["globals_ess"] >= LEAST_ESS else "fail"


def _usable(numbers: dict[str, float], largest_k: float) -> bool:
    """Whether there are weights, with a tail of at most `largest_k`, of units integrated well enough."""
    k, ess, error = (numbers[f"globals_{name}"] for name in ("pareto_k", "ess", "error_nats"))
    return bool(np.isfinite(ess)) and error <= LARGEST_ERROR and k <= largest_k


def _flat(numbers: dict[str, float]) -> bool:
    """Whether the weights leave nothing to repair."""
    spread = numbers["globals_draws"] / numbers["globals_ess"] - 1.0
    return _usable(numbers, FLAT_K_LIMIT) and spread <= FLAT


def smoothed(log_weight: np.ndarray) -> np.ndarray:
    """Weights with their tail replaced by quantiles of its fit; they sum to one."""
    centred = jnp.asarray(log_weight - log_weight.max(), jnp.float32)
    return np.exp(np.asarray(pareto_smoothed_log_weights(centred), np.float64))


def picked(weights: np.ndarray, count: int, key: Array) -> np.ndarray:
    """Rows drawn by their weights: systematic resampling in a random order, each as often as its share says."""
    offset_key, order_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(weights)))
    ends = np.cumsum(weights[order] / weights.sum())
    points = (np.arange(count) + float(jax.random.uniform(offset_key))) / count
    rows = order[np.minimum(np.searchsorted(ends, points), len(weights) - 1)]
    return rows[np.asarray(jax.random.permutation(jax.random.fold_in(order_key, 1), count))]
