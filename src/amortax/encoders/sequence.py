"""Encoders of a series: steps along a time axis, which hear of each other before they are pooled, or told one by one.

A set encoder reads each element alone. Here a network goes along the series first,

    h_1, ..., h_T = network(x_1, ..., x_T),

with one of three ways to hear of other steps: a recurrent network in both directions (Cho and others 2014),
convolutions in time whose reach doubles from layer to layer (Bai, Kolter and Koltun 2018), or attention between all
steps (Vaswani and others 2017). Then the h_t are pooled like the elements of a set, or, where q goes step by step
(`am.markov()`), each is the context of its own step, and no parameter depends on T. Steps beyond the end of a unit's
own series change nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._errors import GuideError
from .._network import Linear, Network, silu
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Feature, Features, Inputs
from .pools import Moments

TIME = "time"  # what the axis is called where it is no plate


class AbstractAlong(eqx.Module):
    """Rows of all steps → rows that have heard of the other steps."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, rows: Float[Array, "T width"], own: Bool[Array, " T"]) -> Float[Array, "T size"]:
        """One row per step; steps that are not the unit's `own` come last, hold zeros, and must not be heard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class recurrent(Recipe, slots=("encoder",)):
    """Recipe of an encoder of series by `layers` of gated recurrent units, each in both directions."""

    width: int = 32
    layers: int = 1

    def build(self, inputs: Inputs, *, key: Array) -> SequenceEncoder:
        """The encoder for these inputs."""
        return _built(inputs, self, functools.partial(Recurrent, width=self.width, layers=self.layers), key=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class temporal_convolution(Recipe, slots=("encoder",)):
    """Recipe of an encoder of series by convolutions in time: each of `layers` reaches twice as far as the one before.

    A step hears of those up to `2**layers - 1` before and after it.
    """

    width: int = 32
    layers: int = 4

    def build(self, inputs: Inputs, *, key: Array) -> SequenceEncoder:
        """The encoder for these inputs."""
        along = functools.partial(TemporalConvolution, width=self.width, layers=self.layers)
        return _built(inputs, self, along, key=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class attention_sequence(Recipe, slots=("encoder",)):
    """Recipe of an encoder of series by `layers` of attention between all steps, of `heads` each.

    Places of steps are seen as sines and cosines, so that a series may be longer than those of training.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4

    def build(self, inputs: Inputs, *, key: Array) -> SequenceEncoder:
        """The encoder for these inputs."""
        if self.width % (2 * self.heads):
            raise GuideError(
                f"am.attention_sequence(width={self.width}, heads={self.heads}): the width must be a multiple of twice "
                "the number of heads"
            )
        along = functools.partial(Attending, width=self.width, layers=self.layers, heads=self.heads)
        return _built(inputs, self, along, key=key)


def _built(inputs: Inputs, recipe: Recipe, along: Callable[..., AbstractAlong], *, key: Array) -> SequenceEncoder:
    """The encoder whose network, `along(numbers of a step, key=)`, goes along the series."""
    first, second = jax.random.split(key)
    series = series_of(inputs, f"am.{type(recipe).__name__}()")
    return SequenceEncoder(series, along(series.width(_time(series)), key=first), second)


SEQUENCE = recurrent | temporal_convolution | attention_sequence


class Recurrent(AbstractAlong):
    """Layers of gated recurrent units, each once forward and once backward in time."""

    cells: tuple[tuple[eqx.nn.GRUCell, eqx.nn.GRUCell], ...]
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, width: int, layers: int, *, key: Array) -> None:
        keys = jax.random.split(key, (layers, 2))
        sizes = [inputs, *[2 * width] * (layers - 1)]
        self.cells = tuple(
            (eqx.nn.GRUCell(n, width, key=one), eqx.nn.GRUCell(n, width, key=other))
            for n, (one, other) in zip(sizes, keys, strict=True)
        )
        self.size = 2 * width

    def __call__(self, rows: Float[Array, "T width"], own: Bool[Array, " T"]) -> Float[Array, "T size"]:
        """States of both directions side by side; beyond the end a state stays what it was."""
        for forward, backward in self.cells:
            rows = jnp.concatenate([_along(forward, rows, own), _along(backward, rows, own, reverse=True)], axis=1)
        return rows


def _along(cell: eqx.nn.GRUCell, rows: Array, own: Array, *, reverse: bool = False) -> Float[Array, "T width"]:
    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        row, is_own = now
        state = jnp.where(is_own, cell(row, state), state)
        return state, state

    return jax.lax.scan(step, jnp.zeros(cell.hidden_size), (rows, own), reverse=reverse)[1]


class TemporalConvolution(AbstractAlong):
    """Residual convolutions over three steps, 1, 2, 4, ... steps apart; zeros around the series.

    Each is a product with a step and the two around it: with XLA's convolution, whose gradient is slow on a CPU where
    steps are far apart, training took more than three times as long.
    """

    first: Linear
    layers: tuple[Linear, ...]
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, width: int, layers: int, *, key: Array) -> None:
        keys = jax.random.split(key, layers + 1)
        self.first = Linear((inputs,), width, key=keys[0])
        self.layers = tuple(Linear((width,) * 3, width, key=k) for k in keys[1:])
        self.size = width

    def __call__(self, rows: Float[Array, "T width"], own: Bool[Array, " T"]) -> Float[Array, "T size"]:
        """What every step heard of its neighbours."""
        heard = jax.vmap(self.first)(rows)
        for number, layer in enumerate(self.layers):
            apart, seen = 2**number, jnp.where(own[:, None], silu(heard), 0.0)
            around = jnp.pad(seen, ((apart, apart), (0, 0)))
            heard = heard + jax.vmap(layer)(around[: len(rows)], seen, around[2 * apart :])
        return silu(heard)


