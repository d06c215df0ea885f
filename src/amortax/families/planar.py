"""What is a planar flow? Each layer moves space along one direction, by how far it is along another.

    y = x + û tanh(w·x + b),     û = u + (m(w·u) - w·u) w / |w|²,     m(a) = 0.999 (log(1 + (e - 1) eᵃ) - 1)

    log |det| = log(1 + w·û (1 - tanh²(w·x + b)))

The historical reference (Rezende and Mohamed 2015): one bend a layer, so it needs many. u, w and b follow the context.
The inverse needs one number, a = w·x, the root of an increasing function: found by halving and Newton steps.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._recipe import Recipe
from .._types import Context
from .base import Conditioner
from .flow import AbstractLayer, Flow, build_flow
from .heavy import student_t
from .normal import diagonal, full

HALVINGS, NEWTON = 20, 4
_SHIFT = float(np.log(np.e - 1.0))  # so that m(0) = 0: no bend at u = 0


@dataclasses.dataclass(frozen=True)
class planar(Recipe, slots=("family", "shared_family")):
    """Recipe of a `Flow` of `Planar` layers; `width` and `depth` of the networks from the context to u, w, b."""

    layers: int = 8
    width: int = 64
    depth: int = 1
    base: student_t | None = None
    outer: diagonal | full | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Flow:
        """The family on R^size."""

        def layer(key: Array) -> Planar:
            network, start = jax.random.split(key)
            told = Conditioner(2 * size + 1, 0, context_sizes, self.width, self.depth, key=network)
            # u starts small, but not at zero, where w and b would have no gradient; w at length 1 or so.
            scales = np.repeat([0.1, size**-0.5, 0.5], [size, size, 1])
            offset = jnp.asarray(scales, jnp.float32) * jax.random.normal(start, (2 * size + 1,))
            return Planar(eqx.tree_at(lambda c: c.offset, told, offset))

        return build_flow(self, size, context_sizes, layer, key=key)


class Planar(AbstractLayer):
    """One bend."""

    parameters: Conditioner
    cheap_inverse: ClassVar[bool] = False

    def _split(self, size: int, context: Context) -> tuple[Array, Array, Array]:
        """û, w and b."""
        free = self.parameters(context)
        u, w, b = free[:size], free[size : 2 * size], free[2 * size]
        along = u @ w
        bounded = 0.999 * (jax.nn.softplus(along + _SHIFT) - 1.0)  # above -0.999: the layer never folds
        return u + (bounded - along) * w / jnp.maximum(w @ w, 1e-12), w, b

    def forward(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""
        u, w, b = self._split(value.shape[0], context)
        bend = jnp.tanh(w @ value + b)
        return value + u * bend, jnp.log1p((u @ w) * (1.0 - bend**2))

    def inverse(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `forward` maps to `value`, and the log determinant of `forward` there."""
        u, w, b = self._split(value.shape[0], context)
        slope, target = u @ w, w @ value
        root = jax.lax.stop_gradient(_root(target, slope, b))
        # One more Newton step, whose derivative is that of the root (the implicit function theorem).
        bend = jnp.tanh(root + b)
        rate = jax.lax.stop_gradient(1.0 + slope * (1.0 - bend**2))
        along = root - (root + slope * bend - target) / rate
        bend = jnp.tanh(along + b)
        return value - u * bend, jnp.log1p(slope * (1.0 - bend**2))


def _root(target: Array, slope: Array, b: Array) -> Array:
    """a with a + slope tanh(a + b) = target; it lies within |slope| of the target."""

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        above = middle + slope * jnp.tanh(middle + b) > target
        return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

    def newton(_: Array | int, root: Array) -> Array:
        bend = jnp.tanh(root + b)
        return root - (root + slope * bend - target) / (1.0 + slope * (1.0 - bend**2))

    reach = jnp.abs(slope)
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (target - reach, target + reach))
    return jnp.clip(jax.lax.fori_loop(0, NEWTON, newton, 0.5 * (low + high)), low, high)
