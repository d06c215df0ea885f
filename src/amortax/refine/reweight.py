"""How do draws of q become draws of the posterior? By Pareto-smoothed importance resampling, given the globals.

Given one draw of the globals, candidates from q are drawn again by their weights log p(d, u | v) - log q(u), the
largest of them smoothed (Vehtari and others 2024). Weights never cross draws of the globals: every draw v_s has
candidates of its own, and one of them is its answer. Without globals all draws are from one pool.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch
from ..psis import MIN_SAMPLES, pareto_smoothed_log_weights
from .own import AbstractOwn, Given, defended
from .target import Target

CANDIDATES = (16, 64, 256)  # for each draw; the fewest that serve are taken
WORTH = 16  # exact draws that the candidates for one draw should be worth


def candidates_for(kept: float) -> int:
    """How many candidates for one draw, where reweighting keeps this share of draws."""
    needed = WORTH / max(kept, 1e-3)
    return next((n for n in CANDIDATES if n >= needed), CANDIDATES[-1])


@eqx.filter_jit
def resampled(
    key: Array,
    target: Target,
    own: AbstractOwn,
    shared: Float[Array, "s g"],
    batch: Batch,
    index: Array,
    count: int,
    candidates: int,
) -> Float[Array, "units draws d"]:
    """`count` draws of every unit, from `candidates` for each: one for each draw of the globals, or all of one pool."""
    sets, each = (1, count) if target.pooled else (count, 1)

    def one(index: Array, own: AbstractOwn, unit: Batch) -> Array:
        def given_one(key: Array, shared: Array) -> Array:
            draw_key, pick_key = jax.random.split(key)
            guarded = defended(own, target)
            given = guarded.given(shared, unit, target)
            local, weight = _weighed(draw_key, guarded, given, unit, target, each * candidates)
            return local[_picked(pick_key, weight, each)]

        keys = jax.random.split(jax.random.fold_in(key, index), sets)
        return jax.lax.map(lambda pair: given_one(*pair), (keys, shared[:sets]), batch_size=64).reshape(count, -1)

    return jax.vmap(one)(index, own, batch)


def _weighed(key: Array, own: AbstractOwn, given: Given, unit: Batch, target: Target, count: int) -> tuple:
    """Draws of q and their log weights, smoothed where they are enough."""

    def draw(key: Array) -> tuple[Array, Array]:
        local, log_q = own.draw(key, given, unit, target)
        return local, target.log_prob(local, given.shared, unit) - log_q

    local, weight = jax.vmap(draw)(jax.random.split(key, count))
    weight = jnp.where(jnp.isnan(weight), -jnp.inf, weight)
    return local, pareto_smoothed_log_weights(weight) if count >= MIN_SAMPLES else weight


def _picked(key: Array, log_weight: Float[Array, " n"], count: int) -> Array:
    """Which candidates, by systematic resampling, in random order."""
    from blackjax.smc.resampling import systematic

    if count == 1:
        return jax.random.categorical(key, log_weight)[None]
    pick_key, order_key = jax.random.split(key)
    return jax.random.permutation(order_key, systematic(pick_key, jax.nn.softmax(log_weight), count))


@eqx.filter_jit
def drawn(
    key: Array,
    target: Target,
    own: AbstractOwn,
    shared: Float[Array, "s g"],
    batch: Batch,
    index: Array,
    count: int,
) -> Float[Array, "units draws d"]:
    """`count` draws of every unit's q as it is."""

    def one(index: Array, own: AbstractOwn, unit: Batch) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, index), count)
        if target.pooled:
            given = own.given(shared[0], unit, target)
            return jax.vmap(lambda k: own.draw(k, given, unit, target)[0])(keys)
        return jax.vmap(lambda k, v: own.draw(k, own.given(v, unit, target), unit, target)[0])(keys, shared)

    return jax.vmap(one)(index, own, batch)