class Attending(AbstractAlong):
    """Attention between all steps and a small network of each, added to what is there, layer by layer."""

    first: Linear
    layers: tuple[tuple[eqx.nn.LayerNorm, eqx.nn.MultiheadAttention, eqx.nn.LayerNorm, Network], ...]
    last: eqx.nn.LayerNorm
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, width: int, layers: int, heads: int, *, key: Array) -> None:
        own, *keys = jax.random.split(key, 1 + 2 * layers)
        self.first = Linear((inputs,), width, key=own)
        self.layers = tuple(
            (
                eqx.nn.LayerNorm(width),
                eqx.nn.MultiheadAttention(heads, width, key=keys[2 * i]),
                eqx.nn.LayerNorm(width),
                Network((width,), width, 2 * width, 1, key=keys[2 * i + 1]),
            )
            for i in range(layers)
        )
        self.last = eqx.nn.LayerNorm(width)
        self.size = width

    def __call__(self, rows: Float[Array, "T width"], own: Bool[Array, " T"]) -> Float[Array, "T size"]:
        """What every step heard of all."""
        heard = jax.vmap(self.first)(rows) + _places(len(rows), self.size)
        heard_by = jnp.broadcast_to(own, (len(rows), len(rows)))
        for norm, attention, second_norm, network in self.layers:
            normed = jax.vmap(norm)(heard)
            heard = heard + attention(normed, normed, normed, mask=heard_by)
            heard = heard + jax.vmap(network)(jax.vmap(second_norm)(heard))
        return jax.vmap(self.last)(heard)


def _places(length: int, width: int) -> Float[Array, "T width"]:
    """Sines and cosines of the number of a step, of wave lengths from 2 pi to 10,000 times that."""
    rates = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angle = jnp.arange(length)[:, None] * rates
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class SequenceEncoder(AbstractEncoder):
    """Goes along the series, then pools all steps, or, `by_step`, gives each step a context (T, width) of its own."""

    features: Features
    along: AbstractAlong
    pool: Moments | None
    network: Network | None
    context_sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: Inputs, along: AbstractAlong, key: Array) -> None:
        features, pool, network = jax.random.split(key, 3)
        self.features, self.along = Features(inputs, key=features), along
        width, rows = along.size, along.size + inputs.width(_time(inputs))
        plain = (inputs.width(None),) if inputs.width(None) else ()
        self.pool = self.network = None
        self.context_sizes = (rows, *plain)
        if not inputs.by_step:
            self.pool = Moments(rows, width, 0, key=pool)
            sizes = (self.pool.size, 2, *plain)
            self.network = Network(sizes, width, width, 1, key=network, activate_last=True)
            self.context_sizes = (width, rows, 2, *plain)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """`(network output, mean row, count of steps, plain numbers)`; by step `(rows (T, width), plain numbers)`."""
        plain = (self.features.plain(unit),) if self.features.inputs.width(None) else ()
        rows, own = self.features.steps(unit, _time(self.features.inputs))
        told = jnp.where(own[:, None], jnp.concatenate([self.along(rows, own), rows], axis=1), 0.0)
        if self.pool is None or self.network is None:
            return (told, *plain)
        weight = own.astype(rows.dtype)
        count = jnp.sum(weight)
        counts = jnp.stack([jnp.log1p(count), jax.lax.rsqrt(1.0 + count)])
        pooled = self.pool(told, weight)
        return (self.network(pooled, counts, *plain), pooled[-told.shape[1] :], counts, *plain)


def _time(inputs: Inputs) -> str:
    return inputs.plates[0]


def series_of(inputs: Inputs, recipe: str) -> Inputs:
    """The inputs with all arguments that have the time axis as rows of its steps, and the others as plain numbers.

    Time is the inner plate whose elements have an order; without one, the first axis, where the arrays that have one
    agree with the first response on its length.

    **Raises** `GuideError`, in the name of `recipe`, where there is no such axis, or elements of a set beside it.
    """
    ordered = [f for f in inputs.features if f.time_axis is not None]
    axes = [f for f in inputs.features if f.shape and f.plate is None]
    first = next(iter([f for f in axes if f.response] or axes), None)
    series = ordered or [f for f in axes if first is not None and f.shape[0] == first.shape[0]]
    sets = [f for f in inputs.features if f.plate is not None and f.time_axis is None or len(f.sets) > 1]
    if sets or not series:
        shapes = ", ".join(f"'{f.name}' {f.shape}" + f" a set along {f.plate}" * (f in sets) for f in inputs.features)
        raise GuideError(
            f"{recipe} reads one series per unit, arrays (T,) or (T, ...) whose steps have an order; it sees {shapes}: "
            "use am.deep_set() for elements without an order, am.dense() where there are none"
        )
    features = tuple(_as_steps(f) if f in series else dataclasses.replace(f, plate=None) for f in inputs.features)
    return dataclasses.replace(inputs, features=features, ordered=())


def _as_steps(feature: Feature) -> Feature:
    return dataclasses.replace(feature, plate=TIME, plate_axis=feature.time_axis or 0)
