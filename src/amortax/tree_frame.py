"""Where does a tree of numbers live? One Newton step whose cost grows with its elements, not with their cube.

The locals of a unit are a tree (`joint.tree`): given its ancestors, an element tells nothing of its siblings. So the
curvature P = -∇² log p has a block D for every element and blocks X between it and its ancestors, and nothing else. One
product of P with a vector that is one in the same place of all elements of a level gives that column of all its blocks
at once: the products are as many as the levels have numbers, whatever the elements.

P is factored from the leaves up. With D = L Lᵀ the block of an element once those below it are eliminated,

    D_a ← D_a - Σ Xᵀ D⁻¹ X,   X_ab ← X_ab - Σ X_aᵀ D⁻¹ X_b,   g_a ← g_a - Σ Xᵀ D⁻¹ g,

and read from the root down: step_m = D⁻¹ (g - Σ_a X_a step_a), and a draw of N(0, P⁻¹) is

    s_m = L⁻ᵀ w_m - D⁻¹ Σ_a X_a s_a,   w standard normal.

Padding stands at its center, where the prior is, whatever q would say: values that overflow there would make NaN of the
gradient, though nothing of them counts. For a Gaussian hierarchy the frame is the exact posterior of the unit given the
globals, for any number of elements.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._linalg import cholesky, solve_lower
from .frames import AbstractFrame, bounded, definite, positive
from .joint.tree import Tree

PROMISED = 0.1  # share of the gain that a Newton step promises, by which it is taken in full

Levels = list[Array]  # an array of every level: (*grid, ...)
Cross = dict[tuple[int, int], Array]  # of a level and one above it: (*grid, width, width above)


class TreeFrame(AbstractFrame):
    """Standardised numbers level by level → a unit's numbers in the order of its sites."""

    tree: Tree = eqx.field(static=True)
    centers: Levels
    scales: Levels
    factors: Levels  # L of every element
    gains: Cross  # D⁻¹ X
    masks: Levels

    def place(self, free: Float[Array, " d"]) -> Float[Array, " d"]:
        """w → u."""
        found: Levels = []
        for number, (factor, noise) in enumerate(zip(self.factors, self.tree.of_levels(free), strict=True)):
            moved = _over(_solve_transposed, factor, noise) - self._told(number, found)
            found.append(jnp.where(self.masks[number][..., None], moved, 0.0))
        return self.tree.join([c + s * x for c, s, x in zip(self.centers, self.scales, found, strict=True)])

    def take(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """u → w."""
        parts = zip(self.tree.split(value), self.centers, self.scales, strict=True)
        found = [(x - c) / s for x, c, s in parts]
        noises = [
            jnp.einsum("...ij,...i->...j", factor, found[number] + self._told(number, found))
            for number, factor in enumerate(self.factors)
        ]
        return self.tree.by_level(noises)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log |du / dw| of the unit's own elements."""
        total = jnp.zeros(())
        for factor, scale, mask in zip(self.factors, self.scales, self.masks, strict=True):
            each = jnp.log(scale) - jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
            total = total + jnp.sum(jnp.where(mask[..., None], each, 0.0))
        return total

    def _told(self, number: int, above: Levels) -> Array:
        """D⁻¹ Σ X_a s_a of a level, from what stands above it."""
        ancestors = self.tree.levels[number].ancestors
        return sum((_apply(self.gains[number, a], above[a]) for a in ancestors), jnp.zeros(self.tree.shape(number)))


def newton_frame(
    tree: Tree,
    density: Callable[[Levels], Array],
    start: Levels,
    frame: tuple[Levels, Levels],
    masks: Levels,
) -> tuple[TreeFrame, Levels, Levels]:
    """(frame, steps, log scales) of one Newton step on `density` from `start`, within `frame` = (centers, scales)."""
    start = [jnp.where(mask[..., None], x, 0.0) for x, mask in zip(start, masks, strict=True)]
    gradient, blocks, cross = curvature(tree, density, start)
    factors, pulls, gains = eliminate(tree, gradient, blocks, cross, masks)
    steps: Levels = []
    for number, level in enumerate(tree.levels):
        told = sum((_apply(gains[number, a], steps[a]) for a in level.ancestors), jnp.zeros(tree.shape(number)))
        steps.append(jnp.where(masks[number][..., None], pulls[number] - told, 0.0))
    steps = _trusted(density, start, [bounded(step) for step in steps], gradient)
    centers = [c + s * (a + step) for c, s, a, step in zip(*frame, start, steps, strict=True)]
    log_scales = [-jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)) for factor in factors]
    return TreeFrame(tree, centers, frame[1], factors, gains, masks), steps, log_scales


