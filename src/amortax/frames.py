"""Where does a family live? In a frame: an affine map from its standardised numbers to a unit's own.

A head places the frame for every unit and draw of the globals; the family then says only what the frame got wrong.
"""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._linalg import solve_lower
from ._types import Fixed


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
