"""Normal families: diagonal, low-rank plus diagonal, full covariance; with a context or free.

diagonal   u = m + s ⊙ ε                 Σ = diag(s²)
low rank   u = m + s ⊙ ε + F η           Σ = diag(s²) + F Fᵀ,  F of shape (d, rank)
full       u = m + L ε                   Σ = L Lᵀ,  L lower triangular
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._linalg import cholesky, solve_lower
from .._recipe import Recipe
from .._types import Context
from .base import (
    AbstractNatural,
    AbstractSingle,
    Component,
    Conditioner,
    bounded_log_scale,
    free_log_scale,
    least_share,
    standard_log_prob,
    triangular,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class diagonal(Recipe, slots=("family", "shared_family")):
    """Recipe of `DiagonalNormal`; `depth` hidden layers of `width` between context and parameters (None: chosen)."""

    width: int = 64
    depth: int | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> DiagonalNormal:
        """The family on R^size."""
        return DiagonalNormal(size, Conditioner(2 * size, size, context_sizes, self.width, self.depth or 0, key=key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class full(Recipe, slots=("family", "shared_family")):
    """Recipe of `FullNormal`; `depth` hidden layers of `width` between context and parameters (None: chosen)."""

    width: int = 64
    depth: int | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> FullNormal:
        """The family on R^size."""
        count = 2 * size + size * (size - 1) // 2
        return FullNormal(size, Conditioner(count, size, context_sizes, self.width, self.depth or 0, key=key))


@dataclasses.dataclass(frozen=True)
class low_rank(Recipe, slots=("family", "shared_family")):
    """Recipe of `LowRankNormal` with `rank` columns; `depth` hidden layers of `width` (None: chosen)."""

    rank: int = 8
    width: int = 64
    depth: int | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> LowRankNormal:
        """The family on R^size."""
        if not 1 <= self.rank <= size:
            raise GuideError(f"am.low_rank(rank={self.rank}) on {size} dimensions: rank must be 1 to {size}")
        conditioner, start = jax.random.split(key)
        count = 2 * size + size * self.rank
        parameters = Conditioner(count, size, context_sizes, self.width, self.depth or 0, key=conditioner)
        # Columns at zero would be a saddle point: their gradient vanishes together with them.
        columns = 0.05 * jax.random.normal(start, (size * self.rank,))
        parameters = eqx.tree_at(lambda c: c.offset, parameters, parameters.offset.at[2 * size :].set(columns))
        return LowRankNormal(size, self.rank, parameters)


class AbstractAffine(AbstractSingle):
    """A normal whose draws are an increasing affine map of as many standard normals; flows end with such a map."""

    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """One normal for every number."""
        return self.size

    @abstractmethod
    def stretch(self, standard: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image of `standard`, and the log determinant of the map."""

    @abstractmethod
    def shrink(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `stretch` maps to `value`, and the log determinant of `stretch`."""

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        value, log_det = self.stretch(noise, context)
        return value, standard_log_prob(noise) - log_det

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        standard, log_det = self.shrink(value, context)
        return standard_log_prob(standard) - log_det

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """The standard normals of which `value` is the image."""
        return self.shrink(value, context)[0]


class DiagonalNormal(AbstractAffine, AbstractNatural):
    """Independent normals."""

    size: int = eqx.field(static=True)
    parameters: Conditioner

    def _split(self, context: Context) -> tuple[Array, Array]:
        free = self.parameters(context)
        return free[: self.size], bounded_log_scale(free[self.size :])

    def stretch(self, standard: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """`m + s ⊙ standard`, and the log determinant."""
        mean, log_scale = self._split(context)
        return mean + jnp.exp(log_scale) * standard, jnp.sum(log_scale)

    def shrink(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """`(value - m) / s`, and the log determinant of `stretch`."""
        mean, log_scale = self._split(context)
        return (value - mean) * jnp.exp(-log_scale), jnp.sum(log_scale)

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """`m` and `s`."""
        mean, log_scale = self._split(context)
        return mean, jnp.exp(log_scale)

    @property
    def draws_needed(self) -> int:
        """Every number has two parameters."""
        return 2

    def own_frame(self, center: Float[Array, " d"], scale: Float[Array, " d"]) -> tuple[Array, Array]:
        """All of it."""
        return center, scale

    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> DiagonalNormal:
        """Regresses slopes on ε: slope = c - e ε (see `AbstractNatural`), as far as `_longest` allows."""
        mean, log_scale = self._split(())
        slopes, longest = slopes * jnp.exp(log_scale), _longest(rate)
        mean_noise, mean_slope = rate * jnp.mean(noise, axis=0), rate * jnp.mean(slopes, axis=0)
        variance = (1.0 - rate) + rate * jnp.mean(noise**2, axis=0) - mean_noise**2
        e = -(rate * jnp.mean(slopes * noise, axis=0) - mean_slope * mean_noise) / variance
        precision = jnp.maximum(1.0 + e, least_share(rate))
        step = jnp.clip((mean_slope + e * mean_noise) / precision, 1.0 - longest, longest - 1.0)
        precision = jnp.minimum(precision, longest)
        free = [mean + jnp.exp(log_scale) * step, free_log_scale(log_scale - 0.5 * jnp.log(precision))]
        return eqx.tree_at(lambda f: f.parameters.offset, self, jnp.concatenate(free))


def _longest(rate: Float[Array, ""]) -> Float[Array, ""]:
    """The factor by which one step may raise a precision, and, less one, the sds by which it may move a mean.

    Two for short steps, without bound for one of rate 1: far from the optimum slopes are large, and few draws say
    little of their covariance with the draws.
    """
    return 1.0 + 1.0 / jnp.maximum(1.0 - rate, 1e-9)


class FullNormal(AbstractAffine, AbstractNatural):
    """A normal with any covariance, by its Cholesky factor."""

    size: int = eqx.field(static=True)
    parameters: Conditioner

    def _split(self, context: Context) -> tuple[Array, Array, Array]:
        """`m`, `L` and the log of its diagonal."""
        free = self.parameters(context)
        log_diagonal = bounded_log_scale(free[self.size : 2 * self.size])
        # Rows scale with their own diagonal, so that a narrow posterior needs no huge relative off-diagonals, and by
        # 1/sqrt(d), so that one optimizer step moves a whole row as far as it moves the diagonal.
        unit = jnp.eye(self.size) + triangular(free[2 * self.size :], self.size) / jnp.sqrt(self.size)
        return free[: self.size], jnp.exp(log_diagonal)[:, None] * unit, log_diagonal

    def stretch(self, standard: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """`m + L standard`, and the log determinant."""
        mean, factor, log_diagonal = self._split(context)
        return mean + factor @ standard, jnp.sum(log_diagonal)

    def shrink(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """`L⁻¹ (value - m)`, and the log determinant of `stretch`."""
        mean, factor, log_diagonal = self._split(context)
        return solve_lower(factor, value - mean), jnp.sum(log_diagonal)

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """`m` and the root of the diagonal of `L Lᵀ`."""
        mean, factor, _ = self._split(context)
        return mean, jnp.sqrt(jnp.sum(factor**2, axis=1))

    @property
    def draws_needed(self) -> int:
        """Two in every direction: every slope has a constant and `size` coefficients."""
        return 2 * self.size

    def own_frame(self, center: Float[Array, " d"], scale: Float[Array, " d"]) -> tuple[Array, Array]:
        """All of it."""
        return center, scale

    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> FullNormal:
        """Regresses slopes on ε: Lᵀ slope = c - E ε, E symmetric (see `AbstractNatural`), as far as `_longest` allows.

        The precision becomes L⁻ᵀ (I + E) L⁻¹, and the mean moves by L (I + E)⁻¹ c.
        """
        mean, factor, _ = self._split(())
        slopes, eye, longest = slopes @ factor, jnp.eye(self.size), _longest(rate)
        mean_noise, mean_slope = rate * jnp.mean(noise, axis=0), rate * jnp.mean(slopes, axis=0)
        square, product = noise.T @ noise / noise.shape[0], noise.T @ slopes / noise.shape[0]
        covariance = (1.0 - rate) * eye + rate * square - jnp.outer(mean_noise, mean_noise)
        root = solve_lower(cholesky(covariance), eye)
        e = -root.T @ (root @ (rate * product - jnp.outer(mean_noise, mean_slope)))
        values, axes = jnp.linalg.eigh(0.5 * (e + e.T))
        precision = jnp.maximum(1.0 + values, least_share(rate))
        step = axes @ ((axes.T @ (mean_slope + e @ mean_noise)) / precision)
        farthest = (longest - 1.0) * jnp.sqrt(self.size)
        step = step * jnp.minimum(1.0, farthest / jnp.maximum(jnp.linalg.norm(step), 1e-30))
        turned = (factor @ axes) * jax.lax.rsqrt(jnp.minimum(precision, longest))
        upper = jnp.linalg.qr(turned.T, mode="r")
        return self._at(mean + factor @ step, upper.T * jnp.sign(jnp.diagonal(upper)))

    def _at(self, mean: Float[Array, " d"], factor: Float[Array, "d d"]) -> FullNormal:
        """The family with this mean and Cholesky factor."""
        diagonal = jnp.diagonal(factor)
        unit = factor / diagonal[:, None] * jnp.sqrt(self.size)
        free = [mean, free_log_scale(jnp.log(diagonal)), unit[jnp.tril_indices(self.size, -1)]]
        return eqx.tree_at(lambda f: f.parameters.offset, self, jnp.concatenate(free))


class LowRankNormal(AbstractSingle):
    """A normal with covariance diag(s²) + F Fᵀ; densities by the matrix inversion and determinant lemmas."""

    size: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    parameters: Conditioner
    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """One normal for every number and one for every column."""
        return self.size + self.rank

    def _split(self, context: Context) -> tuple[Array, Array, Array]:
        free = self.parameters(context)
        log_scale = bounded_log_scale(free[self.size : 2 * self.size])
        columns = free[2 * self.size :].reshape(self.size, self.rank)
        return free[: self.size], log_scale, jnp.exp(log_scale)[:, None] * columns

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        mean, log_scale, columns = self._split(context)
        value = mean + jnp.exp(log_scale) * noise[: self.size] + columns @ noise[self.size :]
        return value, self._density(value, mean, log_scale, columns)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        return self._density(value, *self._split(context))

    def _density(self, value: Array, mean: Array, log_scale: Array, columns: Array) -> Array:
        scaled = (value - mean) * jnp.exp(-log_scale)
        relative = columns * jnp.exp(-log_scale)[:, None]
        factor = cholesky(jnp.eye(self.rank) + relative.T @ relative)
        explained = jnp.sum(solve_lower(factor, relative.T @ scaled) ** 2)
        log_det = jnp.sum(log_scale) + jnp.sum(jnp.log(jnp.diagonal(factor)))
        return standard_log_prob(scaled) + 0.5 * explained - log_det

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """`m` and the root of the diagonal of `diag(s²) + F Fᵀ`."""
        mean, log_scale, columns = self._split(context)
        return mean, jnp.sqrt(jnp.exp(2 * log_scale) + jnp.sum(columns**2, axis=1))

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """`(value - m) / sd`, by the marginal standard deviations."""
        mean, sd = self.mean_and_sd(context)
        return (value - mean) / sd
