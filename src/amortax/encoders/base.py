"""What does an encoder see of one unit? Standardised numbers, embedded categories, masks and counts.

Numbers are standardised by statistics of the training data that are stored with the encoder, so changing units of
measurement and retraining changes nothing, and a new unit is read on the training scale. Places under a mask count
as zero after standardisation, and the mask itself is seen. Counts and positive responses are seen on the log scale too.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._errors import GuideError
from .._types import Batch, Fixed

FARTHEST = 30.0  # scales from the center, at most, of any training value


@dataclasses.dataclass(frozen=True)
class Feature:
    """One argument as an encoder sees it."""

    name: str
    shape: tuple[int | None, ...]  # of one unit; None along a ragged axis
    plate: str | None = None  # elements along `plate_axis` form a set; None: a plain array
    plate_axis: int = 0
    masked: bool = False
    response: bool = False
    categories: int | None = None
    first_category: int = 0
    positive: bool = False
    others: tuple[tuple[str, int], ...] = ()  # further plates along which its elements are sets, and their axes
    image: bool = False  # its places share one scale, channel by channel, and are not among the plain numbers
    time_axis: int | None = None  # its axis along an inner plate whose elements have an order

    @property
    def sets(self) -> dict[str, int]:
        """The axis along each plate whose elements are a set."""
        return ({} if self.plate is None else {self.plate: self.plate_axis}) | dict(self.others)

    @property
    def element_shape(self) -> tuple[int, ...]:
        """Shape of one element of the set, or of the whole array."""
        return tuple(int(n or 1) for axis, n in enumerate(self.shape) if axis not in self.sets.values())

    @property
    def embedding_size(self) -> int:
        """Numbers that stand for one category."""
        return min(16, 1 + math.isqrt(self.categories or 0))

    @property
    def width(self) -> int:
        """Numbers that the encoder sees of one element (or of the whole array)."""
        size = math.prod(self.element_shape)
        per_number = self.embedding_size if self.categories else 1 + self.positive
        return size * (per_number + self.masked)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that an encoder sees; `ordered` lists set plates whose elements are not exchangeable.

    Where a unit's elements have numbers of their own, `levels` names the inner plates of each level of them, of which
    `nested` says the order, outermost first; an encoder then gives a context for every level. With `by_step` q goes
    along a series, and an encoder of series gives a context for every step.
    """

    features: tuple[Feature, ...]
    ordered: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    levels: tuple[tuple[str, ...], ...] = ()
    by_step: bool = False

    @property
    def plates(self) -> tuple[str, ...]:
        """The inner plates, each a set of elements."""
        return tuple(dict.fromkeys(f.plate for f in self.features if f.plate is not None))

    @property
    def images(self) -> tuple[Feature, ...]:
        """Features that are read as images."""
        return tuple(f for f in self.features if f.image)

    def along(self, plate: str | None) -> tuple[Feature, ...]:
        """Features along a plate, or the plain ones."""
        return tuple(f for f in self.features if f.plate == plate and not f.image)

    def width(self, plate: str | None) -> int:
        """Numbers per element of the plate (a position counts where order matters), or of the plain part."""
        return sum(f.width for f in self.along(plate)) + (plate in self.ordered)


