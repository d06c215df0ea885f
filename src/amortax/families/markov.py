"""What is a normal of a series? One whose every step is told the step before: its precision is block tridiagonal.

With T steps of d numbers, in the standardised numbers ε_t,

    z_t = m_t + A_t (z_{t-1} - m_{t-1}) + L_t ε_t,    L_t lower triangular,

so that log q is the sum of T normals, and a draw a linear recurrence, which an associative scan runs in log T rounds on
an accelerator; a CPU takes the T steps one by one (30 times faster there with four numbers a step,
`benchmarks/series.py`). The posterior of a linear-Gaussian state space model is such a normal (Rauch, Tung and Striebel
1965); numbers that are independent given their neighbours have no better one. A, L and m of every step come from the
context.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import GuideError
from .._linalg import LARGEST, solve_lower
from .._network import over_rows
from .._recipe import Recipe
from .._types import Context
from .base import Conditioner, bounded_log_scale, triangular
from .layout import Place
from .normal import AbstractAffine


@dataclasses.dataclass(frozen=True, kw_only=True)
class markov(Recipe, slots=("family",)):
    """Recipe of `Markov`, for locals along a time axis.

    **Arguments:**

    - `layout`: where the numbers of every site stand; None: filled in from the model by `amortize`. The first axis of
      length above one, an inner plate or an axis of the event, is time, and the same for all sites; so the numbers of a
      series of one step are taken for steps. As many numbers without that axis as a step has are the step before.
    - `width`, `depth`: hidden layers between a context and the parameters.
    - `by_step`: whether every step has a context of its own, and all the same network; None: filled in by `amortize`,
      True beside an encoder of series that are as long.

    **Raises** `GuideError` when built without a layout, where sites have no time axis in common, or for more than 16
    numbers a step.
    """

    width: int = 64
    depth: int | None = None
    layout: tuple[Place, ...] | None = None
    by_step: bool | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Markov:
        """The family on R^size."""
        if self.layout is None:
            raise GuideError(
                "am.markov() needs the sites of a model to know its steps; give it as family= to am.amortize"
            )
        index = steps_of(self.layout, size)
        length, width = index.shape
        if width > LARGEST:
            raise GuideError(f"am.markov(): {width} numbers in each of {length} steps; {LARGEST} are the most")
        below = width * (width - 1) // 2
        if self.by_step:
            count, means = 2 * width + below + width**2, width
        else:
            count, means = 2 * size + length * below + (length - 1) * width**2, size
        parameters = Conditioner(count, means, context_sizes, self.width, self.depth or 0, key=key)
        return Markov(size, tuple(map(tuple, index.tolist())), parameters, bool(self.by_step))


def steps_of(layout: tuple[Place, ...], size: int) -> np.ndarray:
    """Positions (T, d) of the numbers of every step, those from which a series starts before the others."""
    parts, start, shapes = [], 0, [tuple(shape) for _, shape, _ in layout]
    for shape in shapes:
        places = start + np.arange(int(np.prod(shape))).reshape(shape)
        axis = next((i for i, n in enumerate(shape) if n > 1), 0)
        parts.append(np.moveaxis(places, axis, 0).reshape(places.shape[axis] if shape else 1, -1))
        start += places.size
    before = [part for part in parts if len(part) == 1]
    after = [part for part in parts if len(part) > 1]
    if before and len({len(part) for part in after}) == 1:
        first, rest = np.concatenate(before, axis=1), np.concatenate(after, axis=1)
        parts = [np.concatenate([first, rest])] if first.shape[1] == rest.shape[1] else parts
    if start != size:
        raise GuideError(f"am.markov(layout=...) has {start} numbers but stands for {size}; leave layout out")
    if len({len(part) for part in parts}) > 1:
        raise GuideError(
            f"am.markov(): the numeric locals have shapes {shapes}, whose first axes longer than one differ, so they "
            "have no time axis in common (numbers without one must be as many as a step has: then they are the step "
            "before the first); make the others globals, or give another family, such as am.diagonal()"
        )
    return np.concatenate(parts, axis=1)


class Markov(AbstractAffine):
    """Normals of all steps, each about a linear function of the step before."""

    size: int = eqx.field(static=True)
    steps: tuple[tuple[int, ...], ...] = eqx.field(static=True)  # positions (T, d) in the flat vector
    parameters: Conditioner  # of all steps, or, by step, of one
    by_step: bool = eqx.field(static=True, default=False)

    def stretch(self, standard: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The series whose innovations are `standard`, and the log determinant."""
        mean, factor, carry = self._split(context)
        moved = jnp.sum(factor * self._by_step(standard)[:, None, :], axis=-1)
        away = jax.lax.platform_dependent(carry, moved, cpu=in_steps, default=in_rounds)
        return self._flat(mean + away), _log_det(factor)

    def shrink(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The innovations of a series, and the log determinant of `stretch`."""
        mean, factor, carry = self._split(context)
        away = self._by_step(value) - mean
        before = jnp.concatenate([jnp.zeros_like(away[:1]), away[:-1]])
        own = away - jnp.sum(carry * before[:, None, :], axis=-1)
        return self._flat(jax.vmap(solve_lower)(factor, own)), _log_det(factor)

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Of every number, all steps before it integrated out."""
        mean, factor, carry = self._split(context)

        def step(covariance: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            carry, factor = now
            covariance = carry @ covariance @ carry.T + factor @ factor.T
            return covariance, jnp.sqrt(jnp.diagonal(covariance))

        _, sds = jax.lax.scan(step, jnp.zeros_like(factor[0]), (carry, factor))
        return self._flat(mean), self._flat(sds)

    def _split(self, context: Context) -> tuple[Float[Array, "T k"], Float[Array, "T k k"], Float[Array, "T k k"]]:
        """m, L and A of every step; A of the first is zero."""
        length, width = len(self.steps), len(self.steps[0])
        mean, log_scale, below, carry = self._numbers(context)
        scale = jnp.exp(bounded_log_scale(log_scale)).reshape(length, width)
        inside = jax.vmap(lambda x: triangular(x, width))(below.reshape(length, -1))
        factor = scale[:, :, None] * (inside + jnp.eye(width))
        carry = jnp.concatenate([jnp.zeros((1, width, width)), carry.reshape(length - 1, width, width)])
        return mean.reshape(length, width), factor, carry

    def _numbers(self, context: Context) -> list[Array]:
        """Means, free log scales, what is below the diagonals, and what is carried on to the steps after the first."""
        length, width = len(self.steps), len(self.steps[0])
        below = width * (width - 1) // 2
        if self.by_step:
            free = over_rows(lambda *told: self.parameters(told), *context)
            *found, carry = jnp.split(free, np.cumsum([width, width, below]), axis=1)
            return [*found, carry[1:]]
        return jnp.split(self.parameters(context), np.cumsum([self.size, self.size, length * below]))

    def _by_step(self, flat: Float[Array, " d"]) -> Float[Array, "T k"]:
        return flat[np.asarray(self.steps)]

    def _flat(self, by_step: Float[Array, "T k"]) -> Float[Array, " d"]:
        return jnp.ravel(by_step)[np.argsort(np.ravel(self.steps))]


def in_steps(carry: Float[Array, "T k k"], moved: Float[Array, "T k"]) -> Float[Array, "T k"]:
    """x_t = A_t x_(t-1) + b_t, from x_0 = 0, one step after the other."""

    def step(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        state = now[0] @ before + now[1]
        return state, state

    return jax.lax.scan(step, jnp.zeros_like(moved[0]), (carry, moved))[1]


def in_rounds(carry: Float[Array, "T k k"], moved: Float[Array, "T k"]) -> Float[Array, "T k"]:
    """The same, by putting affine maps together, neighbours first."""
    return jax.lax.associative_scan(_after, (carry, moved))[1]


def _after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """One affine map after another: of A x + b."""
    (a, b), (c, d) = first, second
    return c @ a, jnp.sum(c * b[..., None, :], axis=-1) + d


def _log_det(factor: Float[Array, "T k k"]) -> Float[Array, ""]:
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)))
