"""The evidence lower bound.

For B of N units, with v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v),

    ELBO = log p(v) - log q(v) + N/B Σ_i [ log p(d_i, u_i | v) - log q(u_i | e_i, v) ],

averaged over particles, and divided by N. How it is differentiated: see `estimators`.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array

from .._errors import FitError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch
from .estimators import local_draws, mean_bound


class ELBO(AbstractObjective):
    """`num_particles` draws of (globals, locals) per step; more cost time and lower the noise of the gradient.

    **Raises** `FitError` if `num_particles` is no whole number from 1.
    """

    num_particles: int = eqx.field(static=True, default=1)
    path_derivative: bool = eqx.field(static=True, default=True)
    trains_all: ClassVar[bool] = True

    def __check_init__(self) -> None:
        whole_number("am.ELBO: num_particles", self.num_particles, FitError)

    def check(self, structure: Structure) -> None:
        """Every model will do."""

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the ELBO per unit."""

        def units(key: Array, batch: Batch, context: Context, shared: Array) -> tuple[Array, Array]:
            draws = local_draws(key, guide, joint, batch, context, shared, path_derivative=self.path_derivative)
            return draws.elbo, draws.log_prior

        elbo = mean_bound(key, guide, minibatch, units, count=self.num_particles, path_derivative=self.path_derivative)
        return Loss(-elbo, jax.lax.stop_gradient(elbo))
