"""The importance-weighted and the Rényi bound: several draws of each unit's locals, weighted within the unit.

For v ~ q(v), u_ik ~ q(u_i | e_i, v) and w_ik = p(d_i, u_ik | v) / q(u_ik | e_i, v),

    IW-ELBO   log p(v) - log q(v) + N/B Σ_i log 1/K Σ_k w_ik                       (Burda, Grosse, Salakhutdinov 2016)
    Rényi     log p(v) - log q(v) + N/B Σ_i 1/(1-α) log 1/K Σ_k w_ik^(1-α)         (Li and Turner 2016)

divided by N. Both lie below log p(data) for α ≥ 0; α = 0 is the first, α → 1 the ELBO. With draws v_r of the globals
weighted too, they are 1/(1-α) log mean_r [ p(v_r) / q(v_r) Π_i exp(bound_i(v_r)) ]^(1-α). How they are differentiated:
see `weighted`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array

from .._errors import FitError, ModelError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch, check_density, check_locals
from .estimators import mean_bound
from .score import check_choices, drawn_bounds
from .weighted import data_bound, unit_bounds


class IWELBO(AbstractObjective):
    """The bound by `num_particles` weighted draws of each unit given each of `num_shared_draws` draws of the globals.

    Tighter than the ELBO the more draws there are, and kinder to wide q: it asks that some draws be good, not all. The
    gradient is doubly reparametrised (Tucker and others 2019) unless `doubly_reparametrised` is False; where q draws a
    discrete choice (`am.factorised`), VIMCO (Mnih and Rezende 2016; see `score`).

    With `weigh_shared` the draws of the globals are weighted against each other as well, over all units: q(v) then
    reaches into the tails that the ELBO cuts short, for `num_shared_draws` times the work of a step (16 served 44
    globals). Every step takes all units.

    **Raises** `FitError` if a number of draws is no whole number from 1, or for `path_derivative`: it is biased with
    several particles (13.5 instead of 8.6 on a linear-Gaussian model with 8); with `weigh_shared`, for one draw of the
    globals, and from `fit` for batches of some units and for validation units.
    """

    num_particles: int = eqx.field(static=True, default=8)
    num_shared_draws: int = eqx.field(static=True, default=2, kw_only=True)
    doubly_reparametrised: bool = eqx.field(static=True, default=True, kw_only=True)
    path_derivative: bool = eqx.field(static=True, default=False, kw_only=True)
    weigh_shared: bool = eqx.field(static=True, default=False, kw_only=True)
    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check_draws("am.IWELBO", self)
        if self.path_derivative:
            raise FitError(
                f"am.IWELBO(num_particles={self.num_particles}, path_derivative=True): the path derivative alone is "
                "biased with several weighted particles; leave it out: the gradient is doubly reparametrised by "
                "default, and with one particle am.ELBO() has it"
            )

    def check(self, structure: Structure) -> None:
        """Refuses a model without what is weighted, and a single draw of a discrete choice."""
        _check_model("am.IWELBO", self, structure)

    @property
    def needs_all_units(self) -> bool:
        """To weigh the globals."""
        return self.weigh_shared

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the importance-weighted bound per unit."""
        return _loss(key, guide, joint, minibatch, self, alpha=0.0, doubly=self.doubly_reparametrised)


class Renyi(AbstractObjective):
    """Rényi's bound of order `alpha` by `num_particles` draws of each unit given each of `num_shared_draws` of globals.

    From 0, the importance-weighted bound, to 1, the ELBO, q becomes narrower; above 1 narrower still. `weigh_shared` as
    in `IWELBO`.

    **Raises** `FitError` unless `alpha` is a finite number from 0 (below 0 it is no lower bound), and each number of
    draws a whole number from 1; with `weigh_shared` as `IWELBO` does.
    """

    alpha: float = eqx.field(static=True)
    num_particles: int = eqx.field(static=True, default=8)
    num_shared_draws: int = eqx.field(static=True, default=2, kw_only=True)
    weigh_shared: bool = eqx.field(static=True, default=False, kw_only=True)
    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check_draws("am.Renyi", self)
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not (number and math.isfinite(self.alpha) and self.alpha >= 0):
            raise FitError(
                f"am.Renyi: alpha must be a finite number from 0, got {self.alpha!r}; below 0 it is no lower bound, "
                "0 is the importance-weighted bound, 1 the ELBO"
            )

    def check(self, structure: Structure) -> None:
        """Refuses a model without what is weighted, and a single draw of a discrete choice."""
        _check_model("am.Renyi", self, structure)

    @property
    def needs_all_units(self) -> bool:
        """To weigh the globals."""
        return self.weigh_shared

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus Rényi's bound per unit."""
        return _loss(key, guide, joint, minibatch, self, alpha=float(self.alpha), doubly=True)


def _loss(
    key: Array,
    guide: Guide,
    joint: Joint,
    minibatch: Minibatch,
    objective: IWELBO | Renyi,
    *,
    alpha: float,
    doubly: bool,
) -> Loss:
    count = objective.num_particles

    def units(
        key: Array, batch: Batch, context: Context, shared: Array, weight: float | Array = 1.0
    ) -> tuple[Array, Array]:
        unit = key, guide, joint, batch, context, shared
        if guide.draws_choice:
            return drawn_bounds(*unit, count=count, alpha=alpha)
        return unit_bounds(*unit, count=count, alpha=alpha, doubly_reparametrised=doubly, outer=weight)

    of_shared = 1 if guide.shared is None else objective.num_shared_draws
    if objective.weigh_shared:
        bound = data_bound(key, guide, minibatch, units, count=of_shared, alpha=alpha, doubly_reparametrised=doubly)
    else:
        bound = mean_bound(key, guide, minibatch, units, count=of_shared, path_derivative=True)
    return Loss(-bound, jax.lax.stop_gradient(bound))


def _check_draws(name: str, objective: IWELBO | Renyi) -> None:
    whole_number(f"{name}: num_particles", objective.num_particles, FitError)
    whole_number(f"{name}: num_shared_draws", objective.num_shared_draws, FitError)
    if objective.weigh_shared and objective.num_shared_draws == 1:
        raise FitError(
            f"{name}(weigh_shared=True): one draw of the globals has nothing to be weighed against; give "
            "num_shared_draws=16, say"
        )


def _check_model(name: str, objective: IWELBO | Renyi, structure: Structure) -> None:
    check_density(name, structure)
    if not objective.weigh_shared:
        check_locals(name, structure)
    elif not structure.size("global"):
        raise ModelError(f"{name}(weigh_shared=True): model '{structure.model}' has no globals to weigh; leave it out")
    elif structure.drawn:
        raise ModelError(
            f"{name}(weigh_shared=True): q draws {[site.name for site in structure.drawn]} of each unit, whose score "
            "is within one draw of the globals; leave weigh_shared out"
        )
    if structure.drawn:
        check_choices(f"{name}: num_particles", objective.num_particles)
