"""How does a unit get variational parameters of its own? A few steps on its own ELBO, all units of a chunk at once.

    ELBO_i(θ_i) = E_q(v) E_q(u | θ_i, v) [ log p(d_i, u | v) - log q(u | θ_i, v) ],

by the path derivative (Roeder, Wu and Duvenaud 2017), which has no noise at the exact posterior, with Adam. A normal
starts at the mode, found by Newton steps with a damping that falls where they succeed and rises where they don't
(Levenberg and Marquardt), from the best of the encoder's draws and from the prior's center; the better one is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import cholesky, solve_lower
from .._types import Batch, trainable
from ..frames import bounded, positive
from .own import AbstractOwn, Given, OwnNormal, at_point
from .target import Target

NEWTON_STEPS = 40
ADAM_STEPS = 200
RATE = {"normal": 0.05, "context": 0.03}  # of Adam at its first step, falling to zero by a cosine
PARTICLES = 32  # draws of a unit in one step, over all draws of the globals


def modes(
    target: Target, start: Float[Array, "units d"], shared: Float[Array, " g"], batch: Batch
) -> Float[Array, "units d"]:
    """Points near the mode of log p(d, u | v) of every unit, in the numbers of the prior's frame; `start` is in u."""

    def one(start: Array, unit: Batch) -> Array:
        prior = target.prior_frame(unit)

        def density(free: Array) -> Array:
            return target.log_prob(prior.place(free), shared, unit)

        found = [ascend(density, x) for x in (prior.take(start), jnp.zeros_like(start))]
        values = jnp.stack([value for _, value in found])
        return jnp.where(_ranked(values)[0] >= _ranked(values)[1], found[0][0], found[1][0])

    return jax.vmap(one)(start, batch)


def ascend(
    density: Callable[[Array], Array], start: Float[Array, " d"], steps: int = NEWTON_STEPS
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """The end of damped Newton steps uphill, and the density there; never below where it started."""
    eye = jnp.eye(start.shape[0])

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        point, value, damping = carry
        factor = cholesky(positive(-jax.hessian(density)(point)) + damping * eye)
        root = solve_lower(factor, eye)
        move = bounded(root.T @ (root @ jax.grad(density)(point)))
        reached = point + jnp.where(jnp.isfinite(move), move, 0.0)
        there = density(reached)
        better = there > value
        damping = jnp.clip(jnp.where(better, damping / 4.0, damping * 4.0 + 0.1), 1e-6, 1e8)
        return jnp.where(better, reached, point), jnp.where(better, there, value), damping

    point, value, _ = jax.lax.fori_loop(0, steps, step, (start, density(start), jnp.asarray(1.0)))
    return point, value


def _ranked(values: Array) -> Array:
    """With what is no number below everything."""
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


@eqx.filter_jit
def normals(target: Target, start: Array, center: Array, batch: Batch) -> OwnNormal:
    """Laplace approximations of every unit at draws `center` of the globals, from points `start` (units, d)."""
    return jax.vmap(at_point)(modes(target, start, center, batch))


@eqx.filter_jit
def optimised(
    key: Array,
    target: Target,
    own: AbstractOwn,
    shared: Float[Array, "r g"],
    batch: Batch,
    index: Array,
    rate: float,
    steps: int = ADAM_STEPS,
) -> AbstractOwn:
    """The units' own q after Adam on their own ELBO; a unit's noise follows from the key and its index alone."""
    each = max(PARTICLES // shared.shape[0], 1)

    def one(index: Array, own: AbstractOwn, unit: Batch) -> AbstractOwn:
        given = jax.vmap(lambda v: own.given(v, unit, target))(shared)
        free, fixed = eqx.partition(own, trainable(own))

        def loss(free: Any, key: Array) -> Array:
            moving, still = eqx.combine(free, fixed), eqx.combine(jax.lax.stop_gradient(free), fixed)
            cheap = target.guide.cheap_log_prob or isinstance(own, OwnNormal)

            def bound(key: Array, given: Given) -> Array:
                local, log_q = moving.draw(key, given, unit, target)
                log_q = still.log_prob(local, given, unit, target) if cheap else log_q
                return target.log_prob(local, given.shared, unit) - log_q

            keys = jax.random.split(key, (shared.shape[0], each))
            return -jnp.mean(jax.vmap(lambda k, g: jax.vmap(lambda k: bound(k, g))(k))(keys, given))

        return eqx.combine(climbed(loss, free, jax.random.fold_in(key, index), rate, steps), fixed)

    return jax.vmap(one)(index, own, batch)


def climbed(loss: Callable, free: Any, key: Array, rate: float, steps: int) -> Any:
    """`free` after Adam on `loss(free, key)`, whose steps fall to zero; a slope that is not finite is no step."""
    import optax

    optimizer = optax.chain(
        optax.clip_by_global_norm(100.0), optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99)
    )

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        free, state = carry
        slope = jax.grad(loss)(free, key)
        update, moved = optimizer.update(slope, state)
        good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(slope)]))
        after = (eqx.apply_updates(free, update), moved)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, (free, state)), None

    return jax.lax.scan(step, (free, optimizer.init(free)), jax.random.split(key, steps))[0][0]
