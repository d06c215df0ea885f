"""What is a family? A distribution on R^d with parameters from a context vector, or free where there is none."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Context = Float[Array, " context"] | None


class AbstractFamily(eqx.Module):
    """A distribution of one unit's d numbers given its context; vmapped by the guide."""

    size: eqx.AbstractVar[int]
    cheap_log_prob: eqx.AbstractClassVar[bool]

    @abstractmethod
    def sample_and_log_prob(self, key: Array, context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""

    @abstractmethod
    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""

    @abstractmethod
    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """A smooth map of `value` under which the family is about standard normal."""

    @abstractmethod
    def mirror(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """The draw of the opposite noise: as probable as `value`, on the other side of the middle."""


class Conditioner(eqx.Module):
    """`offset + network(context)`: the numbers that parametrise a family; without context, free numbers.

    They are in this order: `size` means, `size` free log scales, the rest. Families with a context start near the
    standard normal whatever it is; free ones (globals) with a third of the prior's spread, since draws far out in a
    vague prior overflow and tell nothing.
    """

    offset: Float[Array, " count"]
    network: eqx.nn.MLP | None

    def __init__(self, count: int, size: int, context_size: int, width: int, depth: int, *, key: Array) -> None:
        self.offset = jnp.zeros(count).at[size : 2 * size].set(0.0 if context_size else -1.2)
        self.network = None
        if context_size:
            network = eqx.nn.MLP(context_size, count, width, depth, jax.nn.silu, use_final_bias=False, key=key)
            self.network = eqx.tree_at(lambda n: n.layers[-1].weight, network, replace_fn=lambda w: 0.1 * w)

    def __call__(self, context: Context) -> Float[Array, " count"]:
        """The parameters for one context."""
        return self.offset if self.network is None or context is None else self.offset + self.network(context)


def bounded_log_scale(free: Array) -> Array:
    """Log scales kept within (-15, 5): slope close to 1 at the start, never exploding, with a gradient everywhere."""
    return 10.0 * jnp.tanh((free + 5.0 * _START) / 10.0) - 5.0


# chosen so that free = 0 gives log scale 0: 10 tanh(0.5 c) = 5 at c = 2 atanh(1/2)
_START = 2.0 * 0.5493061443340549


def triangular(free: Float[Array, " count"], size: int) -> Float[Array, "d d"]:
    """A strictly lower triangular matrix from its d (d - 1) / 2 numbers, row by row."""
    rows, columns = jnp.tril_indices(size, -1)
    return jnp.zeros((size, size)).at[rows, columns].set(free)


def standard_log_prob(noise: Float[Array, " d"]) -> Float[Array, ""]:
    """Log density of independent standard normals, in nats."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.shape[0] * jnp.log(2.0 * jnp.pi)


def standard_normal(key: Array, size: int) -> Float[Array, " d"]:
    """Noise of one unit."""
    return jax.random.normal(key, (size,))
