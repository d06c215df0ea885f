"""The few types that every floor speaks: a batch of units, and the terms of a log density.

A log density over a batch of units keeps one number per unit apart from the number they share,

    log p = shared + sum_i unit_i,

until `Terms.total`, the one place where a minibatch of B out of N units is scaled up.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._errors import AmortaxError, DataError

PyTree = Any
Context = tuple[Array, ...]  # what q of one unit depends on, part by part; () where it has free parameters
if TYPE_CHECKING:
    AnyArray = Array  # type checkers may take both for JAX's
else:
    AnyArray = Array | np.ndarray  # on the host NumPy's


def check_key(key: Any, error: type[AmortaxError] = DataError) -> None:
    """Raises `error` unless `key` is one typed JAX key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise error(f"key must be one typed JAX key, jax.random.key(0), got {type(key).__name__}")


def whole_number(name: str, value: Any, error: type[AmortaxError] = DataError) -> int:
    """`value` as an int from 1 (NumPy's integers too), or `error`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise error(f"{name} must be a whole number from 1, got {value!r}")
    return number


class Terms(eqx.Module):
    """Log density in nats, kept apart: `unit` one number per unit, `shared` one number for all of them."""

    unit: Float[Array, "*draws_units"]
    shared: Float[Array, "*draws"]

    def total(self, scale: float | Float[Array, ""] = 1.0) -> Float[Array, ""]:
        """`shared + scale * sum(unit)`; `scale` is N/B for a minibatch of B of N units, 1 for all of them."""
        return self.shared + scale * jnp.sum(self.unit)

    def __sub__(self, other: Terms) -> Terms:
        return Terms(self.unit - other.unit, self.shared - other.shared)

    def __add__(self, other: Terms) -> Terms:
        return Terms(self.unit + other.unit, self.shared + other.shared)


class Batch(eqx.Module):
    """Arrays of some units (leading axis) or, inside `vmap`, of one unit (none).

    `arrays` maps the model's argument names to filled values; `masks` has an entry, of the same shape,
    for every argument that may have missing or padded places (True = a real value); `lengths` has the
    true number of elements of every ragged argument; `rows` says where units with parameters of their own
    have them (`encoders.free`), None without; `choice` the values of discrete sites at which a unit stands, if at
    some (`joint.assignments`), so that its locals are numbers alone; `latents` the unconstrained locals that made
    its data where it was simulated, None where nobody knows; `weight` for how many visits each of a unit counts, 1 in
    the mean, where some are visited more often than others (`train.minibatches`). On the host all are NumPy's.
    """

    arrays: dict[str, AnyArray]
    masks: dict[str, Bool[AnyArray, "..."]]  # noqa: UP037
    lengths: dict[str, Int[AnyArray, "*units"]]
    rows: Int[AnyArray, "*units"] | None = None
    choice: AnyArray | None = None
    latents: Float[AnyArray, "*units_and_d"] | None = None
    weight: Float[AnyArray, "*units"] | None = None

    def at(self, choice: Array) -> Batch:
        """The same with the learned discrete sites at a choice."""
        return Batch(self.arrays, self.masks, self.lengths, self.rows, choice)


class Fixed(eqx.Module):
    """Arrays stored in a module that training must not touch (standardisation, whitening)."""

    value: PyTree


def trainable(tree: PyTree) -> PyTree:
    """A filter for `eqx.partition`: True at floating arrays outside `Fixed`."""

    def mark(node: PyTree) -> PyTree:
        if isinstance(node, Fixed):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mark, tree, is_leaf=lambda node: isinstance(node, Fixed))
