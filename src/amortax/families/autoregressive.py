"""What is an autoregressive flow? Each number is moved as a masked network of those before it says.

    forward   y_i = t(x_i; network_i(x_1 .. x_{i-1}, context)),  order reversed between layers

One pass of a masked network (MADE, Germain et al. 2015) gives y of x; x of y takes d passes, number by number.

IAF (Kingma et al. 2016): draws go forward, in one pass; the density of any other value takes d passes a layer.
MAF (Papamakarios et al. 2017): the same layers the other way round; densities in one pass, draws in d.

Plain JAX as `coupling`; compare with FlowJAX in `benchmarks/flows.py`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._network import Linear, silu
from .._recipe import Recipe
from .._types import Context
from .flow import START, AbstractLayer, Flow, build_flow
from .heavy import student_t
from .normal import diagonal, full
from .transforms import AbstractTransform, affine


@dataclasses.dataclass(frozen=True)
class iaf(Recipe, slots=("family", "shared_family")):
    """Recipe of a `Flow` of `Inverse` autoregressive layers: fast draws, for training by the ELBO.

    Arguments as those of `coupling`; hidden layers are at least as wide as there are numbers. On one dimension the
    network sees the context alone.
    """

    layers: int = 4
    transform: Recipe = affine()
    width: int = 64
    depth: int = 1
    base: student_t | None = None
    outer: diagonal | full | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Flow:
        """The family on R^size."""

        def layer(key: Array) -> Inverse:
            network = Masked(size, context_sizes, self.transform.build(), self.width, self.depth, key=key)
            return Inverse(network)

        return build_flow(self, size, context_sizes, layer, key=key)


@dataclasses.dataclass(frozen=True)
class maf(Recipe, slots=("family", "shared_family")):
    """Recipe of a `Flow` of `Autoregressive` layers: fast densities, for training on given values (forward KL).

    Arguments as those of `coupling`; hidden layers are at least as wide as there are numbers. On one dimension the
    network sees the context alone.
    """

    layers: int = 4
    transform: Recipe = affine()
    width: int = 64
    depth: int = 1
    base: student_t | None = None
    outer: diagonal | full | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Flow:
        """The family on R^size."""

        def layer(key: Array) -> Autoregressive:
            network = Masked(size, context_sizes, self.transform.build(), self.width, self.depth, key=key)
            return Autoregressive(network)

        return build_flow(self, size, context_sizes, layer, key=key)


class Masked(eqx.Module):
    """A transform of every number by a network of those before it and of the context."""

    transform: AbstractTransform
    layers: tuple[Linear, ...]
    size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        context_sizes: tuple[int, ...],
        transform: AbstractTransform,
        width: int,
        depth: int,
        *,
        key: Array,
    ) -> None:
        keys = jax.random.split(key, depth + 1)
        width = max(width, size)  # with fewer units some numbers would be seen by none
        sizes, self.size, self.transform = (size - 1, *context_sizes), size, transform  # nothing follows the last
        hidden = tuple(Linear(sizes if i == 0 else (width,), width, key=keys[i]) for i in range(depth))
        last = Linear((width,) if depth else sizes, size * transform.count, key=keys[depth])
        self.layers = (*hidden, jax.tree.map(lambda w: START * w, last))

    def _masks(self) -> list[np.ndarray]:
        """What of a layer's first input each of its outputs may see; context is seen by all."""
        seen = np.arange(1, self.size)  # x_i is number i; a unit of degree k sees those up to k
        masks = []
        for layer in self.layers[:-1]:
            degrees = np.arange(layer.weights[0].shape[-1]) % self.size
            masks.append(seen[:, None] <= degrees[None, :])
            seen = degrees
        degrees = np.tile(np.arange(self.size), self.transform.count)
        return [*masks, seen[:, None] <= degrees[None, :]]

    def told(self, value: Float[Array, " d"], context: Context) -> Float[Array, "count d"]:
        """The free numbers of the transform; those of number i do not depend on numbers from i."""
        inputs = (value[:-1], *context)
        for layer, mask in zip(self.layers, self._masks(), strict=True):
            if layer is not self.layers[0]:
                inputs = (silu(inputs[0]),)
            weights = (jnp.where(mask, layer.weights[0], 0.0), *layer.weights[1:])
            inputs = (eqx.tree_at(lambda linear: linear.weights, layer, weights)(*inputs),)
        return inputs[0].reshape(self.transform.count, self.size)

    def at_once(self, value: Array, context: Context) -> tuple[Array, Array]:
        """y of x, and the log determinant, in one pass."""
        image, log_slopes = self.transform.forward(value, self.told(value, context))
        return image, jnp.sum(log_slopes)

    def one_by_one(self, value: Array, context: Context) -> tuple[Array, Array]:
        """x of y, and the log determinant of `at_once` there, in d passes: pass i settles number i."""

        def settle(found: Array, _: None) -> tuple[Array, None]:
            return self.transform.inverse(value, self.told(found, context))[0], None

        found, _ = jax.lax.scan(settle, jnp.zeros_like(value), None, length=self.size - 1)
        found, log_slopes = self.transform.inverse(value, self.told(found, context))
        return found, jnp.sum(log_slopes)


class Inverse(AbstractLayer):
    """A layer of IAF: draws in one pass."""

    network: Masked
    cheap_inverse: ClassVar[bool] = False

    def forward(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""
        image, log_det = self.network.at_once(value, context)
        return image[::-1], log_det

    def inverse(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `forward` maps to `value`, and the log determinant of `forward` there."""
        return self.network.one_by_one(value[::-1], context)


class Autoregressive(AbstractLayer):
    """A layer of MAF: densities in one pass."""

    network: Masked
    cheap_inverse: ClassVar[bool] = True

    def forward(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""
        image, log_det = self.network.one_by_one(value, context)
        return image[::-1], -log_det

    def inverse(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `forward` maps to `value`, and the log determinant of `forward` there."""
        start, log_det = self.network.at_once(value[::-1], context)
        return start, -log_det
