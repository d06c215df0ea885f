"""Where does a family live? In a frame: an affine map from its standardised numbers to a unit's own.

A head places the frame for every unit and draw of the globals; the family then says only what the frame got wrong.
"""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._linalg import cholesky, solve_lower
from ._types import Fixed

CURVATURE_FLOOR = 0.05  # in units of the prior's own precision: a flatter direction is taken to be that flat
LONGEST_STEP = 10.0  # prior standard deviations that one Newton step may move


class AbstractFrame(eqx.Module):
    """An affine map w -> u of the numbers of one unit."""

    @abstractmethod
    def place(self, free: Float[Array, " d"]) -> Float[Array, " d"]:
        """w → u."""

    @abstractmethod
    def take(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """u → w."""

    @property
    @abstractmethod
    def log_det(self) -> Float[Array, ""]:
        """log |du / dw|."""


class Frame(AbstractFrame):
    """`u = center + factor @ w` with lower triangular or (1-d) diagonal `factor`."""

    center: Float[Array, " d"]
    factor: Float[Array, "d d"] | Float[Array, " d"]

    def place(self, free: Float[Array, " d"]) -> Float[Array, " d"]:
        """w → u."""
        return self.center + (self.factor * free if self.factor.ndim == 1 else self.factor @ free)

    def take(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """u → w."""
        away = value - self.center
        return away / self.factor if self.factor.ndim == 1 else solve_lower(self.factor, away)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log |du / dw|."""
        diagonal = self.factor if self.factor.ndim == 1 else jnp.diagonal(self.factor)
        return jnp.sum(jnp.log(jnp.abs(diagonal)))


def prior_frame(whitening: Fixed) -> Frame:
    """The fixed frame of a block: prior medians and quartile spreads."""
    fixed = jax.tree.map(jax.lax.stop_gradient, whitening.value)
    return Frame(fixed["center"], fixed["scale"])


def bounded(step: Array) -> Array:
    """The step itself up to half of `LONGEST_STEP`, exactly; beyond, smoothly bounded by it."""
    half = 0.5 * LONGEST_STEP
    beyond = jnp.maximum(jnp.abs(step) - half, 0.0)
    return jnp.clip(step, -half, half) + jnp.sign(step) * half * jnp.tanh(beyond / half)


def definite(curvature: Float[Array, "d d"]) -> Bool[Array, ""]:
    """Whether no direction is flatter than the floor, read from the pivots of a Cholesky factorisation."""
    return jnp.all(jnp.isfinite(cholesky(jax.lax.stop_gradient(curvature) - CURVATURE_FLOOR * jnp.eye(len(curvature)))))


def positive(curvature: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """A positive definite precision: the curvature where it is one, else its diagonal's size, at least the prior's.

    The branch not taken sees a safe matrix, so that its gradient stays finite.
    """
    size = curvature.shape[0]
    if size == 1:
        return jnp.maximum(curvature, CURVATURE_FLOOR)
    symmetric = 0.5 * (curvature + curvature.T)
    floored = jnp.diag(jnp.maximum(jnp.abs(jnp.diagonal(symmetric)), 1.0))
    return jnp.where(definite(symmetric), symmetric, floored)
