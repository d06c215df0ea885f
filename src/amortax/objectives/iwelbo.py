"""The importance-weighted and the Rényi bound: several draws of each unit's locals, weighted within the unit.

For v ~ q(v), u_ik ~ q(u_i | e_i, v) and w_ik = p(d_i, u_ik | v) / q(u_ik | e_i, v),

    IW-ELBO   log p(v) - log q(v) + N/B Σ_i log 1/K Σ_k w_ik                       (Burda, Grosse, Salakhutdinov 2016)
    Rényi     log p(v) - log q(v) + N/B Σ_i 1/(1-α) log 1/K Σ_k w_ik^(1-α)         (Li and Turner 2016)

divided by N. Both lie below log p(data) for α ≥ 0; α = 0 is the first, α → 1 the ELBO. How they are differentiated: see
`weighted`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array

from .._errors import FitError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch, check_locals
from .estimators import mean_bound
from .score import check_choices, drawn_bounds
from .weighted import unit_bounds


class IWELBO(AbstractObjective):
    """The bound by `num_particles` weighted draws of each unit given each of `num_shared_draws` draws of the globals.

    Tighter than the ELBO the more draws there are, and kinder to wide q: it asks that some draws be good, not all. The
    gradient is doubly reparametrised (Tucker and others 2019) unless `doubly_reparametrised` is False; where q draws a
    discrete choice (`am.factorised`), VIMCO (Mnih and Rezende 2016; see `score`).

    **Raises** `FitError` if a number of draws is no whole number from 1, or for `path_derivative`: it is biased with
    several particles (13.5 instead of 8.6 on a linear-Gaussian model with 8).
    """

    num_particles: int = eqx.field(static=True, default=8)
    num_shared_draws: int = eqx.field(static=True, default=2, kw_only=True)
    doubly_reparametrised: bool = eqx.field(static=True, default=True, kw_only=True)
    path_derivative: bool = eqx.field(static=True, default=False, kw_only=True)
    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check_draws("am.IWELBO", self.num_particles, self.num_shared_draws)
        if self.path_derivative:
            raise FitError(
                f"am.IWELBO(num_particles={self.num_particles}, path_derivative=True): the path derivative alone is "
                "biased with several weighted particles; leave it out: the gradient is doubly reparametrised by "
                "default, and with one particle am.ELBO() has it"
            )

    def check(self, structure: Structure) -> None:
        """Refuses a model without locals, and a single draw of a discrete choice."""
        check_locals("am.IWELBO", structure)
        if structure.drawn:
            check_choices("am.IWELBO: num_particles", self.num_particles)

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the importance-weighted bound per unit."""
        doubly = self.doubly_reparametrised
        return _loss(key, guide, joint, minibatch, draws=(self.num_shared_draws, self.num_particles), doubly=doubly)


class Renyi(AbstractObjective):
    """Rényi's bound of order `alpha` by `num_particles` draws of each unit given each of `num_shared_draws` of globals.

    From 0, the importance-weighted bound, to 1, the ELBO, q becomes narrower; above 1 narrower still.

    **Raises** `FitError` unless `alpha` is a finite number from 0 (below 0 it is no lower bound), and each number of
    draws a whole number from 1.
    """

    alpha: float = eqx.field(static=True)
    num_particles: int = eqx.field(static=True, default=8)
    num_shared_draws: int = eqx.field(static=True, default=2, kw_only=True)
    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check_draws("am.Renyi", self.num_particles, self.num_shared_draws)
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not (number and math.isfinite(self.alpha) and self.alpha >= 0):
            raise FitError(
                f"am.Renyi: alpha must be a finite number from 0, got {self.alpha!r}; below 0 it is no lower bound, "
                "0 is the importance-weighted bound, 1 the ELBO"
            )

    def check(self, structure: Structure) -> None:
        """Refuses a model without locals, and a single draw of a discrete choice."""
        check_locals("am.Renyi", structure)
        if structure.drawn:
            check_choices("am.Renyi: num_particles", self.num_particles)

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus Rényi's bound per unit."""
        draws = (self.num_shared_draws, self.num_particles)
        return _loss(key, guide, joint, minibatch, draws=draws, alpha=float(self.alpha))


def _loss(
    key: Array,
    guide: Guide,
    joint: Joint,
    minibatch: Minibatch,
    *,
    draws: tuple[int, int],
    alpha: float = 0.0,
    doubly: bool = True,
) -> Loss:
    of_shared, of_locals = draws

    def units(key: Array, batch: Batch, context: Context, shared: Array) -> tuple[Array, Array]:
        unit = key, guide, joint, batch, context, shared
        if guide.draws_choice:
            return drawn_bounds(*unit, count=of_locals, alpha=alpha)
        return unit_bounds(*unit, count=of_locals, alpha=alpha, doubly_reparametrised=doubly)

    count = 1 if guide.shared is None else of_shared
    bound = mean_bound(key, guide, minibatch, units, count=count, path_derivative=True)
    return Loss(-bound, jax.lax.stop_gradient(bound))


def _check_draws(name: str, num_particles: int, num_shared_draws: int) -> None:
    whole_number(f"{name}: num_particles", num_particles, FitError)
    whole_number(f"{name}: num_shared_draws", num_shared_draws, FitError)
