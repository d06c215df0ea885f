"""How do the globals get better? The encoder's draws of q(v), weighted ones, or joint HMC over everything.

The weight of a draw is that of `importance.shared_weights`, over all training units. Flat weights leave nothing to
repair. Where the tail allows it (k-hat under its limit) and units are integrated well enough (Monte-Carlo error of a
log weight at most 0.5 nats), draws are taken by smoothed weights; since p̂_K(d_i | v) is unbiased, its noise costs
effective draws and no exactness. Otherwise everything is drawn together (`whole`).
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
from ..importance import SharedWeights, shared_weights
from ..joint.joint import Joint
from ..psis import effective_sample_size, k_limit, pareto_k, pareto_smoothed_log_weights
from .whole import WholeDraws, whole_draws

LARGEST_ERROR = 0.5  # nats, of a log weight of the globals
FLAT, FLAT_K_LIMIT = 0.01, 2.0  # of χ² = S/ESS - 1, where no mean is off by 0.1 sd; of k-hat, where no mode is missed
LEAST_ESS = 400.0  # of weighted draws: means good to 0.05 sd


@dataclasses.dataclass(frozen=True)
class RepairedGlobals:
    """Draws of the globals given all training units, and what was done to them.

    Args:
        shared: (S, g) unconstrained globals.
        rung: "encoder" (q(v) was right), "reweight", "hmc", or "fail": then the draws are q's, unrepaired.
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
    found = shared_weights(weight_key, guide, joint, training)
    numbers = weight_numbers(found)
    rung = weighted_rung(numbers)
    if rung != "hmc":
        weights = smoothed(found.log_weight) if rung == "reweight" else np.full(len(found.shared), 1.0)
        shared = found.shared[picked(weights, num_samples, pick_key)]
        numbers["globals_seconds"] = time.perf_counter() - begun
        return RepairedGlobals(shared, rung, "", numbers, None)
    left = seconds - (time.perf_counter() - begun)
    whole = whole_draws(joint, guide, training, key=whole_key, seconds=left)
    numbers |= whole_numbers(whole)
    numbers["globals_seconds"] = time.perf_counter() - begun
    if not whole.accepted:
        shared = found.shared[picked(np.ones(len(found.shared)), num_samples, pick_key)]
        return RepairedGlobals(shared, "fail", whole.reason, numbers, None)
    rows = picked(np.ones(len(whole.shared)), num_samples, pick_key)
    whole = dataclasses.replace(whole, shared=whole.shared[rows], local=whole.local[rows])
    return RepairedGlobals(whole.shared, "hmc", "", numbers, whole)


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


def weighted_rung(numbers: dict[str, float]) -> str:
    """The rung that the weights allow: "encoder", "reweight" or "hmc"."""
    k, ess, error = (numbers[f"globals_{name}"] for name in ("pareto_k", "ess", "error_nats"))
    if not (np.isfinite(ess) and error <= LARGEST_ERROR) or np.isnan(k):
        return "hmc"
    if numbers["globals_draws"] / ess - 1.0 <= FLAT and k <= FLAT_K_LIMIT:
        return "encoder"
    return "reweight" if k <= numbers["globals_k_limit"] and ess >= LEAST_ESS else "hmc"


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
