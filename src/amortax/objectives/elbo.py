"""The evidence lower bound.

For B of N units, with v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v),

    ELBO = log p(v) - log q(v) + N/B Σ_i [ log p(d_i, u_i | v) - log q(u_i | e_i, v) ],

averaged over particles, and divided by N. How it is differentiated: see `estimators`.

Training may descend another weighting of it, which is never what is reported:

    N/B Σ_i log p(d_i | u_i, v) - β N max(λ, 1/B Σ_i KL_i),    KL_i = log q(u_i | e_i, v) - log p(u_i | v)

in place of the sum: β rises to 1 while a decoder is still poor (Bowman and others 2016) or stays elsewhere (Higgins and
others 2017), and λ nats per unit are free (Kingma and others 2016). The globals' part keeps its weight.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import FitError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch, check_density, check_numeric, weighed
from .estimators import Draws, local_draws, mean_bound
from .labels import label_log_prob
from .schedules import Schedule, at_step, check_schedule, settled
from .score import check_choices, check_relaxable, drawn_bounds, relaxed_bounds


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient.

    `kl_weight` (β) is a number or a schedule, `am.warm_up(1000)`; `free_bits` (λ) are nats per unit, in the mean over
    units of a step that are padded to the same length. A q trained to the end at β other than 1 is not the posterior:
    for a normal model it is that of the likelihood to the power 1/β, and k-hat does not see it, coverage does.

    `classifier_weight` adds so many times log q(labels | x), per unit, to what is trained (see `labels`): for discrete
    sites that are observed in some units and that numbers of the unit follow.

    Where q draws a unit's discrete choice (`am.factorised`), each particle has `num_choices` draws of it, which are one
    another's baseline in the score function (see `score`). `straight_through`, a temperature, puts the Gumbel-softmax
    gradient through one draw in its place (Jang, Gu and Poole 2017), for sites of two values that the model uses as
    numbers (`a + b * c`; an index or `jnp.where(c, ...)` lets no gradient through). It has less noise and is BIASED:
    training ends elsewhere than at the best bound, by how much nobody knows. The record says so.

    **Raises** `FitError` if `num_particles` is no whole number from 1, `num_choices` none from 2, or a weight,
    `free_bits` or `straight_through` no finite number from 0.
    """

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)
    kl_weight: Schedule = eqx.field(static=True, default=1.0, kw_only=True)
    free_bits: float = eqx.field(static=True, default=0.0, kw_only=True)
    classifier_weight: float = eqx.field(static=True, default=0.0, kw_only=True)
    num_choices: int = eqx.field(static=True, default=4, kw_only=True)
    straight_through: float = eqx.field(static=True, default=0.0, kw_only=True)
    needs_all_units: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    def __check_init__(self) -> None:
        whole_number("am.ELBO: num_particles", self.num_particles, FitError)
        check_choices("am.ELBO: num_choices", self.num_choices)
        check_schedule("am.ELBO: kl_weight", self.kl_weight)
        for name in ("free_bits", "classifier_weight", "straight_through"):
            value = getattr(self, name)
            if callable(value) or not (isinstance(value, int | float) and 0.0 <= value < float("inf")):
                raise FitError(f"am.ELBO: {name} must be a finite number from 0, got {value!r}")

    @property
    def reweighted(self) -> bool:
        """Whether training descends something else than the bound."""
        return self.kl_weight != 1.0 or self.free_bits > 0

    def check(self, structure: Structure) -> None:
        """Any model with a density, unless `kl_weight` or `free_bits` need locals, or `classifier_weight` labels."""
        check_density("am.ELBO", structure)
        if self.reweighted:
            check_numeric("am.ELBO with kl_weight or free_bits", structure)
        if self.straight_through:
            check_relaxable(structure)
        if self.classifier_weight and not any(site in structure.learned for site in structure.labels.values()):
            raise FitError(
                f"am.ELBO(classifier_weight={self.classifier_weight}) needs a discrete site that some units observe "
                "and some miss, with numeric locals beside it; this model has none: leave it out"
            )

    @property
    def teaches_labels(self) -> bool:
        """By `classifier_weight`."""
        return self.classifier_weight > 0

    @property
    def bias(self) -> str:
        """Of `straight_through`."""
        if not self.straight_through:
            return ""
        return f"straight-through Gumbel-softmax at temperature {self.straight_through:g} for the discrete choice"

    def is_settled(self, step: int) -> bool:
        """Whether `kl_weight` is."""
        return settled(self.kl_weight, step)

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the ELBO per unit, reweighted if so asked, and the ELBO itself."""
        path = self.path_derivative
        label_key, key = jax.random.split(key) if self.classifier_weight else (key, key)

        def units(key: Array, batch: Batch, context: Context, shared: Array) -> tuple[Array, Array]:
            unit = key, guide, joint, batch, context, shared
            if not guide.draws_choice:
                draws = local_draws(*unit, path_derivative=path)
                return draws.elbo, draws.log_prior
            if self.straight_through:
                return relaxed_bounds(*unit, temperature=self.straight_through)
            return drawn_bounds(*unit, count=self.num_choices, alpha=1.0)

        elbo = mean_bound(key, guide, minibatch, units, count=self.num_particles, path_derivative=path)
        if self.classifier_weight:
            told = self._label_log_prob(label_key, guide, joint, minibatch)
            return Loss(-elbo - self.classifier_weight * told, jax.lax.stop_gradient(elbo))
        if not self.reweighted:
            return Loss(-elbo, jax.lax.stop_gradient(elbo))

        def reweighted(key: Array, batch: Batch, context: Context, shared: Array) -> tuple[Array, Array]:
            # What is left out by the path derivative has mean zero only where it isn't cut off at the free bits.
            draws = local_draws(key, guide, joint, batch, context, shared, path_derivative=path and not self.free_bits)
            divergence = self._divergence(draws, joint, batch, shared)
            weight = at_step(self.kl_weight, minibatch.step)
            cut = jnp.where(jnp.mean(weighed(divergence, batch)) > self.free_bits, divergence, self.free_bits)
            return draws.elbo + divergence - weight * cut, draws.log_prior

        value = mean_bound(key, guide, minibatch, reweighted, count=self.num_particles, path_derivative=path)
        return Loss(-value, jax.lax.stop_gradient(elbo))

    def _label_log_prob(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Array:
        """Mean over units of log q(labels | e, v), at one v."""
        shared = jax.lax.stop_gradient(guide.sample_shared(key)[0])
        each = [
            weighed(label_log_prob(guide, joint, batch, guide.encode(batch), shared), batch)
            for batch in minibatch.groups
        ]
        return jnp.mean(jnp.concatenate(each))

    def _divergence(self, draws: Draws, joint: Joint, batch: Batch, shared: Array) -> Array:
        """log q(u | e, v) - log p(u | v) of every unit."""
        over_units = jax.vmap(joint.unit_log_prior, in_axes=(0, None, 0))
        log_prior = jax.vmap(lambda local: over_units(local, shared, batch))(draws.local)
        return jnp.sum(jnp.exp(draws.log_share) * (draws.log_q - log_prior), axis=0)
