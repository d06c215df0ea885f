"""How good is q for one unit? Importance weights of q against the model, per unit and conditional on the globals.

For R draws v_r ~ q(v) and, within each, K draws u_k ~ q(u | d_i, v_r),

    log w_irk = log p(d_i, u_k | v_r) - log q(u_k | d_i, v_r).

k-hat, effective sample size and evidence are computed within r; weights are never compared across different v, since
at an exact guide they differ by p(d_i | v). The globals have a weight of their own, over all training units,

    log w_r = log p(v_r) + Σ_i log p̂_K(d_i | v_r) - log q(v_r),

whose Monte-Carlo error is the root of the summed variances of the log p̂_K.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._types import Batch, Context
from .chunks import chunks
from .data import Units
from .guide import Guide
from .joint.joint import Joint
from .psis import effective_sample_size, pareto_k


class UnitNumbers(eqx.Module):
    """Per unit; each array (units, R) but for those said."""

    pareto_k: Float[Array, "units r"]
    ess: Float[Array, "units r"]
    log_evidence: Float[Array, "units r"]  # log p̂_K(d_i | v_r): the K-sample bound
    elbo: Float[Array, "units r"]  # mean log weight over K
    iw_elbo: Float[Array, "units r"]  # mean of the bounds of small groups of draws
    elbo_variance: Float[Array, "units r"]  # of elbo and of iw_elbo, by Monte Carlo
    iw_elbo_variance: Float[Array, "units r"]


FLAT, FLAT_K_LIMIT = 0.01, 2.0  # of χ² = S/ESS - 1, where no mean is off by 0.1 sd; of k-hat, where no mode is missed
LARGEST_ERROR = 0.5  # nats, of a log weight of the globals


@eqx.filter_jit
def shared_draws(key: Array, guide: Guide, count: int) -> tuple[Float[Array, "r g"], Float[Array, " r"]]:
    """R draws of the globals and their log q."""
    return jax.vmap(guide.sample_shared)(jax.random.split(key, count))


def log_weights(
    key: Array,
    guide: Guide,
    joint: Joint,
    context: Context,
    shared: Array,
    unit: Batch,
    count: int,
    together: int | None = None,
) -> Float[Array, " k"]:
    """K log weights of one unit given globals, so many draws at once (None: all), which changes none of them."""

    def one(key: Array) -> Array:
        local, log_q = guide.sample_local(key, context, shared, unit, joint)
        return joint.unit_log_prob(local, shared, unit).unit - log_q

    keys = jax.random.split(key, count)
    return jax.vmap(one)(keys) if together is None else jax.lax.map(one, keys, batch_size=together)


@eqx.filter_jit
def shared_prior(joint: Joint, shared: Float[Array, "r g"], unit: Batch) -> Float[Array, " r"]:
    """log p(v) of every draw of the globals; `unit` is any unit, for its shapes."""
    local = jnp.zeros(joint.at(unit).local_size)
    return jax.vmap(lambda v: joint.unit_log_prob(local, v, unit).shared)(shared)


@eqx.filter_jit
def unit_bounds(
    key: Array, guide: Guide, joint: Joint, shared: Float[Array, "r g"], batch: Batch, index: Array, count: int
) -> tuple[Array, Array, Array]:
    """(log p̂_K(d_i | v_r), mean log weight, variance of the first), each (units, R)."""
    contexts = guide.encode(batch)

    def one(index: Array, context: Context, unit: Batch) -> tuple[Array, Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])

        def given(key: Array, shared: Array) -> tuple[Array, Array, Array]:
            weight = log_weights(key, guide, joint, context, shared, unit, count)
            evidence = jax.nn.logsumexp(weight) - jnp.log(count)
            variance = jnp.maximum(1.0 / effective_sample_size(weight) - 1.0 / count, 0.0)
            return evidence, jnp.mean(weight), variance

        return jax.vmap(given)(keys, shared)

    return jax.vmap(one)(index, contexts, batch)


@eqx.filter_jit
def unit_numbers(
    key: Array,
    guide: Guide,
    joint: Joint,
    shared: Float[Array, "r g"],
    batch: Batch,
    index: Array,
    count: int,
    together: int | None = None,
) -> UnitNumbers:
    """All numbers of the units of `batch`; unit i draws with `fold_in(key, index_i)`, whatever batch it is in."""
    contexts = guide.encode(batch)

    def one(index: Array, context: Context, unit: Batch) -> tuple[Array, ...]:
        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])

        def given(key: Array, shared: Array) -> tuple[Array, ...]:
            return summarise(log_weights(key, guide, joint, context, shared, unit, count, together))

        return jax.vmap(given)(keys, shared)

    return UnitNumbers(*jax.vmap(one)(index, contexts, batch))


GROUP = 50  # draws in one importance-weighted bound


def summarise(log_weight: Float[Array, " k"]) -> tuple[Array, ...]:
    """(k-hat, ESS, log evidence, ELBO, IW-ELBO, variances of these two) of one set of log weights.

    The IW-ELBO is the mean bound over groups of `GROUP` draws; its variance is unknown (NaN) with a single group.
    """
    count = log_weight.shape[0]
    evidence = jax.nn.logsumexp(log_weight) - jnp.log(count)
    ess = effective_sample_size(log_weight)
    groups = log_weight[: count - count % GROUP].reshape(-1, min(GROUP, count)) if count >= GROUP else log_weight[None]
    bounds = jax.nn.logsumexp(groups, axis=1) - jnp.log(groups.shape[1])
    many = bounds.shape[0] > 1
    spread = jnp.var(bounds, ddof=1) / bounds.shape[0] if many else jnp.full((), jnp.nan)
    numbers = pareto_k(log_weight), ess, evidence, jnp.mean(log_weight), jnp.mean(bounds)
    return *numbers, jnp.var(log_weight, ddof=1) / count, spread


OWN_DRAWS, FEWEST_OWN_DRAWS = 2000, 100  # for the weights of the globals: 500 missed a heavy tail at one key in eight
EVALUATIONS = 50_000_000  # of one unit's density, for the globals' weights
FEW, MOST = 8, 64  # draws of a unit per draw of the globals: few at first, more only where those are too noisy
NOISY = 0.1  # nats, of a log weight of the globals, beyond which it takes more draws of every unit


@dataclasses.dataclass(frozen=True)
class SharedWeights:
    """Draws of q(v) against p(v | all training units); NumPy, float64.

    Args:
        shared: (R, g) the draws.
        log_weight: (R,) log p(v) + Σ_i log p̂_K(d_i | v) - log q(v).
        log_ratio: (R,) the same with the mean log weight of every unit instead: the bound of everything together.
        error: the Monte-Carlo error of one log weight, in nats.

    """

    shared: np.ndarray
    log_weight: np.ndarray
    log_ratio: np.ndarray
    error: float


def shared_weights(key: Array, guide: Guide, joint: Joint, training: Units, count: int | None = None) -> SharedWeights:
    """The weights of `count` draws of the globals (None: as many as are worth their time) over all training units."""
    size = len(training)
    own = count or max(FEWEST_OWN_DRAWS, min(OWN_DRAWS, EVALUATIONS // (FEW * size)))
    most = 1 if guide.local is None else int(np.clip(EVALUATIONS // (own * size), FEW, MOST))
    shared, log_q = shared_draws(jax.random.fold_in(key, 0), guide, own)
    evidence, bound, variance = _summed(key, guide, joint, training, shared, min(FEW, most))
    if most > FEW and np.sqrt(np.median(variance)) > NOISY:
        evidence, bound, variance = _summed(key, guide, joint, training, shared, most)
    first = jax.tree.map(lambda x: x[0], next(iter(chunks(training, joint.structure, 1))).batch)
    rest = np.asarray(shared_prior(joint, shared, first), np.float64) - np.asarray(log_q, np.float64)
    error = float(np.sqrt(np.median(variance)))
    return SharedWeights(np.asarray(shared, np.float64), evidence + rest, bound + rest, error)


def _summed(
    key: Array, guide: Guide, joint: Joint, training: Units, shared: Array, per_unit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed over units, for every draw of the globals: log evidence, mean log weight, variance of the first."""
    sums = tuple(np.zeros(shared.shape[0]) for _ in range(3))
    for chunk in chunks(training, joint.structure, shared.shape[0] * per_unit):
        found = unit_bounds(jax.random.fold_in(key, 1), guide, joint, shared, chunk.batch, chunk.index, per_unit)
        for total, part in zip(sums, found, strict=True):
            total += np.asarray(part, np.float64)[: chunk.stop - chunk.start].sum(axis=0)
    return sums[0], sums[1], sums[2]
