"""How does a set become a vector? Pools of its elements that don't depend on their order or on padding.

Zaheer et al. (2017), Deep Sets; Lee et al. (2019), Set Transformer, for the attention.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._network import Network


class AbstractPool(eqx.Module):
    """Elements with weights → a vector that doesn't depend on their order."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, rows: Float[Array, "n width"], weight: Float[Array, " n"]) -> Float[Array, " size"]:
        """Pools one set; weight 0 marks padding, and a set may be empty."""


PoolOf = Callable[..., AbstractPool]  # (numbers of an element, key=) -> pool


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
