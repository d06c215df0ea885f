"""The evidence lower bound.

For B of N units, with v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v),

    ELBO = log p(v) - log q(v) + N/B Σ_i [ log p(d_i, u_i | v) - log q(u_i | e_i, v) ],

averaged over particles, and divided by N. Particles come in pairs with v on opposite sides of the middle of q(v): what
is linear in v, among it all noise of the choice of a minibatch, then cancels from the gradient of the spread of q(v).

The gradient is the path derivative ("sticking the landing", Roeder, Wu and Duvenaud 2017): log q is evaluated again
with the guide's parameters stopped and the draws not, which leaves out a term of mean zero whose variance does not
vanish at the optimum. Far from the optimum that term may be the smaller noise, so each unit's locals get a share of it
(see `path_share`). Where a family's density is dear elsewhere than at its own draws, the plain estimator serves.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch, PyTree, Terms
from ..guide import Guide
from ..joint.joint import Joint
from .base import AbstractObjective, Loss


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient."""

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)

    def __call__(self, key: Array, guide: Guide, joint: Joint, groups: tuple[Batch, ...], num_units: Array) -> Loss:
        """Minus the ELBO per unit."""
        contexts = tuple(guide.encode(batch) for batch in groups)
        scale = num_units / sum(context.shape[0] for context in contexts)

        def particle(shared_key: Array, local_key: Array, mirrored: Array) -> Array:
            draw = shared_draw(shared_key, guide, mirrored)
            log_weight = log_weights(local_key, guide, joint, groups, contexts, draw, self.path_derivative)
            return log_weight.total(scale) / num_units

        shared_key, local_key = jax.random.split(key)
        pairs = jnp.repeat(jax.random.split(shared_key, (self.num_particles + 1) // 2), 2)[: self.num_particles]
        mirrored = jnp.arange(self.num_particles) % 2 == 1
        elbo = jnp.mean(jax.vmap(particle)(pairs, jax.random.split(local_key, self.num_particles), mirrored))
        return Loss(-elbo, jax.lax.stop_gradient(elbo))


def shared_draw(key: Array, guide: Guide, mirrored: bool | Array = False) -> tuple[Array, Array]:
    """A draw of the globals, or its mirror image, and its log density."""
    shared, log_q = guide.sample_shared(key)
    return jnp.where(mirrored, guide.mirror_shared(shared), shared), log_q


def log_weights(
    key: Array,
    guide: Guide,
    joint: Joint,
    groups: tuple[Batch, ...],
    contexts: tuple[Array, ...],
    draw: tuple[Array, Array],
    path_derivative: bool = False,
) -> Terms:
    """`log p - log q` at a draw of the globals, with one of every unit's locals, units in the order of the groups.

    With `path_derivative`, log q is seen through its draws only, as far as `path_share` says.
    """
    shared, log_shared = draw
    path = path_derivative and guide.cheap_log_prob
    still_guide, still_joint, still_contexts = _stopped((guide, joint, contexts))
    parts, log_prior = [], jnp.zeros(())
    for number, (batch, context) in enumerate(zip(groups, contexts, strict=True)):
        group_key = jax.random.fold_in(key, number)
        local, log_q = guide.sample_locals(group_key, context, shared, batch, joint)
        if path and guide.local is not None:

            def still_log_q(u: Array, v: Array, context: Array = still_contexts[number], batch: Batch = batch) -> Array:
                return still_guide.locals_log_prob(u, context, v, batch, still_joint)

            still_local, still_shared = _stopped((local, shared))
            share = path_share(still_local, still_shared, still_log_q, still_joint, batch)
            log_q = share * still_log_q(local, shared) + (1.0 - share) * log_q
        log_p = joint.log_prob(local, shared, batch)
        parts.append(log_p.unit - log_q)
        log_prior = log_p.shared
    if path:
        log_shared = still_guide.shared_log_prob(shared)
    return Terms(jnp.concatenate(parts), log_prior - log_shared)


def path_share(
    local: Float[Array, "units d"],
    shared: Float[Array, " g"],
    log_q: Callable[[Array, Array], Array],
    joint: Joint,
    batch: Batch,
) -> Float[Array, " units"]:
    """Share of the path derivative in the gradient of every unit's log q, 0 to 1; no gradient passes through it.

    The score that the path derivative leaves out has mean zero given v, so any share that does not depend on the
    unit's own noise is unbiased. The best one is the slope of the regression of ∇_u log p on ∇_u log q: 1 at the
    optimum, (sd of q / sd of p)² where q is too narrow, and there the path derivative alone, with noise of order
    1 / sd of q, would drown all else and training would diverge. Units in even places use the slope over the odd
    ones, and the other way round; a single unit takes 1.
    """
    if local.shape[0] < 2:
        return jnp.ones(local.shape[0])
    slope = jax.grad(lambda u: jnp.sum(log_q(u, shared)))(local)
    along = jax.jvp(lambda u: joint.log_prob(u, shared, batch).unit, (local,), (slope,))[1]
    square = jnp.sum(slope**2, axis=1)
    odd = jnp.arange(local.shape[0]) % 2 == 1

    def regression(chosen: Array) -> Array:
        across, within = jnp.sum(jnp.where(chosen, along, 0.0)), jnp.sum(jnp.where(chosen, square, 0.0))
        return jax.lax.stop_gradient(jnp.clip(across / jnp.maximum(within, 1e-30), 0.0, 1.0))

    return jnp.where(odd, regression(~odd), regression(odd))


def _stopped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
