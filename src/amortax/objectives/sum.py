"""Several objectives as one: `loss = Σ_j weight_j loss_j`, each with noise of its own.

ELBO and forward KL together are exact where the family holds the posterior, and elsewhere each cures what the other
does: the ELBO may drop modes, forward KL doesn't see the real units.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import FitError
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch
from .schedules import Schedule, at_step, check_schedule, settled


class Sum(AbstractObjective):
    """`Sum(ELBO(), ForwardKL())` trains on both; `weights`, numbers or schedules (`am.warm_up`), are 1 unless given.

    The bound that it reports is that of the first objective which trains globals and learned parameters, if any does.

    **Raises** `FitError` without objectives, for what is none, or unless `weights` are as many finite numbers from 0 or
    schedules of such.
    """

    objectives: tuple[AbstractObjective, ...]
    weights: tuple[Schedule, ...] = eqx.field(static=True)

    def __init__(self, *objectives: AbstractObjective, weights: Sequence[Schedule] | None = None) -> None:
        for given in objectives:
            if not isinstance(given, AbstractObjective):
                raise FitError(f"am.Sum takes objectives, am.Sum(am.ELBO(), am.ForwardKL()), got {given!r}")
        self.objectives = objectives
        self.weights = (1.0,) * len(objectives) if weights is None else tuple(weights)
        if not objectives:
            raise FitError("am.Sum of no objectives; give some, am.Sum(am.ELBO(), am.ForwardKL())")
        if len(self.weights) != len(objectives):
            raise FitError(f"am.Sum: {len(objectives)} objectives but {len(self.weights)} weights; give one for each")
        for number, weight in enumerate(self.weights):
            check_schedule(f"am.Sum: weights[{number}]", weight)

    @property
    def trains_all(self) -> bool:
        """Whether one of them does."""
        return any(each.trains_all for each in self.objectives)

    @property
    def needs_all_units(self) -> bool:
        """Whether one of them does."""
        return any(each.needs_all_units for each in self.objectives)

    @property
    def bias(self) -> str:
        """Of any of them."""
        return "; ".join(each.bias for each in self.objectives if each.bias)

    @property
    def teaches_labels(self) -> bool:
        """Whether one of them does."""
        return any(each.teaches_labels for each in self.objectives)

    def check(self, structure: Structure) -> None:
        """As each of them."""
        for each in self.objectives:
            each.check(structure)

    def is_settled(self, step: int) -> bool:
        """Whether they and their weights are."""
        return all(x.is_settled(step) for x in self.objectives) and all(settled(w, step) for w in self.weights)

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """The weighted sum."""
        keys = jax.random.split(key, len(self.objectives))
        losses = [each(k, guide, joint, minibatch) for each, k in zip(self.objectives, keys, strict=True)]
        first = next((i for i, each in enumerate(self.objectives) if each.trains_all), 0)
        weights = [at_step(weight, minibatch.step) for weight in self.weights]
        value = sum((w * loss.value for w, loss in zip(weights, losses, strict=True)), jnp.zeros(()))
        return Loss(value, losses[first].elbo_per_unit)
