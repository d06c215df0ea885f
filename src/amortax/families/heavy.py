"""How are heavy tails drawn? Normals over the root of a chi-square that they share: a multivariate Student-t.

    t = z √(ν / χ²),  z ~ N(0, I),  χ² = the sum of ν squared normals,      u = m + L t

    log q(t) = log Γ((ν + d)/2) - log Γ(ν/2) - d/2 log(ν π) - (ν + d)/2 log(1 + |t|²/ν)

ν is a whole number, so that a draw is a smooth map of d + ν standard normals.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import Context, whole_number
from .base import AbstractSingle, Component
from .flow import AbstractBase
from .normal import FullNormal, full


@dataclasses.dataclass(frozen=True)
class student_t(Recipe, slots=("family", "shared_family")):
    """Recipe of `StudentT`, a Student-t of any location and scale matrix; or, as `base=` of a flow, of its tails.

    `df` degrees of freedom, a whole number from 3: with fewer the variance is infinite, and so is the bound under any
    model with normal tails. `depth` hidden layers of `width` between context and parameters (None: chosen).
    """

    df: int = 5
    width: int = 64
    depth: int | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> StudentT:
        """The family on R^size."""
        base = self.build_base(size)
        return StudentT(size, base, full(width=self.width, depth=self.depth).build(size, context_sizes, key=key))

    def build_base(self, size: int) -> StudentBase:
        """The standard Student-t on R^size."""
        if whole_number("am.student_t: df", self.df, GuideError) < 3:
            raise GuideError(f"am.student_t(df={self.df}) has no finite variance; df must be a whole number from 3")
        return StudentBase(size, self.df)


class StudentBase(AbstractBase):
    """A standard Student-t, all numbers over the same chi-square."""

    size: int = eqx.field(static=True)
    df: int = eqx.field(static=True)

    @property
    def noise_size(self) -> int:
        """One normal for every number and one for every degree of freedom."""
        return self.size + self.df

    def draw(self, noise: Float[Array, " noise"]) -> Float[Array, " d"]:
        """`z √(ν / χ²)`."""
        # The floor is below what float32 normals reach; it keeps a noise of zeros finite.
        chi_square = jnp.maximum(jnp.sum(noise[self.size :] ** 2), 1e-6)
        return noise[: self.size] * jnp.sqrt(self.df / chi_square)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        half = 0.5 * (self.df + self.size)
        constant = gammaln(half) - gammaln(0.5 * self.df) - 0.5 * self.size * jnp.log(self.df * jnp.pi)
        return constant - half * jnp.log1p(jnp.sum(value**2) / self.df)


class StudentT(AbstractSingle):
    """A multivariate Student-t of any location and scale matrix."""

    size: int = eqx.field(static=True)
    base: StudentBase
    normal: FullNormal  # the location and the scale matrix are those of this normal
    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """One normal for every number and one for every degree of freedom."""
        return self.base.noise_size

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        standard = self.base.draw(noise)
        value, log_det = self.normal.stretch(standard, context)
        return value, self.base.log_prob(standard) - log_det

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        standard, log_det = self.normal.shrink(value, context)
        return self.base.log_prob(standard) - log_det

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """The location, and the scales times √(ν / (ν - 2))."""
        mean, scale = self.normal.mean_and_sd(context)
        return mean, scale * (self.base.df / (self.base.df - 2)) ** 0.5

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """`L⁻¹ (value - m)`, of variance ν / (ν - 2)."""
        return self.normal.standardize(value, context)
