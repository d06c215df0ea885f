"""What if no weights serve? Draws of q are led to the posterior by tempered SMC, then moved on by HMC.

Given the globals, particles go through q^(1-β) p^β from β = 0, where q's own draws are exact, to β = 1, by steps that
keep half of their effective number, with moves of Hamiltonian Monte Carlo between (Del Moral, Doucet and Jasra 2006).
Every draw v_s of the globals has a few particles of its own, of which one is the answer; without globals there are two
sets of half of all draws, which must agree. Then chains of HMC with fixed trajectories and jittered steps go on at
β = 1, one for each draw: draws of a unit are of as many chains, so that they are independent of each other.

All happens in the unit's chart, in which q is about standard normal. Samplers are BlackJAX's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import AnyArray, Batch
from .own import AbstractOwn, Defended, Given, defended
from .target import Target

PARTICLES, CROWD = 8, 4  # for each draw of the globals; for each draw without
FEW, SPREAD = 8, (0.001, 0.001, 0.998)  # numbers up to which SMC starts from nearly the prior, to find all modes
MOST_STEPS = 60  # of β
LEAPFROGS, MOVES = 6, 2  # in one move; moves between two steps of β
WANTED = 0.8  # acceptance
KEPT = 0.5  # of particles, in effect, by one step of β


class Led(eqx.Module):
    """Draws of every unit, and what says whether they arrived."""

    local: Float[Array, "*units draws d"]  # in the chart
    arrived: Float[Array, " units"]  # share of sets at β = 1
    log_evidence: Float[Array, "units sets"]


class Moved(eqx.Module):
    """Chains of every unit after some moves, in the chart."""

    local: Float[AnyArray, "*units draws d"]
    step: Float[AnyArray, "*units"]
    accepted: Float[AnyArray, "*units"]


def first_chains(led: Led) -> Moved:
    """The particles as chains, with the step of a standard normal (host arrays)."""
    units, _, size = led.local.shape
    step: Any = np.full(units, first_step(size), np.float32)
    return Moved(led.local, step, np.zeros_like(step))


def with_rows(chains: Moved, rows: np.ndarray, after: Moved) -> Moved:
    """All chains, with those of `rows` as they are after (host arrays)."""
    return jax.tree.map(lambda old, new: _put(old, rows, new), chains, after)


def _put(old: AnyArray, rows: np.ndarray, new: AnyArray) -> np.ndarray:
    whole = np.array(old)
    whole[rows] = new
    return whole


@eqx.filter_jit
def annealed(
    key: Array,
    target: Target,
    own: AbstractOwn,
    shared: Float[Array, "s g"],
    batch: Batch,
    index: Array,
    count: int,
) -> Led:
    """`count` draws of every unit by tempered SMC."""
    pooled = target.pooled
    sets, half = (2, -(-count // 2)) if pooled else (count, 1)
    particles = CROWD * half if pooled else PARTICLES
    shared = jnp.broadcast_to(shared[:1], (sets, shared.shape[1])) if pooled else shared[:count]

    def one(index: Array, own: AbstractOwn, unit: Batch) -> tuple[Array, Array, Array]:
        size = target.size(unit)

        def given_one(key: Array, shared: Array) -> tuple[Array, Array, Array]:
            led_key, pick_key = jax.random.split(key)
            guarded = Defended(own, SPREAD) if pooled and size <= FEW else defended(own, target)
            given = guarded.given(shared, unit, target)
            local, reached, evidence = _lead(led_key, guarded, given, unit, target, particles)
            return jax.random.permutation(pick_key, local)[:half], reached, evidence

        keys = jax.random.split(jax.random.fold_in(key, index), sets)
        local, reached, evidence = jax.lax.map(lambda pair: given_one(*pair), (keys, shared), batch_size=128)
        return local.reshape(-1, local.shape[-1])[:count], jnp.mean(reached >= 1.0), evidence

    return Led(*jax.vmap(one)(index, own, batch))


def _lead(
    key: Array, own: AbstractOwn, given: Given, unit: Batch, target: Target, particles: int
) -> tuple[Array, Array, Array]:
    """(particles (n, d) in the chart, the β that they reached, log evidence) of one set."""
    from blackjax.mcmc import hmc
    from blackjax.smc import adaptive_tempered, resampling, tempered

    chart = own.chart(given)

    def log_q(free: Array) -> Array:
        return own.log_prob(chart.place(free), given, unit, target) + chart.log_det

    def log_weight(free: Array) -> Array:
        place = chart.place(free)
        weight = target.log_prob(place, given.shared, unit) - own.log_prob(place, given, unit, target)
        return jnp.where(jnp.isnan(weight), -jnp.inf, weight)

    draw_key, key = jax.random.split(key)
    start = jax.vmap(lambda k: chart.take(own.draw(k, given, unit, target)[0]))(jax.random.split(draw_key, particles))
    size = start.shape[-1]
    kernel = hmc.build_kernel()

    def move(key: Array, state: hmc.HMCState, density: Callable) -> tuple:
        step_key, key = jax.random.split(key)
        step: Any = first_step(size) * jax.random.uniform(step_key, minval=0.5, maxval=1.2)
        return kernel(key, state, density, step, jnp.ones(size), LEAPFROGS)

    step = adaptive_tempered.build_kernel(log_q, log_weight, move, hmc.init, resampling.systematic, KEPT)

    def again(carry: tuple) -> Array:
        state, _, number, _ = carry
        return (state.tempering_param < 1.0) & (number < MOST_STEPS)

    def go(carry: tuple) -> tuple:
        state, key, number, evidence = carry
        state, info = step(jax.random.fold_in(key, number), state, MOVES, {})
        return state, key, number + 1, evidence + info.log_likelihood_increment

    state: Any
    state, _, _, evidence = jax.lax.while_loop(again, go, (tempered.init(start), key, 0, jnp.zeros(())))
    return state.particles, state.tempering_param, evidence


def first_step(size: int) -> float:
    """The size of a leapfrog step on `size` standard normals."""
    return 0.9 * size**-0.25


@eqx.filter_jit
def moved(
    key: Array,
    target: Target,
    own: AbstractOwn,
    shared: Float[Array, "s g"],
    batch: Batch,
    index: Array,
    chains: Moved,
    moves: int,
) -> Moved:
    """All chains after `moves` moves of HMC; a unit's step follows the acceptance of all its chains."""
    count, pooled = chains.local.shape[1], target.pooled
    axis = None if pooled else 0

    def one(index: Array, own: AbstractOwn, unit: Batch, chains: Moved) -> Moved:
        given = own.given(shared[0], unit, target) if pooled else jax.vmap(lambda v: own.given(v, unit, target))(shared)
        move = jax.vmap(_move, in_axes=(0, 0, None, None, axis, None, None))

        def go(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            free, step = carry
            free, rate = move(jax.random.split(key, count), free, step, own, given, unit, target)
            mean = jnp.mean(jnp.where(jnp.isnan(rate), 0.0, rate))
            return (free, step * jnp.exp(jnp.clip(mean - WANTED, -0.5, 0.1))), mean

        keys = jax.random.split(jax.random.fold_in(key, index), moves)
        (free, step), rate = jax.lax.scan(go, (chains.local, chains.step), keys)
        return Moved(free, step, jnp.mean(rate[moves // 2 :]))

    return jax.vmap(one)(index, own, batch, chains)


def _move(
    key: Array, free: Array, step: Any, own: AbstractOwn, given: Given, unit: Batch, target: Target
) -> tuple[Any, Any]:
    """(position, acceptance) of one chain after one trajectory, with a jittered step."""
    from blackjax.mcmc import hmc

    def density(free: Array) -> Array:
        value = target.log_prob(own.chart(given).place(free), given.shared, unit)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    step_key, key = jax.random.split(key)
    step = step * jax.random.uniform(step_key, minval=0.6, maxval=1.2)
    state = hmc.init(free, density)
    after, info = hmc.build_kernel()(key, state, density, step, jnp.ones(free.shape[0]), LEAPFROGS)
    return after.position, info.acceptance_rate


@eqx.filter_jit
def placed(
    target: Target, own: AbstractOwn, shared: Float[Array, "s g"], batch: Batch, local: Float[Array, "*units draws d"]
) -> Float[Array, "units draws d"]:
    """From the chart to unconstrained numbers."""

    def one(own: AbstractOwn, unit: Batch, local: Array) -> Array:
        if target.pooled:
            chart = own.chart(own.given(shared[0], unit, target))
            return jax.vmap(chart.place)(local)
        return jax.vmap(lambda v, x: own.chart(own.given(v, unit, target)).place(x))(shared, local)

    return jax.vmap(one)(own, batch, local)


@eqx.filter_jit
def completed(
    key: Array, target: Target, shared: Float[Array, "s g"], batch: Batch, index: Array, local: Array
) -> Float[Array, "units draws n"]:
    """Draws (units, s, d) with choices, drawn given the numbers, where these were summed."""
    pooled = target.pooled

    def one(index: Array, unit: Batch, local: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, index), local.shape[0])
        at = jax.vmap(target.with_choice, in_axes=(0, 0, None if pooled else 0, None))
        return at(keys, local, shared[0] if pooled else shared, unit)

    return jax.vmap(one)(index, batch, local)
