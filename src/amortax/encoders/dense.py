"""A multilayer perceptron over the plain numbers of a unit."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._network import Linear, silu
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Features, Inputs, with_places

LARGEST = 10.0  # root mean square of a first layer's sums of many inputs; of most units they start near 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class dense(Recipe, slots=("encoder",)):
    """Recipe of `Dense`: `depth` hidden layers of `width`."""

    width: int = 64
    depth: int = 2

    def build(self, inputs: Inputs, *, key: Array) -> Dense:
        """The encoder for these inputs; elements along a plate of fixed size are numbers with places of their own."""
        return Dense(with_places(inputs, "am.dense()"), self.width, self.depth, key=key)


class Dense(AbstractEncoder):
    """`context = (h_depth, x)`, h the hidden layers; x itself, standardised, only where no wider than `width`.

    Of a wider x the sums of the first layer, a = W x + b, are bounded together: where their root mean square is above
    `LARGEST` they are scaled to it, and smaller ones stay as they are, exactly. A step of Adam moves every weight by
    its rate, whatever the gradient, and so a by the rate times Σ|x|. For a document of many rare words, each at up to
    30 scales among thousands of inputs, that is ten and more a step, and its locals go where the likelihood is flat.
    """

    features: Features
    layers: tuple[Linear, ...]
    context_sizes: tuple[int, ...] = eqx.field(static=True)
    keeps_input: bool = eqx.field(static=True)

    def __init__(self, inputs: Inputs, width: int, depth: int, *, key: Array) -> None:
        keys = jax.random.split(key, depth + 1)
        self.features = Features(inputs, key=keys[0])
        size = inputs.width(None)
        self.layers = tuple(Linear((size if i == 0 else width,), width, key=keys[i + 1]) for i in range(depth))
        self.keeps_input = size <= width or depth == 0
        self.context_sizes = ((width if depth else 0) + (size if self.keeps_input else 0),)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """The context of one unit."""
        plain = hidden = self.features.plain(unit)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number == 0 and not self.keeps_input:
                hidden = hidden * jax.lax.rsqrt(jnp.maximum(jnp.mean((hidden / LARGEST) ** 2), 1.0))
            hidden = silu(hidden)
        parts = ((hidden,) if self.layers else ()) + ((plain,) if self.keeps_input else ())
        return (jnp.concatenate(parts),)
