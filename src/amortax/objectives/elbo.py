"""The evidence lower bound.

For B of N units, with v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v),

    ELBO = log p(v) - log q(v) + N/B Σ_i [ log p(d_i, u_i | v) - log q(u_i | e_i, v) ],

averaged over particles, each with a v of its own, and divided by N.

The gradient is the path derivative ("sticking the landing", Roeder, Wu and Duvenaud 2017): log q is evaluated again
with the guide's parameters stopped and the draws not, which leaves out a term of mean zero whose variance does not
vanish at the optimum. Where a family's density is dear elsewhere than at its own draws, the plain estimator serves.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Batch, PyTree, Terms
from ..guide import Guide
from ..joint.joint import Joint
from .base import AbstractObjective, Loss


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient."""

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)

    def __call__(
        self, key: Array, guide: Guide, joint: Joint, groups: tuple[Batch, ...], num_units: Array
    ) -> Loss:
        """Minus the ELBO per unit."""
        contexts = tuple(guide.encode(batch) for batch in groups)
        scale = num_units / sum(context.shape[0] for context in contexts)

        def particle(key: Array) -> Array:
            log_weight = log_weights(key, guide, joint, groups, contexts, path_derivative=self.path_derivative)
            return log_weight.total(scale) / num_units

        elbo = jnp.mean(jax.vmap(particle)(jax.random.split(key, self.num_particles)))
        return Loss(-elbo, jax.lax.stop_gradient(elbo))


def log_weights(
    key: Array,
    guide: Guide,
    joint: Joint,
    groups: tuple[Batch, ...],
    contexts: tuple[Array, ...],
    *,
    path_derivative: bool,
) -> Terms:
    """`log p - log q` at one draw of the globals and of every unit's locals, units in the order of the groups.

    With `path_derivative`, log q is seen through its draws only.
    """
    shared_key, local_key = jax.random.split(key)
    shared, log_shared = guide.sample_shared(shared_key)
    path = path_derivative and guide.cheap_log_prob
    still_guide, still_joint, still_contexts = _stopped((guide, joint, contexts))
    parts, log_prior = [], jnp.zeros(())
    for number, (batch, context) in enumerate(zip(groups, contexts, strict=True)):
        group_key = jax.random.fold_in(local_key, number)
        local, log_q = guide.sample_locals(group_key, context, shared, batch, joint)
        if path:
            log_q = still_guide.locals_log_prob(local, still_contexts[number], shared, batch, still_joint)
        log_p = joint.log_prob(local, shared, batch)
        parts.append(log_p.unit - log_q)
        log_prior = log_p.shared
    if path:
        log_shared = still_guide.shared_log_prob(shared)
    return Terms(jnp.concatenate(parts), log_prior - log_shared)


def _stopped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
