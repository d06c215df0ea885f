"""How do a unit's locals follow a draw of the globals? Heads: the frame in which the local family is placed.

Given the context e of a unit and a draw v of the globals, a head yields a frame and what the family is told:

    u = center + factor @ w,   w ~ family( . | told).

Without v in the head a hierarchical posterior is mean-field between levels and its intervals are wrong.

*Fixed frame* (`concatenate`): prior medians and quartiles; the family is told (e, v). Enough for few globals.

*Newton frame* (`newton`): a network predicts a point a(e) near the mode, once per unit, and the frame is one Newton
step on log p(d, u | v) from there,

    A = -∇²_u log p(d, u | v) at a,   center = a + A⁻¹ ∇_u log p(d, a | v),   factor = A^(-1/2).

For Gaussian models it is the exact conditional posterior whatever a(e) is; otherwise, by the implicit function
theorem, center follows v as the mode does to first order, for any number of globals. The family corrects the rest.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._linalg import cholesky, solve_lower
from ._network import Network, over_rows
from ._recipe import Recipe
from ._types import Batch, Context
from .frames import AbstractFrame, Frame, bounded, positive
from .joint.joint import Joint
from .joint.tree import Tree, tree_of
from .tree_frame import newton_frame


class AbstractHead(eqx.Module):
    """(context, globals, unit) → frame of the local family, and what the family is told."""

    told_sizes: eqx.AbstractVar[tuple[int, ...]]

    @abstractmethod
    def __call__(
        self, context: Context, shared: Array, whitened: Array, frame: Frame, unit: Batch, joint: Joint
    ) -> tuple[AbstractFrame, Context]:
        """`whitened` are the globals standardised; `frame` is the fixed one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class concatenate(Recipe, slots=("head",)):
    """Recipe of `Concatenate`: the family sees context and globals side by side."""

    def build(self, size: int, context_sizes: tuple[int, ...], whitened_size: int, *, key: Array) -> Concatenate:
        """The head for locals of dimension `size`."""
        return Concatenate((*context_sizes, whitened_size))


class Concatenate(AbstractHead):
    """The fixed frame; the family is told (context, globals)."""

    told_sizes: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, context: Context, shared: Array, whitened: Array, frame: Frame, unit: Batch, joint: Joint
    ) -> tuple[Frame, Context]:
        """The frame unchanged."""
        return frame, (*context, whitened)


@dataclasses.dataclass(frozen=True, kw_only=True)
class newton(Recipe, slots=("head",)):
    """Recipe of `Newton`: one Newton step of the model itself places the family; `most` globals are told beside it."""

    width: int = 64
    most: int = 32

    def build(self, size: int, context_sizes: tuple[int, ...], whitened_size: int, *, key: Array) -> Newton:
        """The head for locals of dimension `size`; without context, each unit has a point of its own."""
        tells = whitened_size <= 2 * self.most
        told = (*context_sizes, *((whitened_size,) if tells else ()), size, size)
        if not context_sizes:
            return Newton(told, OwnPoint(size), tells)
        return Newton(told, Network(context_sizes, size, self.width, 1, key=key, last_scale=0.1), tells)

    def build_nested(
        self, tree: Tree, context_sizes: tuple[int, ...], whitened_size: int, *, key: Array
    ) -> NestedNewton:
        """The head for a tree of locals, of which every level has a context."""
        tells = 0 < whitened_size <= 2 * self.most
        told = tuple((n, level.width, level.width) for n, level in zip(context_sizes, tree.levels, strict=True))
        points = tuple(
            Network((n,), size, self.width, 1, key=k, last_scale=0.1)
            for (n, size, _), k in zip(told, jax.random.split(key, len(told)), strict=True)
        )
        return NestedNewton((*sum(told, ()), *(whitened_size,) * tells), points, tells)


class OwnPoint(eqx.Module):
    """The point of a unit with parameters of its own: its row's first numbers."""

    size: int = eqx.field(static=True)

    def __call__(self, row: Float[Array, " p"]) -> Float[Array, " d"]:
        """The point."""
        return row[: self.size]


class Newton(AbstractHead):
    """One Newton step from a learned point; the family is told (context, globals if few, step, log curvature)."""

    told_sizes: tuple[int, ...] = eqx.field(static=True)
    point: Network | OwnPoint
    tells_globals: bool = eqx.field(static=True)

    def __call__(
        self, context: Context, shared: Array, whitened: Array, frame: Frame, unit: Batch, joint: Joint
    ) -> tuple[Frame, Context]:
        """The frame of one unit given one draw of the globals."""

        def density(free: Array) -> Array:
            return joint.unit_log_prob(frame.place(free), shared, unit).unit

        placed, step, log_scale = dense_newton_frame(density, self.point(*context), frame)
        globals_told = (whitened,) if self.tells_globals else ()
        return placed, (*context, *globals_told, step, log_scale)


def dense_newton_frame(
    density: Callable[[Array], Array], start: Float[Array, " d"], frame: Frame
) -> tuple[Frame, Float[Array, " d"], Float[Array, " d"]]:
    """(frame, step, log scales) of one Newton step on `density` from `start`, both in the numbers of `frame`."""
    gradient = jax.grad(density)(start)
    precision = positive(-jax.hessian(density)(start))
    if start.shape[0] == 1:
        scale = jax.lax.rsqrt(precision[0])
        step = bounded(gradient / precision[0])
        return Frame(frame.place(start + step), frame.factor * scale), step, jnp.log(scale)
    root = solve_lower(cholesky(precision), jnp.eye(start.shape[0]))  # rootᵀ root is the covariance
    step = bounded(root.T @ (root @ gradient))
    factor = cholesky(root.T @ root)
    placed = Frame(frame.place(start + step), frame.factor[:, None] * factor)
    return placed, step, jnp.log(jnp.diagonal(factor))


class NestedNewton(AbstractHead):
    """One Newton step for a tree of locals, from a learned point of every element.

    The family is told, level by level, (context, step, log scale, mask) of every element; then the globals if few.
    """

    told_sizes: tuple[int, ...] = eqx.field(static=True)  # (context, step, log scale) of every level; globals
    points: tuple[Network, ...]
    tells_globals: bool = eqx.field(static=True)

    def __call__(
        self, context: Context, shared: Array, whitened: Array, frame: Frame, unit: Batch, joint: Joint
    ) -> tuple[AbstractFrame, Context]:
        """The frame of one unit given one draw of the globals; `frame` has one number for each place of a level."""
        structure = joint.structure.at(unit)
        tree = tree_of(structure)
        masks = tree.masks(structure, unit)
        centers, scales = tree.elementwise(frame.center), tree.elementwise(frame.factor)

        def density(free: list[Array]) -> Array:
            local = tree.join([c + s * x for c, s, x in zip(centers, scales, free, strict=True)])
            return joint.unit_log_prob(local, shared, unit).unit

        start = [over_rows(point, x) for point, x in zip(self.points, context, strict=True)]
        placed, steps, log_scales = newton_frame(tree, density, start, (centers, scales), masks)
        told = [part for group in zip(context, steps, log_scales, masks, strict=True) for part in group]
        return placed, (*told, *(whitened,) * self.tells_globals)
