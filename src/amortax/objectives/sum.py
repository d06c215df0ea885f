"""Several objectives as one: `loss = Σ_j weight_j loss_j`, each with noise of its own.

ELBO and forward KL together are exact where the family holds the posterior, and elsewhere each cures what the other
does: the ELBO may drop modes, forward KL doesn't see the real units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import Array

from .._errors import FitError
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch


class Sum(AbstractObjective):
    """`Sum(ELBO(), ForwardKL())` trains on both; `weights` are all 1 unless given.

    The bound that it reports is that of the first objective which trains globals and learned parameters, if any does.

    **Raises** `FitError` without objectives, for what is none, or unless `weights` are as many positive finite numbers.
    """

    objectives: tuple[AbstractObjective, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, *objectives: AbstractObjective, weights: Sequence[float] | None = None) -> None:
        for given in objectives:
            if not isinstance(given, AbstractObjective):
                raise FitError(f"am.Sum takes objectives, am.Sum(am.ELBO(), am.ForwardKL()), got {given!r}")
        self.objectives = objectives
        self.weights = (1.0,) * len(objectives) if weights is None else tuple(float(w) for w in weights)
        if not objectives:
            raise FitError("am.Sum of no objectives; give some, am.Sum(am.ELBO(), am.ForwardKL())")
        if len(self.weights) != len(objectives) or not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise FitError(f"am.Sum: weights must be {len(objectives)} positive finite numbers, got {self.weights}")

    @property
    def trains_all(self) -> bool:
        """Whether one of them does."""
        return any(each.trains_all for each in self.objectives)

    def check(self, structure: Structure) -> None:
        """As each of them."""
        for each in self.objectives:
            each.check(structure)

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """The weighted sum."""
        keys = jax.random.split(key, len(self.objectives))
        losses = [each(k, guide, joint, minibatch) for each, k in zip(self.objectives, keys, strict=True)]
        first = next((i for i, each in enumerate(self.objectives) if each.trains_all), 0)
        value = sum(w * loss.value for w, loss in zip(self.weights[1:], losses[1:], strict=True))
        return Loss(self.weights[0] * losses[0].value + value, losses[first].elbo_per_unit)
