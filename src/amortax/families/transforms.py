"""How does a flow move one number, given what its network says? By a bounded affine map.

    y = x e^a + b,   a = 2 tanh(free / 2)

so that one layer scales by e² at most, and L layers by e^(2L).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._recipe import Recipe

BOUND = 2.0  # of the log scale of one layer


class AbstractTransform(eqx.Module):
    """An increasing map of every number of a vector, with `count` free numbers each; all zero: the identity."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Free numbers that move one number."""

    @property
    @abstractmethod
    def pace(self) -> float:
        """The share of the usual step that its networks take where the flow is q(v)."""

    @abstractmethod
    def forward(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Images, and the logs of the slopes there."""

    @abstractmethod
    def inverse(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """What `forward` maps to `value`, and the logs of the slopes of `forward` there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class affine(Recipe):
    """Recipe of `Affine`, the transform of RealNVP (Dinh, Sohl-Dickstein and Bengio 2017)."""

    def build(self) -> Affine:
        """The transform."""
        return Affine()


class Affine(AbstractTransform):
    """`y = x e^a + b`."""

    count: ClassVar[int] = 2
    pace: ClassVar[float] = 1.0

    def forward(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Images, and the logs of the slopes there."""
        log_scale = BOUND * jnp.tanh(free[0] / BOUND)
        return value * jnp.exp(log_scale) + free[1], log_scale

    def inverse(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """What `forward` maps to `value`, and the logs of the slopes of `forward` there."""
        log_scale = BOUND * jnp.tanh(free[0] / BOUND)
        return (value - free[1]) * jnp.exp(-log_scale), log_scale
