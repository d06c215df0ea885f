"""Permutation-invariant encoders: the elements of a unit (houses of a county, answers of a student) are a set.

Each element passes the same network φ; what is pooled over the elements doesn't depend on their order or on padding;
a second network reads the pooled numbers, the plain numbers of the unit and always the count of elements, without
which no precision can be right (Zaheer et al. 2017, Deep Sets; Lee et al. 2019, Set Transformer, for the attention).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._network import Network
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Features, Inputs


class AbstractPool(eqx.Module):
    """Elements with weights → a vector that doesn't depend on their order."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, rows: Float[Array, "n width"], weight: Float[Array, " n"]) -> Float[Array, " size"]:
        """Pools one set; weight 0 marks padding, and a set may be empty."""


class Moments(AbstractPool):
    """Mean and standard deviation over the set of φ(element), and the mean of the elements themselves."""

    network: Network
    size: int = eqx.field(static=True)

    def __init__(self, element_width: int, width: int, depth: int, *, key: Array) -> None:
        self.network = Network((element_width,), width, width, depth, key=key)
        self.size = 2 * width + element_width

    def __call__(self, rows: Float[Array, "n width"], weight: Float[Array, " n"]) -> Float[Array, " size"]:
        """`[mean φ, sd φ, mean row]`."""
        share = weight / jnp.maximum(jnp.sum(weight), 1.0)
        value = jax.vmap(self.network)(rows)
        mean = share @ value
        spread = jnp.sqrt(share @ (value - mean[None]) ** 2 + 1e-6)
        return jnp.concatenate([mean, spread, share @ rows])


class Attention(AbstractPool):
    """Learned queries attend over the elements (pooling by multi-head attention), beside one learned null element."""

    network: Network
    queries: Array
    null: Array
    size: int = eqx.field(static=True)

    def __init__(self, element_width: int, width: int, depth: int, heads: int, *, key: Array) -> None:
        network, queries, null = jax.random.split(key, 3)
        self.network = Network((element_width,), 2 * width, width, depth, key=network)
        self.queries = jax.random.normal(queries, (heads, width))
        self.null = 0.1 * jax.random.normal(null, (2 * width,))
        self.size = heads * width + element_width

    def __call__(self, rows: Float[Array, "n width"], weight: Float[Array, " n"]) -> Float[Array, " size"]:
        """`[attended value per head, mean row]`."""
        pairs = jnp.concatenate([jax.vmap(self.network)(rows), self.null[None]])
        present = jnp.concatenate([weight, jnp.ones(1)])
        keys, values = jnp.split(pairs, 2, axis=1)
        scores = self.queries @ keys.T / jnp.sqrt(keys.shape[1])
        attention = jax.nn.softmax(jnp.where(present[None] > 0, scores, -jnp.inf), axis=1)
        share = weight / jnp.maximum(jnp.sum(weight), 1.0)
        return jnp.concatenate([jnp.ravel(attention @ values), share @ rows])


@dataclasses.dataclass(frozen=True, kw_only=True)
class deep_set(Recipe):
    """Recipe of a `SetEncoder` that pools moments."""

    width: int = 64
    depth: int = 2

    def build(self, inputs: Inputs, *, key: Array) -> SetEncoder:
        """The encoder for these inputs."""
        keys = jax.random.split(key, len(_plates(inputs, "am.deep_set()")) + 1)
        pools = tuple(
            Moments(inputs.width(p), self.width, self.depth, key=k)
            for p, k in zip(inputs.plates, keys[1:], strict=True)
        )
        return SetEncoder(inputs, pools, self.width, self.depth, key=keys[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class attention_set(Recipe):
    """Recipe of a `SetEncoder` that pools by attention with `heads` learned queries."""

    width: int = 64
    depth: int = 2
    heads: int = 4

    def build(self, inputs: Inputs, *, key: Array) -> SetEncoder:
        """The encoder for these inputs."""
        keys = jax.random.split(key, len(_plates(inputs, "am.attention_set()")) + 1)
        pools = tuple(
            Attention(inputs.width(p), self.width, self.depth, self.heads, key=k)
            for p, k in zip(inputs.plates, keys[1:], strict=True)
        )
        return SetEncoder(inputs, pools, self.width, self.depth, key=keys[0])


class SetEncoder(AbstractEncoder):
    """Pools every set of a unit and reads the pooled numbers, the counts and the plain numbers together."""

    features: Features
    pools: tuple[AbstractPool, ...]
    network: Network
    context_sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: Inputs, pools: tuple[AbstractPool, ...], width: int, depth: int, *, key: Array) -> None:
        features, network = jax.random.split(key)
        self.features = Features(inputs, key=features)
        self.pools = pools
        plain = (inputs.width(None),) if inputs.width(None) else ()
        sizes = (*(size for pool in pools for size in (pool.size, 2)), *plain)
        self.network = Network(sizes, width, width, depth, key=network, activate_last=True)
        means = (size for plate in inputs.plates for size in (inputs.width(plate), 2))
        self.context_sizes = (width, *means, *plain)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """`(network output, mean row and count of every set, plain numbers)`."""
        plain = (self.features.plain(unit),) if self.features.inputs.width(None) else ()
        pooled, direct = [], []
        for plate, pool in zip(self.features.inputs.plates, self.pools, strict=True):
            rows, weight = self.features.elements(unit, plate)
            count = jnp.sum(weight)
            counts = jnp.stack([jnp.log1p(count), jax.lax.rsqrt(1.0 + count)])
            value = pool(rows, weight)
            pooled += [value, counts]
            direct += [value[-rows.shape[1] :], counts]
        return (self.network(*pooled, *plain), *direct, *plain)


def _plates(inputs: Inputs, recipe: str) -> tuple[str, ...]:
    if not inputs.plates:
        raise GuideError(
            f"{recipe} needs arrays along an inner plate, but {[f.name for f in inputs.features]} lie along none; "
            "use am.dense(), or put the elements in a plate inside the amortized one"
        )
    return inputs.plates
