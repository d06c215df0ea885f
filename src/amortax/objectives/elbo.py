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

    def __call__(self, key: Array, guide: Guide, joint: Joint, batch: Batch, num_units: Array) -> Loss:
        """Minus the ELBO per unit."""
        contexts = guide.encode(batch)
        scale = num_units / contexts.shape[0]

        def particle(key: Array) -> Array:
            log_weight = log_weights(key, guide, joint, batch, contexts, path_derivative=self.path_derivative)
            return log_weight.total(scale) / num_units

        elbo = jnp.mean(jax.vmap(particle)(jax.random.split(key, self.num_particles)))
        return Loss(-elbo, jax.lax.stop_gradient(elbo))


def log_weights(
    key: Array, guide: Guide, joint: Joint, batch: Batch, contexts: Array, *, path_derivative: bool
) -> Terms:
    """`log p - log q` at one draw, per unit and shared; with `path_derivative`, log q is seen through its draws only."""
    draws = guide.sample_and_log_prob(key, contexts, batch, joint)
    log_q = draws.log_q
    if path_derivative and guide.cheap_log_prob:
        still = _stopped((guide, joint, contexts))
        log_q = still[0].log_prob(draws.local, draws.shared, still[2], batch, still[1])
    return joint.log_prob(draws.local, draws.shared, batch) - log_q


def _stopped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