class Features(eqx.Module):
    """Turns one unit into a plain vector and one matrix of elements per set."""

    inputs: Inputs = eqx.field(static=True)
    statistics: Fixed  # argument -> {"center", "scale", "log_center", "log_scale"}
    embeddings: dict[str, Array]

    def __init__(self, inputs: Inputs, *, key: Array) -> None:
        self.inputs = inputs
        self.statistics = Fixed({f.name: _neutral(f) for f in inputs.features if not f.categories})
        coded = [f for f in inputs.features if f.categories]
        keys = jax.random.split(key, max(len(coded), 1))
        self.embeddings = {
            f.name: 0.5 * jax.random.normal(k, (f.categories or 1, f.embedding_size))
            for f, k in zip(coded, keys, strict=False)
        }

    def plain(self, unit: Batch) -> Float[Array, " width"]:
        """The numbers of the arguments that lie along no set."""
        parts = [jnp.ravel(self.numbers(f, unit)) for f in self.inputs.along(None)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def image(self, unit: Batch, feature: Feature) -> Float[Array, "h w channels"]:
        """One of the images; what is seen of a pixel beside its value (that it is there) are more channels."""
        numbers = self.numbers(feature, unit)
        return numbers.reshape(*numbers.shape[:2], -1)

    def elements(self, unit: Batch, plate: str) -> tuple[Float[Array, "elements width"], Float[Array, " elements"]]:
        """One row per element of the set, and a weight that is 1 where the element tells something and 0 in padding."""
        rows = []
        for feature in self.inputs.along(plate):
            numbers = jnp.moveaxis(self.numbers(feature, unit), feature.plate_axis, 0)
            rows.append(numbers.reshape(numbers.shape[0], -1))
        weight = self._weight(unit, plate, rows[0].shape[0])
        if plate in self.inputs.ordered:
            rows.append((jnp.arange(rows[0].shape[0]) / 10.0 - 1.0)[:, None])
        return jnp.where(weight[:, None] > 0, jnp.concatenate(rows, axis=1), 0.0), weight

    def steps(self, unit: Batch, plate: str) -> tuple[Float[Array, "T width"], Bool[Array, " T"]]:
        """One row per step of a series, missing ones too, and which steps are the unit's own; zeros in the others."""
        rows = []
        for feature in self.inputs.along(plate):
            numbers = jnp.moveaxis(self.numbers(feature, unit), feature.plate_axis, 0)
            rows.append(numbers.reshape(numbers.shape[0], -1))
        own = self._own(unit, plate, rows[0].shape[0])
        return jnp.where(own[:, None], jnp.concatenate(rows, axis=1), 0.0), own

    def numbers(self, feature: Feature, unit: Batch) -> Float[Array, "*shape seen"]:
        """What is seen of every place of one argument."""
        value, mask = unit.arrays[feature.name], unit.masks.get(feature.name)
        if feature.categories:
            numbers = self.embeddings[feature.name][value - feature.first_category]
        else:
            known = jax.tree.map(jax.lax.stop_gradient, self.statistics.value[feature.name])
            number = value.astype(jnp.result_type(float))
            numbers = (_less(value, known["center"]) / known["scale"])[..., None]
            if feature.positive:
                logarithm = (jnp.log1p(jnp.maximum(number, 0.0)) - known["log_center"]) / known["log_scale"]
                numbers = jnp.concatenate([numbers, logarithm[..., None]], axis=-1)
        if not feature.masked:
            return numbers
        present = jnp.ones(value.shape, bool) if mask is None else mask
        numbers = jnp.where(present[..., None], numbers, 0.0)
        return jnp.concatenate([numbers, present[..., None].astype(numbers.dtype)], axis=-1)

    def _own(self, unit: Batch, plate: str, size: int) -> Bool[Array, " elements"]:
        """Which elements are the unit's own, and no padding."""
        lengths = [unit.lengths[f.name] for f in self.inputs.along(plate) if f.name in unit.lengths]
        own = jnp.ones(size, bool)
        for length in lengths:
            own &= jnp.arange(size) < length
        return own

    def _weight(self, unit: Batch, plate: str, size: int) -> Array:
        weight = self._own(unit, plate, size).astype(jnp.result_type(float))
        responses = [f for f in self.inputs.along(plate) if f.response and f.name in unit.masks]
        if responses and all(f.masked for f in self.inputs.along(plate) if f.response):
            told = [
                jnp.any(jnp.moveaxis(unit.masks[f.name], f.plate_axis, 0).reshape(size, -1), axis=1) for f in responses
            ]
            weight = weight * jnp.any(jnp.stack(told), axis=0)
        return weight


def _less(value: Array, center: Array) -> Array:
    """`value - center` as floats; of large integers taken in integers, which do not merge."""
    plain = value.astype(center.dtype) - center
    if jnp.issubdtype(value.dtype, jnp.floating) or value.dtype == bool:
        return plain
    whole = jnp.round(center).astype(jnp.int32)
    return jnp.where(jnp.abs(center) > 2.0**20, (value.astype(jnp.int32) - whole).astype(center.dtype), plain)


class AbstractEncoder(eqx.Module):
    """Data of one unit → context: vectors of `context_sizes` numbers, kept apart for what reads them."""

    features: eqx.AbstractVar[Features]
    context_sizes: eqx.AbstractVar[tuple[int, ...]]

    @abstractmethod
    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """The context of one unit (arrays without the unit axis)."""


def with_places(inputs: Inputs, recipe: str) -> Inputs:
    """The inputs with elements along a plate of fixed size as numbers with places of their own.

    **Raises** `GuideError`, in the name of `recipe`, where units differ in length.
    """
    if ragged := [f for f in inputs.features if None in f.shape]:
        raise GuideError(
            f"{recipe} reads arrays of fixed size, but {[f.name for f in ragged]} differ in length along plate "
            f"'{ragged[0].plate}'; use am.deep_set() or am.attention_set()"
        )
    return Inputs(tuple(dataclasses.replace(f, plate=None, plate_axis=0) for f in inputs.features))


def _neutral(feature: Feature) -> dict[str, Array]:
    shape = tuple(1 if axis in feature.sets.values() else int(n or 1) for axis, n in enumerate(feature.shape))
    shape = (1, 1, *shape[2:]) if feature.image else shape
    zero, one = jnp.zeros(shape), jnp.ones(shape)
    log = {"log_center": zero, "log_scale": one} if feature.positive else {}
    return {"center": zero, "scale": one, **log}


def training_statistics(inputs: Inputs, data: Batch) -> dict[str, dict[str, np.ndarray]]:
    """Center and scale of every numeric argument over the real values of all training units (host arrays).

    Over units and, for a set, over its elements; every place has its own, so that changing the unit of measurement of
    one column leaves the others as they were (the pixels of an image share one, channel by channel). A constant place
    has scale 1; one that is constant but for rare values at least a thirtieth of the farthest of them, so that these
    don't explode.
    """
    found = {}
    for feature in inputs.features:
        if feature.categories:
            continue
        value = np.asarray(data.arrays[feature.name], np.float64)
        mask = np.asarray(data.masks.get(feature.name, np.ones(value.shape, bool)))
        axes = (0, *(axis + 1 for axis in feature.sets.values()))
        axes = (0, 1, 2) if feature.image else axes
        found[feature.name] = _center_scale(value, mask, axes)
        if feature.positive:
            log = _center_scale(np.log1p(np.maximum(value, 0.0)), mask, axes)
            found[feature.name] |= {"log_center": log["center"], "log_scale": log["scale"]}
    return jax.tree.map(lambda x: x.astype(np.dtype(jnp.result_type(float))), found)


def _center_scale(value: np.ndarray, mask: np.ndarray, axes: tuple[int, ...]) -> dict[str, np.ndarray]:
    count = np.maximum(mask.sum(axis=axes, keepdims=True), 1)
    center = np.where(mask, value, 0.0).sum(axis=axes, keepdims=True) / count
    away = np.where(mask, value - center, 0.0)
    spread = np.sqrt((away**2).sum(axis=axes, keepdims=True) / count)
    scale = np.maximum(spread, np.abs(away).max(axis=axes, keepdims=True, initial=0.0) / FARTHEST)
    scale = np.where(scale > 1e-6 * (np.abs(center) + 1e-30), scale, 1.0)
    return {"center": np.asarray(center[0]), "scale": np.asarray(scale[0])}
