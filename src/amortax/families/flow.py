"""What is a normalizing flow? A simple distribution pushed through invertible layers, then an affine map.

    u = m + A f_L( ... f_1(z) ... ),   z ~ base,   log q(u) = log base(z) - Σ_l log |det f_l'| - log det A

All layers are one module whose arrays have a leading axis, run by `jax.lax.scan`: compile time does not grow with their
number. The outermost map holds what most posteriors need: location and scales, and, without a context, correlations
too (A lower triangular), so that a flow for the globals starts as the full normal that it bends. The layers start near
the identity.
Normalizing flows as q: Rezende and Mohamed 2015.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._types import Context, whole_number
from .base import AbstractSingle, Component, standard_log_prob
from .normal import AbstractAffine, diagonal, full

START = 0.1  # share of the usual spread with which the last weights of a layer's network are drawn
FULL = 200  # largest dimension for which the outer map of a flow without context is full


class AbstractBase(eqx.Module):
    """The distribution at the inner end of a flow; without parameters."""

    size: eqx.AbstractVar[int]

    @property
    @abstractmethod
    def noise_size(self) -> int:
        """Standard normals that one draw takes."""

    @abstractmethod
    def draw(self, noise: Float[Array, " noise"]) -> Float[Array, " d"]:
        """The draw at standard normal `noise`."""

    @abstractmethod
    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of `value` in nats."""


class NormalBase(AbstractBase):
    """Independent standard normals."""

    size: int = eqx.field(static=True)

    @property
    def noise_size(self) -> int:
        """One normal for every number."""
        return self.size

    def draw(self, noise: Float[Array, " noise"]) -> Float[Array, " d"]:
        """The noise itself."""
        return noise

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        return standard_log_prob(value)


class AbstractLayer(eqx.Module):
    """An invertible map of R^d given a context."""

    @property
    @abstractmethod
    def cheap_inverse(self) -> bool:
        """Whether `inverse` costs about as much as `forward`."""

    @abstractmethod
    def forward(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""

    @abstractmethod
    def inverse(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `forward` maps to `value`, and the log determinant of `forward` there."""


class Flow(AbstractSingle):
    """A base, stacked layers and an affine map, the last two given a context."""

    size: int = eqx.field(static=True)
    base: AbstractBase
    layers: AbstractLayer  # every array with a leading axis of layers
    outer: AbstractAffine

    @property
    def cheap_log_prob(self) -> bool:
        """Whether the layers can be undone in one pass."""
        return self.layers.cheap_inverse

    @property
    def noise_size(self) -> int:
        """What the base takes."""
        return self.base.noise_size

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        start = self.base.draw(noise)
        bent, log_det = through(self.layers, start, context)
        value, log_scale = self.outer.stretch(bent, context)
        return value, self.base.log_prob(start) - log_det - log_scale

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        bent, log_scale = self.outer.shrink(value, context)
        start, log_det = back_through(self.layers, bent, context)
        return self.base.log_prob(start) - log_det - log_scale

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of the outer normal."""
        return self.outer.mean_and_sd(context)

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """What the outer map makes `value` of."""
        return self.outer.standardize(value, context)


def through(layers: AbstractLayer, value: Array, context: Context) -> tuple[Array, Array]:
    """`forward` of every layer, first to last, with the sum of log determinants."""
    arrays, rest = eqx.partition(layers, eqx.is_array)

    def step(carry: tuple[Array, Array], one: Any) -> tuple[tuple[Array, Array], None]:
        moved, log_det = eqx.combine(one, rest).forward(carry[0], context)
        return (moved, carry[1] + log_det), None

    return jax.lax.scan(step, (value, jnp.zeros(())), arrays)[0]


def back_through(layers: AbstractLayer, value: Array, context: Context) -> tuple[Array, Array]:
    """`inverse` of every layer, last to first, with the sum of log determinants of `forward`."""
    arrays, rest = eqx.partition(layers, eqx.is_array)

    def step(carry: tuple[Array, Array], one: Any) -> tuple[tuple[Array, Array], None]:
        moved, log_det = eqx.combine(one, rest).inverse(carry[0], context)
        return (moved, carry[1] + log_det), None

    return jax.lax.scan(step, (value, jnp.zeros(())), arrays, reverse=True)[0]


def stacked(build: Callable[[Array], Any], count: int, key: Array) -> Any:
    """`count` modules built from keys of their own, as one with a leading axis on every array."""
    # A loop of random numbers compiles several times faster than a batch of them.
    arrays = jax.lax.map(lambda k: eqx.filter(build(k), eqx.is_array), jax.random.split(key, count))
    return eqx.combine(arrays, eqx.filter_eval_shape(build, key))


def build_flow(
    recipe: Any, size: int, context_sizes: tuple[int, ...], layer: Callable[[Array], AbstractLayer], *, key: Array
) -> Flow:
    """The flow of `recipe` (its `layers`, `width`, `depth`, `base`, `outer`) on R^size whose layers `layer` builds."""
    whole_number(f"{recipe!r}: layers", recipe.layers, GuideError)
    layers_key, affine_key = jax.random.split(key)
    base = NormalBase(size) if recipe.base is None else recipe.base.build_base(size)
    free = not context_sizes and size <= FULL
    outer = recipe.outer or (full() if free else diagonal(width=recipe.width, depth=recipe.depth))
    layers = stacked(layer, recipe.layers, layers_key)
    built = outer.build(size, context_sizes, key=affine_key)
    if not isinstance(built, AbstractAffine):
        raise GuideError(f"{recipe!r}: outer must be am.diagonal() or am.full(), an affine map, got {outer!r}")
    return Flow(size, base, layers, built)
