"""How does q of the globals step along the natural gradient? By least squares, while all else keeps its optimizer.

Stochastic variational inference (Hoffman, Blei, Wang and Paisley 2013): with steps ρ_t = (t + τ)^-κ, or constant
ones, the natural parameters of q(v) move by ρ times the natural gradient of the ELBO. It is estimated by a least
squares fit of the slopes of log p - log q at the draws of v (see `families.base.AbstractNatural`). Two other ways were
not taken: of a regression of values of log p (Salimans and Knowles 2013) the noise grows with all other globals, and
the Fisher information in closed form times the gradient is off by the noise of the draws even where log p is of the
family. The fit is exact there from two draws (of a normal with a d x d covariance from 2 d), costs as much as the
gradient, and becomes the closed form as ρ falls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._errors import FitError
from .._types import PyTree
from ..families.base import AbstractNatural
from ..frames import prior_frame
from ..guide import Guide
from ..objectives.base import AbstractObjective
from ..objectives.elbo import ELBO
from ..objectives.estimators import shared_noises
from ..objectives.schedules import Schedule, at_step
from .schedule import Optimizer, adam


@dataclasses.dataclass(frozen=True)
class robbins_monro:
    """Steps ρ_t = (t + delay)^-exponent, t from 0: their sum is infinite, that of their squares is not.

    **Raises** `FitError` unless `delay` is a number from 1 and `exponent` in (0.5, 1].
    """

    delay: float = 10.0
    exponent: float = 0.7

    def __post_init__(self) -> None:
        numbers = all(isinstance(x, int | float) for x in (self.delay, self.exponent))
        if not (numbers and self.delay >= 1.0 and 0.5 < self.exponent <= 1.0):
            raise FitError(
                f"am.robbins_monro(delay={self.delay!r}, exponent={self.exponent!r}): delay must be a number from 1, "
                "exponent in (0.5, 1], or steps don't converge"
            )

    def __call__(self, step: int | Int[Array, ""]) -> Array:
        """The length of a step."""
        return (jnp.asarray(step, jnp.result_type(float)) + self.delay) ** -self.exponent


class NaturalSteps(optax.GradientTransformationExtraArgs):
    """An optimizer that is told, beside the gradient, the slope at each draw of the globals."""

    rate: Schedule

    def __new__(cls, inner: optax.GradientTransformationExtraArgs, rate: Schedule) -> NaturalSteps:
        """`inner`, with the length of its steps."""
        self = super().__new__(cls, *inner)
        self.rate = rate
        return self


class _State(NamedTuple):
    count: Array


@functools.lru_cache(maxsize=32)
def natural(rate: Schedule = robbins_monro(), rest: Optimizer | None = None) -> NaturalSteps:
    """Natural-gradient steps for q of the globals, `rest` (the default Adam) for everything else; for `optimizer=`.

    **Arguments:**

    - `rate`: length of a step, a number up to 1 or a schedule: `robbins_monro(delay, exponent)`. With rate 1 and all
      units a step is the exact coordinate update where the model is conjugate.
    - `rest`: any Optax transformation, for encoder, head, decoder and q of units' locals.

    q of the globals must be `exponential_family()`, `full()` or `diagonal()`, and the objective `ELBO`; `fit` says so
    otherwise. Longer steps than 0.5 follow the noise of few draws; `ELBO(num_particles=...)` gives more.

    **Raises** `FitError` if `rate` is a number outside (0, 1].
    """
    if not callable(rate) and not (isinstance(rate, int | float) and 0.0 < rate <= 1.0):
        raise FitError(f"am.natural(rate={rate!r}): a step must be a number in (0, 1], or a schedule of such numbers")
    if rest is not None and not callable(getattr(rest, "update", None)):
        raise FitError(f"am.natural(rest={rest!r}): rest must be an Optax transformation, optax.adam(1e-3) say")
    others = optax.with_extra_args_support(rest or adam())
    inner = optax.partition({"natural": _of_family(rate), "rest": others}, _labels)
    return NaturalSteps(inner, rate)


def _labels(params: PyTree) -> PyTree:
    joint, guide = jax.tree.map(lambda _: "rest", params)
    if guide.shared is not None:
        family = jax.tree.map(lambda _: "natural", params[1].shared.family)
        guide = eqx.tree_at(lambda g: g.shared.family, guide, family)
    return joint, guide


def _of_family(rate: Schedule) -> optax.GradientTransformationExtraArgs:
    """Steps of q(v), from `noise` and `slopes` of its draws."""

    def init(params: Any) -> Any:
        return _State(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **told: Any) -> tuple[Any, Any]:
        if "slopes" not in told:
            raise FitError("am.natural() must be optimizer= itself, not a part of an optax.chain or another wrapper")
        slopes, noise = told["slopes"], told["noise"]
        family = params[1].shared.family
        stepped = family.natural_step(noise, slopes, jnp.asarray(at_step(rate, state.count), slopes.dtype))
        change = jax.tree.map(jnp.subtract, stepped, family)
        return eqx.tree_at(lambda g: g[1].shared.family, updates, change), _State(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


class Seen(NamedTuple):
    """What a natural step is told of the draws of the globals, on the family's own scale."""

    noise: Float[Array, "draws noise"]
    slopes: Float[Array, "draws g"]  # of log p - log q, all units


Losses = Callable[[PyTree, Array | None], tuple[Array, Array]]


def gradient_and_slopes(
    loss_of: Losses, params: PyTree, guide: Guide, key: Array, count: int, num_units: Array
) -> tuple[tuple[Array, Array], PyTree, Seen]:
    """(loss and bound), gradient by all but q(v), and slopes at `count` draws of the globals."""
    assert guide.shared is not None
    noise = shared_noises(jax.random.fold_in(key, 0), guide, count)
    draws = jax.vmap(lambda e: guide.place_shared(e, 0)[0])(noise)
    losses, (gradient, slopes) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, draws)
    scale = prior_frame(guide.shared.whitening).factor
    return losses, gradient, Seen(noise, -count * num_units * slopes * scale)


def check_natural(optimizer: Optimizer, objective: AbstractObjective, guide: Guide) -> None:
    """Raises `FitError` where natural steps can't be taken."""
    if not isinstance(optimizer, NaturalSteps):
        return
    if guide.shared is None:
        raise FitError("am.natural() steps q of the globals, and the model has none; leave optimizer= out")
    family = guide.shared.family
    if not isinstance(family, AbstractNatural):
        raise FitError(
            f"am.natural() steps an exponential family, but q of the globals is {type(family).__name__}; give amortize "
            "shared_family=am.exponential_family(), am.full() or am.diagonal(), or leave optimizer= out"
        )
    if not isinstance(objective, ELBO):
        raise FitError(f"am.natural() steps along the natural gradient of am.ELBO(), not of {type(objective).__name__}")
    if float(at_step(optimizer.rate, 0)) >= 1.0 and objective.num_particles < family.draws_needed:
        raise FitError(
            f"am.natural() with a step of 1 needs {family.draws_needed} draws of the globals; give "
            f"objective=am.ELBO(num_particles={family.draws_needed}), or shorter steps"
        )
