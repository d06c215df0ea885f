"""Would a unit's own q use a latent that the encoder leaves at the prior? A few units are refined to see.

Each gets a diagonal normal of its own on the scale of its prior, q(ũ) = N(m, diag s²), which starts half an sd off the
prior, so that it is on no saddle, and climbs the unit's bound given one draw of the globals,

    E_q[ log p(d, u | v) ] + Σ_j log s_j,

by Adam (Kingma and Ba 2015) with pairs of opposite draws and a step that goes to zero.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Batch
from ..chunks import chunks, evenly
from ..data import Units
from ..guide import Guide
from ..importance import log_weights
from ..joint.joint import Joint
from ..refine.optimise import climbed

MOST_REFINED = 16
STEPS, PAIRS, RATE = 400, 8, 0.1
JUDGED = 256  # draws behind each of the two bounds


def refine_few(
    joint: Joint, guide: Guide, data: Units, shared: Array, each: Any, key: Array, most: int
) -> dict[str, Any]:
    """Of some units, on the scale of their prior: `mean` and `kl` (units, d), and `gain` of the bound over q's.

    **Arguments**: `each` moments of all units of `data` at the globals `shared`, the first of its draws.
    """
    rows = evenly(len(data), min(most, MOST_REFINED))
    own = each.variance[rows, 0] > 0
    place = np.where(own, each.prior_mean[rows, 0], 0.0), np.where(own, np.sqrt(each.prior_variance[rows, 0]), 1.0)
    parts = []
    for chunk in chunks(data.take(rows), joint.structure, JUDGED):
        at = np.asarray(chunk.index)
        center, scale = (jnp.asarray(x[at], jnp.float32) for x in place)
        found = _refine(joint, guide, chunk.batch, chunk.index, shared, center, scale, jnp.asarray(own[at]), key)
        parts.append([np.asarray(x, np.float64)[: chunk.stop - chunk.start] for x in found])
    mean, log_sd, refined, amortized = (np.concatenate(x) for x in zip(*parts, strict=True))
    with np.errstate(invalid="ignore"):
        kl = np.where(own, 0.5 * (mean**2 + np.exp(2 * log_sd) - 1.0) - log_sd, np.nan)
    gain = (refined - amortized).mean(axis=1)
    error = np.sqrt((refined.var(axis=1, ddof=1) + amortized.var(axis=1, ddof=1)) / JUDGED)
    return {
        "mean": mean,
        "kl": kl,
        "gain": float(gain.mean()),
        "gain_se": float(np.sqrt(np.sum(error**2)) / len(error)),
        "units": len(rows),
    }


@eqx.filter_jit
def _refine(
    joint: Joint,
    guide: Guide,
    batch: Batch,
    index: Array,
    shared: Array,
    center: Array,
    scale: Array,
    own: Array,
    key: Array,
) -> tuple[Array, ...]:
    contexts = guide.encode(batch)

    def one(index: Array, context: Any, unit: Batch, center: Array, scale: Array, own: Array) -> tuple[Array, ...]:
        start_key, step_key, judge_key, q_key = jax.random.split(jax.random.fold_in(key, index), 4)

        def log_weight(q: tuple[Array, Array], noise: Array) -> Array:
            mean, log_sd = q
            local = center + scale * jnp.where(own, mean + jnp.exp(log_sd) * noise, 0.0)
            log_q = -0.5 * noise**2 - 0.5 * jnp.log(2 * jnp.pi) - log_sd - jnp.log(scale)
            return joint.unit_log_prob(local, shared, unit).unit - jnp.sum(jnp.where(own, log_q, 0.0))

        def loss(q: tuple[Array, Array], key: Array) -> Array:
            noise = jax.random.normal(key, (PAIRS, *center.shape))
            return -jnp.mean(jax.vmap(log_weight, in_axes=(None, 0))(q, jnp.concatenate([noise, -noise])))

        start = 0.5 * jax.random.normal(start_key, center.shape), jnp.zeros(center.shape)
        q = climbed(loss, start, step_key, RATE, STEPS)
        noise = jax.random.normal(judge_key, (JUDGED, *center.shape))
        judged = jax.vmap(log_weight, in_axes=(None, 0))(q, noise)
        return *q, judged, log_weights(q_key, guide, joint, context, shared, unit, JUDGED)

    return jax.vmap(one)(index, contexts, batch, center, scale, own)
