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

from .._errors import FitError
from .._types import Terms
from ..families.base import Component
from ..guide import Guide
from ..joint.joint import Joint
from .base import AbstractObjective, Loss, Minibatch
from .estimators import local_draws, mean_over, over_components, shared_draw, shared_noises, split_key
from .labels import label_log_prob


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient.

    `classifier_weight` adds so many times log q(labels | x), per unit, to what is trained (see `labels`): for discrete
    sites that are observed in some units and that numbers of the unit follow.
    """

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)
    classifier_weight: float = eqx.field(static=True, default=0.0, kw_only=True)

    def __check_init__(self) -> None:
        weight = self.classifier_weight
        if callable(weight) or not (isinstance(weight, int | float) and 0.0 <= weight < float("inf")):
            raise FitError(f"am.ELBO: classifier_weight must be a finite number from 0, got {weight!r}")

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the ELBO per unit."""
        if self.classifier_weight and not (guide.classifier is not None and joint.structure.labels):
            raise FitError(
                f"am.ELBO(classifier_weight={self.classifier_weight}) needs a discrete site that some units observe "
                "and some miss, with numeric locals beside it; this model has none: leave it out"
            )
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
        loss = Loss(-elbo, jax.lax.stop_gradient(elbo))
        if not self.classifier_weight:
            return loss
        shared, _ = shared_draw(noises[0], 0, guide)
        pairs = zip(minibatch.groups, contexts, strict=True)
        told = jnp.concatenate([label_log_prob(guide, joint, *pair, jax.lax.stop_gradient(shared)) for pair in pairs])
        return Loss(loss.value - self.classifier_weight * jnp.mean(told), loss.elbo_per_unit)
