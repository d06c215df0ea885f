"""How good is a unit's own q? The numbers of `importance`, for any q of a unit, and where its draws are."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch
from ..importance import UnitNumbers, summarise
from .own import AbstractOwn, defended
from .target import Target


class Judged(eqx.Module):
    """Of every unit: numbers (units, R), the best draw, and quantiles of all draws."""

    numbers: UnitNumbers
    best: Float[Array, "units d"]
    quantiles: Float[Array, "units 3 d"]  # 16, 50 and 84%


@eqx.filter_jit
def judged(
    key: Array, target: Target, own: AbstractOwn, shared: Float[Array, "r g"], batch: Batch, index: Array, count: int
) -> Judged:
    """Judges q of every unit by `count` draws at each draw of the globals.

    Its bound is by its own draws; k-hat, effective size and evidence are those of the defended q, which see more.
    """

    def one(index: Array, own: AbstractOwn, unit: Batch) -> tuple:
        guarded = defended(own, target)

        def given_one(key: Array, shared: Array) -> tuple:
            given = own.given(shared, unit, target)

            def draw(q: AbstractOwn, key: Array) -> tuple[Array, Array, Array]:
                local, log_q = q.draw(key, given, unit, target)
                log_p = target.log_prob(local, shared, unit)
                return local, log_p, log_p - log_q

            keys = jax.random.split(key, count)
            local, log_p, weight = jax.vmap(lambda k: draw(own, k))(keys)
            numbers = summarise(weight)
            if guarded is not own:
                wide = summarise(jax.vmap(lambda k: draw(guarded, k))(keys)[2])
                numbers = (*wide[:3], numbers[3], wide[4], numbers[5], wide[6])
            return numbers, local, log_p

        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])
        numbers, local, log_p = jax.vmap(given_one)(keys, shared)
        local, log_p = local.reshape(-1, local.shape[-1]), jnp.ravel(log_p)
        best = local[jnp.argmax(jnp.where(jnp.isnan(log_p), -jnp.inf, log_p))]
        return numbers, best, jnp.quantile(local, jnp.array([0.16, 0.5, 0.84]), axis=0)

    numbers, best, quantiles = jax.vmap(one)(index, own, batch)
    return Judged(UnitNumbers(*numbers), best, quantiles)
