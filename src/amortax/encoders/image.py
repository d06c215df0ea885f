"""A small residual convolutional network over images, arrays (H, W) or (H, W, C) of a unit.

Every stage halves the resolution by a convolution of stride 2 and adds one residual block (He and others 2016, in the
order of activation and convolution of "Identity mappings in deep residual networks"),

    h <- W_2 * h,    h <- h + W * silu(W' * silu(h)),

until no side is longer than four. What is left is read with its places, beside all other arguments, by a dense layer.
"""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._network import Linear, silu
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Feature, Features, Inputs, with_places

SMALLEST = 4  # sides of what the dense layer reads, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class convolution(Recipe, slots=("encoder",)):
    """Recipe of `Convolution`: `channels` after the first halving, twice as many after the next; `width` in the end."""

    channels: int = 16
    width: int = 128

    def build(self, inputs: Inputs, *, key: Array) -> Convolution:
        """The encoder for these inputs, of which at least one must be an image."""
        features = with_places(inputs, "am.convolution()").features
        kept = zip(features, inputs.features, strict=True)
        flagged = tuple(dataclasses.replace(f, image=_is_image(given)) for f, given in kept)
        if not any(f.image for f in flagged):
            shapes = ", ".join(f"'{f.name}' {f.shape}{' a set' * (f.plate is not None)}" for f in inputs.features)
            raise GuideError(
                "am.convolution() needs an image, numbers of shape (H, W) or (H, W, C) in every unit, and not along a "
                f"plate of exchangeable elements; it sees {shapes}: use am.dense() or am.deep_set()"
            )
        return Convolution(Inputs(flagged), self.channels, self.width, key=key)


def _is_image(feature: Feature) -> bool:
    return feature.plate is None and len(feature.shape) in {2, 3} and not feature.categories


class Filter(eqx.Module):
    """A 3 x 3 convolution of one image, zeros around it; drawn uniformly within 1/sqrt(number of inputs)."""

    weight: Float[Array, "3 3 inputs outputs"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, stride: int, *, key: Array) -> None:
        bound = 1.0 / math.sqrt(9 * inputs)
        drawn = jax.random.uniform(key, (9 * inputs + 1, outputs), minval=-bound, maxval=bound)
        self.weight, self.bias, self.stride = drawn[:-1].reshape(3, 3, inputs, outputs), drawn[-1], stride

    def __call__(self, image: Float[Array, "h w inputs"]) -> Float[Array, "h2 w2 outputs"]:
        """The filtered image, of half the size (rounded up) where the stride is 2."""
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        found = jax.lax.conv_general_dilated(image[None], self.weight, strides, "SAME", dimension_numbers=layout)
        return found[0] + self.bias


class Stage(eqx.Module):
    """Half the resolution, then one residual block."""

    halve: Filter
    block: tuple[Filter, Filter]

    def __init__(self, inputs: int, outputs: int, *, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.halve = Filter(inputs, outputs, 2, key=keys[0])
        self.block = (Filter(outputs, outputs, 1, key=keys[1]), Filter(outputs, outputs, 1, key=keys[2]))

    def __call__(self, image: Float[Array, "h w inputs"]) -> Float[Array, "h2 w2 outputs"]:
        """The features of the image at half its resolution."""
        image = self.halve(image)
        first, second = self.block
        return image + second(silu(first(silu(image))))


class Convolution(AbstractEncoder):
    """`context = (silu(dense(features of every image, other arguments)), other arguments)`, these standardised."""

    features: Features
    stages: tuple[tuple[Stage, ...], ...]  # of every image
    last: Linear
    context_sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: Inputs, channels: int, width: int, *, key: Array) -> None:
        feature_key, last_key, key = jax.random.split(key, 3)
        self.features = Features(inputs, key=feature_key)
        stages, sizes = [], []
        for number, image in enumerate(inputs.images):
            found, size = _stages(image, channels, jax.random.fold_in(key, number))
            stages.append(found)
            sizes.append(size)
        self.stages = tuple(stages)
        plain = (inputs.width(None),) if inputs.width(None) else ()
        self.last = Linear((*sizes, *plain), width, key=last_key)
        self.context_sizes = (width, *plain)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """The context of one unit."""
        seen = []
        for feature, stages in zip(self.features.inputs.images, self.stages, strict=True):
            image = self.features.image(unit, feature)
            for stage in stages:
                image = stage(image)
            seen.append(silu(jnp.ravel(image)))
        plain = (self.features.plain(unit),) if self.features.inputs.width(None) else ()
        return (silu(self.last(*seen, *plain)), *plain)


def _stages(feature: Feature, channels: int, key: Array) -> tuple[tuple[Stage, ...], int]:
    """The stages for one image, at least one, and the length of what comes out."""
    height, width = feature.element_shape[:2]
    stages, inputs = [], feature.width // (height * width)
    while not stages or max(height, width) > SMALLEST:
        outputs = channels if not stages else 2 * channels
        stages.append(Stage(inputs, outputs, key=jax.random.fold_in(key, len(stages))))
        height, width, inputs = -(-height // 2), -(-width // 2), outputs
    return tuple(stages), height * width * inputs
