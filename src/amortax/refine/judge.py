"""How good is a unit's own q? Its bound by its own draws, its weights by a wider q's, and where its draws are."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch
from ..importance import UnitNumbers, summarise
from .own import AbstractOwn, defended
from .target import Target


class OwnNumbers(eqx.Module):
    """Of q's own draws, each (units, R) in the end: mean log weight, its variance, log mean weight."""

    elbo: Float[Array, "*units"]
    variance: Float[Array, "*units"]
    log_evidence: Float[Array, "*units"]


class Judged(eqx.Module):
    """Of every unit: numbers of the defended q and of q itself, the best draw, mean and sd of all draws."""

    numbers: UnitNumbers
    own: OwnNumbers
    best: Float[Array, "units d"]
    center: Float[Array, "units d"]
    scale: Float[Array, "units d"]


@eqx.filter_jit
def judged(
    key: Array, target: Target, own: AbstractOwn, shared: Float[Array, "r g"], batch: Batch, index: Array, count: int
) -> Judged:
    """Judges q of every unit by `count` draws at each draw of the globals.

    q's own draws say precisely how far its bound is from the evidence; those of the defended q, what q never draws.
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
            wide = weight if guarded is own else jax.vmap(lambda k: draw(guarded, k))(keys)[2]
            evidence = jax.nn.logsumexp(weight) - jnp.log(count)
            numbers = OwnNumbers(jnp.mean(weight), jnp.var(weight, ddof=1) / count, evidence)
            return summarise(wide), numbers, local, log_p

        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])
        numbers, own_numbers, local, log_p = jax.vmap(given_one)(keys, shared)
        local, log_p = local.reshape(-1, local.shape[-1]), jnp.ravel(log_p)
        best = local[jnp.argmax(jnp.where(jnp.isnan(log_p), -jnp.inf, log_p))]
        return numbers, own_numbers, best, jnp.mean(local, axis=0), jnp.std(local, axis=0)

    numbers, *others = jax.vmap(one)(index, own, batch)
    return Judged(UnitNumbers(*numbers), *others)