def _trusted(density: Callable[[Levels], Array], start: Levels, steps: Levels, gradient: Levels) -> Levels:
    """The steps where they gain a tenth of what the curvature promises, else at most one prior sd of them.

    Far from the mode a density that is not Gaussian (in the log of a scale, say) promises more than it keeps, and where
    a full step lands its terms overflow. For a Gaussian one the promise is exact.
    """
    promised = 0.5 * sum(jnp.sum(g * step) for g, step in zip(gradient, steps, strict=True))
    gained = density([x + step for x, step in zip(start, steps, strict=True)]) - density(start)
    longest = jnp.max(jnp.stack([jnp.max(jnp.abs(step)) for step in steps]))
    share = jnp.where(jax.lax.stop_gradient(gained > PROMISED * promised), 1.0, 1.0 / jnp.maximum(longest, 1.0))
    return [share * step for step in steps]


def curvature(tree: Tree, density: Callable[[Levels], Array], at: Levels) -> tuple[Levels, Levels, Cross]:
    """Gradient, blocks and cross blocks of -∇² of a density, by one product for each number of a level."""
    gradient, product = jax.linearize(jax.grad(density), at)
    widths = [level.width for level in tree.levels]
    ends = np.cumsum([0, *widths])
    places = [np.zeros((ends[-1], *tree.shape(i)), np.float32) for i in range(len(widths))]
    for number, width in enumerate(widths):
        for column in range(width):
            places[number][ends[number] + column, ..., column] = 1.0
    products = jax.vmap(product)([jnp.asarray(x, at[0].dtype) for x in places])
    columns = [jnp.moveaxis(-x, 0, -1) for x in products]  # (*grid, width, columns of all levels)
    blocks = [columns[i][..., ends[i] : ends[i + 1]] for i in range(len(widths))]
    cross = {
        (i, a): columns[i][..., ends[a] : ends[a + 1]] for i, level in enumerate(tree.levels) for a in level.ancestors
    }
    return gradient, blocks, cross


def eliminate(
    tree: Tree, gradient: Levels, blocks: Levels, cross: Cross, masks: Levels
) -> tuple[Levels, Levels, Cross]:
    """(L, D⁻¹ g, D⁻¹ X) of every element once its descendants are eliminated; the identity in padding.

    Where D is not positive definite, far from a mode, the element stands alone: by its own curvature, tied to none.
    """
    slopes, below, cross = list(gradient), list(blocks), dict(cross)
    factors: Levels = [jnp.zeros(0)] * len(blocks)
    pulls: Levels = [jnp.zeros(0)] * len(blocks)
    gains: Cross = {}
    for number in reversed(range(len(blocks))):
        ancestors, own = tree.levels[number].ancestors, jnp.eye(tree.levels[number].width)
        block, alone = (jnp.where(masks[number][..., None, None], x[number], own) for x in (below, blocks))
        good = _over(definite, block)
        alone = _over(positive, alone)
        factors[number] = factor = _over(cholesky, jnp.where(good[..., None, None], block, alone))
        pulls[number] = pull = _over(_solve, factor, jnp.where(good[..., None], slopes[number], gradient[number]))
        for edge in [edge for edge in cross if number in edge]:
            kept = gains if edge in gains else cross
            kept[edge] = jnp.where(good[..., None, None], kept[edge], 0.0)
        for a in ancestors:
            gains[number, a] = _over(_solve, factor, cross[number, a])
        for a in ancestors:
            back, grid = jnp.swapaxes(cross[number, a], -1, -2), tree.levels[a].grid
            slopes[a] = slopes[a] - _summed(_apply(back, pull), grid)
            below[a] = below[a] - _summed(back @ gains[number, a], grid)
            for b in tree.levels[a].ancestors:  # not of plates beside a's: this level is tied to one of both at most
                cross[a, b] = cross[a, b] - _summed(back @ gains[number, b], grid)
    return factors, pulls, gains


def _apply(matrix: Array, vector: Array) -> Array:
    """Matrices of all elements times their vectors, or those of one above them."""
    return jnp.sum(matrix * vector[..., None, :], axis=-1)


def _summed(value: Array, grid: tuple[int, ...]) -> Array:
    """Summed over the elements below one of `grid`."""
    axes = tuple(i for i, (n, size) in enumerate(zip(grid, value.shape, strict=False)) if n == 1 and size > 1)
    return jnp.sum(value, axis=axes, keepdims=True)


def _over(function: Callable[..., Array], factor: Array, *value: Array) -> Array:
    """A function of one element's matrix, and value, over all elements."""
    grid = factor.shape[:-2]
    flat = [x.reshape(-1, *x.shape[len(grid) :]) for x in (factor, *value)]
    found = jax.vmap(function)(*flat)
    return found.reshape(*grid, *found.shape[1:])


def _solve(factor: Array, value: Array) -> Array:
    """(L Lᵀ)⁻¹ value."""
    return _solve_transposed(factor, solve_lower(factor, value))


def _solve_transposed(factor: Array, value: Array) -> Array:
    """L⁻ᵀ value."""
    flipped = factor[::-1, ::-1].T
    return solve_lower(flipped, value[::-1])[::-1]
