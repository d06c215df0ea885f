"""Permutation-invariant encoders: the elements of a unit (houses of a county, answers of a student) are a set.

Each element passes the same network φ; what is pooled over the elements doesn't depend on their order or on padding;
a second network reads the pooled numbers, the plain numbers of the unit and always the count of elements, without
which no precision can be right. Where elements have numbers of their own, see `nested`.
"""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import GuideError
from .._network import Network
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Features, Inputs
from .nested import NestedEncoder
from .pools import AbstractPool, Attention, Moments, PoolOf


@dataclasses.dataclass(frozen=True, kw_only=True)
class deep_set(Recipe, slots=("encoder",)):
    """Recipe of a `SetEncoder` that pools moments, or of a `NestedEncoder`."""

    width: int = 64
    depth: int = 2

    def build(self, inputs: Inputs, *, key: Array) -> SetEncoder | NestedEncoder:
        """The encoder for these inputs."""
        return _built(inputs, functools.partial(Moments, width=self.width, depth=self.depth), self, key=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class attention_set(Recipe, slots=("encoder",)):
    """Recipe of a `SetEncoder` or `NestedEncoder` that pools by attention with `heads` learned queries."""

    width: int = 64
    depth: int = 2
    heads: int = 4

    def build(self, inputs: Inputs, *, key: Array) -> SetEncoder | NestedEncoder:
        """The encoder for these inputs."""
        pool = functools.partial(Attention, width=self.width, depth=self.depth, heads=self.heads)
        return _built(inputs, pool, self, key=key)


def _built(inputs: Inputs, pool: PoolOf, recipe: deep_set | attention_set, *, key: Array) -> SetEncoder | NestedEncoder:
    if inputs.levels:
        return NestedEncoder(inputs, pool, recipe.width, recipe.depth, key=key)
    keys = jax.random.split(key, len(_plates(inputs, f"am.{type(recipe).__name__}()")) + 1)
    pools = tuple(pool(inputs.width(p), key=k) for p, k in zip(inputs.plates, keys[1:], strict=True))
    return SetEncoder(inputs, pools, recipe.width, recipe.depth, key=keys[0])


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
