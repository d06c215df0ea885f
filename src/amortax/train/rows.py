"""How do units' own parameters train in minibatches? A step sees the rows of its units alone.

Whatever is shaped as the parameters (they themselves, moments, visits) keeps the units' rows in leaves called
`own_rows`, (N, ...). Before a step the B rows of its units are gathered from each, after it they are scattered back:
neither a gradient nor an update ever has N rows. `adam_by_row` counts each row's own visits (lazy Adam).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._types import AnyArray, Batch, PyTree
from ..objectives.base import batch_size

NAME = "own_rows"
Rows = Int[AnyArray, " batch"]


def map_rows(at_rows: Callable, elsewhere: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    """`at_rows` of the leaves that hold units' rows, `elsewhere` of all others."""

    def at(path: tuple, *leaves: Any) -> Any:
        named = bool(path) and getattr(path[-1], "name", None) == NAME
        return (at_rows if named else elsewhere)(*leaves)

    return jax.tree_util.tree_map_with_path(at, tree, *rest)


def gather(tree: PyTree, rows: Rows) -> PyTree:
    """With these rows only."""
    return map_rows(lambda x: x[rows], lambda x: x, tree)


def scatter(tree: PyTree, part: PyTree, rows: Rows) -> PyTree:
    """`part`, with its rows put back among those of `tree`; none may be there twice."""
    return map_rows(lambda table, own: table.at[rows].set(own, unique_indices=True), lambda _, x: x, tree, part)


def renumbered(batch: Batch) -> Batch:
    """The minibatch, its rows numbered as `gather` puts them."""
    return dataclasses.replace(batch, rows=jnp.arange(batch_size(batch), dtype=jnp.int32))


class AdamByRow(NamedTuple):
    """Every field is a tree shaped as the parameters."""

    visits: PyTree  # (N, 1)
    mean: PyTree
    square: PyTree


def adam_by_row(memory: float | Array, decay: float = 0.9) -> optax.GradientTransformation:
    """Adam whose bias correction counts how often a row was in a step: a late first visit is a first visit.

    `memory` is the decay of the mean square, `decay` that of the mean gradient (Kingma and Ba 2015).
    """

    def init(params: PyTree) -> AdamByRow:
        visits = jax.tree.map(lambda x: jnp.zeros((x.shape[0], 1), x.dtype), params)
        return AdamByRow(visits, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(gradient: PyTree, state: AdamByRow, params: PyTree | None = None) -> tuple[PyTree, AdamByRow]:
        visits = jax.tree.map(lambda n: n + 1.0, state.visits)
        mean = jax.tree.map(lambda m, g: decay * m + (1.0 - decay) * g, state.mean, gradient)
        square = jax.tree.map(lambda s, g: memory * s + (1.0 - memory) * g**2, state.square, gradient)

        def step(n: Array, m: Array, s: Array) -> Array:
            return m / (1.0 - decay**n) / (jnp.sqrt(s / (1.0 - memory**n)) + 1e-15)

        return jax.tree.map(step, visits, mean, square), AdamByRow(visits, mean, square)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
