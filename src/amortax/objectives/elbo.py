"""The evidence lower bound.

For B of N units, with v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v),

    ELBO = log p(v) - log q(v) + N/B Σ_i [ log p(d_i, u_i | v) - log q(u_i | e_i, v) ],

averaged over particles, and divided by N. How it is differentiated: see `estimators`.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Terms
from ..families.base import Component
from ..guide import Guide
from ..joint.joint import Joint
from .base import AbstractObjective, Loss, Minibatch
from .estimators import local_draws, mean_over, over_components, shared_draw, shared_noises, split_key


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient."""

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the ELBO per unit."""
        contexts = tuple(guide.encode(batch) for batch in minibatch.groups)
        shared_key, local_key = jax.random.split(key)

        def particle(noise: Array, key: Array) -> Array:
            def given(component: Component) -> Array:
                shared, log_shared = shared_draw(noise, component, guide, path_derivative=self.path_derivative)
                draws = [
                    local_draws(k, guide, joint, batch, context, shared, path_derivative=self.path_derivative)
                    for k, batch, context in zip(split_key(key, len(contexts)), minibatch.groups, contexts, strict=True)
                ]
                unit = jnp.concatenate([d.elbo for d in draws])
                return Terms(unit, draws[0].log_prior - log_shared).total(minibatch.scale) / minibatch.num_units

            return over_components(guide.shared_log_shares(), given)

        noises = shared_noises(shared_key, guide, self.num_particles)
        elbo = mean_over(particle, noises, split_key(local_key, self.num_particles))
        return Loss(-elbo, jax.lax.stop_gradient(elbo))
