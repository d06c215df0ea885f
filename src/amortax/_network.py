"""What is a network here? Dense layers of one unit, with several inputs side by side.

    y = x_1 W_1 + ... + x_n W_n + b

is what a dense layer gives for the concatenation of its inputs. They are kept apart because under `vmap` an input that
does not vary is multiplied once: a draw of the globals over all units, a context over all draws. Weights have the shape
(in, out), where `equinox.nn.Linear` has (out, in): vmapped on a CPU, its gradient is a slower, transposed product
(small hierarchical model of `benchmarks/training.py`: 0.70 instead of 0.60 of the loop by hand).
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def silu(x: Array) -> Array:
    """`x σ(x)`, with the slope as one array.

    Derived by JAX, the slope is several arrays that XLA computes again inside the products of the backward pass: of an
    inverse autoregressive flow the gradient takes twice as long.
    """
    return jax.nn.silu(x)


@silu.defjvp
def _slope_of_silu(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    share = jax.nn.sigmoid(primals[0])
    value = primals[0] * share
    return value, (share + value * (1.0 - share)) * tangents[0]


class Linear(eqx.Module):
    """`sum_j x_j @ W_j + b`; drawn uniformly within 1/sqrt(number of inputs), as is usual."""

    weights: tuple[Float[Array, "_ out"], ...]
    bias: Float[Array, " out"] | None

    def __init__(self, sizes: Sequence[int], out: int, *, key: Array, use_bias: bool = True) -> None:
        bound = 1.0 / max(sum(sizes), 1) ** 0.5
        # One draw for all, cut up: each random call of its own costs about a second of compilation on a CPU.
        drawn = jax.random.uniform(key, (sum(sizes) + use_bias, out), minval=-bound, maxval=bound)
        ends = list(itertools.accumulate(sizes))
        self.weights = tuple(drawn[end - size : end] for end, size in zip(ends, sizes, strict=True))
        self.bias = drawn[-1] if use_bias else None

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " out"]:
        """The layer at one input of every size."""
        products = [x @ weight for x, weight in zip(inputs, self.weights, strict=True)]
        terms = products if self.bias is None else [*products, self.bias]
        return functools.reduce(operator.add, reversed(terms))  # what doesn't vary stands last: it is added up once


class Network(eqx.Module):
    """`depth` hidden layers of `width` with SiLU between, then a linear layer (with SiLU too if `activate_last`)."""

    layers: tuple[Linear, ...]
    activate_last: bool = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        out: int,
        width: int,
        depth: int,
        *,
        key: Array,
        activate_last: bool = False,
        last_bias: bool = True,
        last_scale: float = 1.0,
    ) -> None:
        keys = jax.random.split(key, depth + 1)
        hidden = tuple(Linear(sizes if i == 0 else (width,), width, key=keys[i]) for i in range(depth))
        last = Linear((width,) if depth else sizes, out, key=keys[depth], use_bias=last_bias)
        if last_scale != 1.0:
            last = jax.tree.map(lambda w: last_scale * w, last)
        self.layers = (*hidden, last)
        self.activate_last = activate_last

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " out"]:
        """The output for one input of every size."""
        value = self.layers[0](*inputs)
        for layer in self.layers[1:]:
            value = layer(silu(value))
        return silu(value) if self.activate_last else value


def over_rows(network: Callable[..., Array], *values: Array) -> Array:
    """A network over all elements of a grid (*grid, numbers); values of a smaller grid are told to all below."""
    grid = values[0].shape[:-1]
    flat = [jnp.broadcast_to(x, (*grid, x.shape[-1])).reshape(-1, x.shape[-1]) for x in values]
    found = jax.vmap(network)(*flat)
    return found.reshape(*grid, *found.shape[1:])
