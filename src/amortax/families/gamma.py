"""Gamma distributions of positive numbers, on the scale of their logarithms.

For x ~ Gamma(a, rate b) and u = log x, with the Jacobian,

    log q(u) = a (u + log b) - b exp(u) - log Γ(a),

which is linear in (u, exp(u)). The gradient through a draw is the implicit one (Figurnov, Mohamed and Mnih 2018).
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, log_ndtr, polygamma
from jaxtyping import Array, Float

from .._types import Context
from .base import AbstractNatural, Component, least_share

TRIES = 4  # proposals of a draw, of which each is refused with probability 0.05 at most
NOISES = TRIES + 2  # standard normals of a draw: the proposals, what accepts, and the boost
LARGE, FAR, TERMS = 20.0, 3.7, 81  # a shape and a distance beyond which, and before which so many terms, serve
LOWEST = -60.0  # logarithm of a draw: below, float32 and the model with it have zero
START = 10.0  # shape at the start: an sd of a third of an e-fold


@jax.custom_jvp
def log_gamma(shape: Float[Array, "*n"], noise: Float[Array, "*n noises"]) -> Float[Array, "*n"]:
    """The logarithm of a draw of Gamma(shape, 1) at standard normal noise, with its implicit gradient by `shape`.

    Marsaglia and Tsang (2000) for shape + 1, times U^(1/shape). Of a uniform that refuses a proposal, what is left is
    uniform again and serves the next. The last proposal is taken as it is: in less than one draw in 5,000.
    """
    proposals, accepting, boost = noise[..., :TRIES], noise[..., TRIES], noise[..., TRIES + 1]
    d = shape + 2.0 / 3.0
    root = jnp.maximum(1.0 + proposals * jax.lax.rsqrt(9.0 * d)[..., None], 1e-3)
    log_ratio = 0.5 * proposals**2 + d[..., None] * (1.0 - root**3 + 3.0 * jnp.log(root))
    accepted = jnp.where(root > 1e-3, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    uniform, found, done = jax.scipy.special.ndtr(accepting), root[..., -1], jnp.zeros(shape.shape, bool)
    for i in range(TRIES - 1):
        takes = ~done & (uniform < accepted[..., i])
        found = jnp.where(takes, root[..., i], found)
        done = done | takes
        uniform = jnp.clip((uniform - accepted[..., i]) / jnp.maximum(1.0 - accepted[..., i], 1e-7), 0.0, 1.0)
    return jnp.log(d) + 3.0 * jnp.log(found) + log_ndtr(boost) / shape


@log_gamma.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    drawn = log_gamma(*primals)
    return drawn, implicit_slope(primals[0], drawn) * tangents[0]


def implicit_slope(shape: Float[Array, "*n"], log_value: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """d log g / d shape at constant F(g; shape), of g ~ Gamma(shape, 1).

    By the power series of log F; for large shapes, and beyond most draws, by Wilson and Hilferty's normal.
    """
    root = jnp.maximum(jnp.exp((log_value - jnp.log(shape)) / 3.0), 1e-3)
    standard = 3.0 * jnp.sqrt(shape) * (root - 1.0 + 1.0 / (9.0 * shape))
    by_normal = 1.0 / shape + (1.0 / (3.0 * shape**2) - 0.5 * standard * shape**-1.5) / root
    beyond = (shape > LARGE) | (standard > FAR)
    near, at = jnp.where(beyond, 1.0, shape), jnp.where(beyond, 0.0, log_value)
    value = jnp.exp(at)

    def add(number: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        """One term of S = Σ x^n / ((a + 1) ... (a + n)), of -∂S/∂a and of ∂S/∂log x."""
        term, harmonic, total, by_shape, by_log = sums
        term, harmonic = term * value / (near + number), harmonic + 1.0 / (near + number)
        return term, harmonic, total + term, by_shape + term * harmonic, by_log + number * term

    one, zero = jnp.ones_like(value), jnp.zeros_like(value)
    _, _, total, by_shape, by_log = jax.lax.fori_loop(1, TERMS, add, (one, zero, one, zero, zero), unroll=4)
    by_series = -(at - digamma(near + 1.0) - by_shape / total) / (near - value + by_log / total)
    return jnp.where(beyond, by_normal, by_series)


class Gamma(AbstractNatural):
    """Independent gamma distributions; numbers are logarithms."""

    size: int = eqx.field(static=True)
    log_shape: Float[Array, " d"]
    log_rate: Float[Array, " d"]
    cheap_log_prob: ClassVar[bool] = True
    draws_needed: ClassVar[int] = 2

    @staticmethod
    def near_one(size: int) -> Gamma:
        """Mean one, the same for all numbers."""
        start = jnp.full(size, jnp.log(START))
        return Gamma(size, start, start)

    @property
    def noise_size(self) -> int:
        """Normals of all numbers."""
        return NOISES * self.size

    def own_frame(self, center: Float[Array, " d"], scale: Float[Array, " d"]) -> tuple[Array, Array]:
        """A gamma times a factor is one; to another power it isn't."""
        return center, jnp.ones_like(scale)

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw with its implicit gradient, and its log density in nats."""
        log_g = log_gamma(jnp.exp(self.log_shape), noise.reshape(self.size, NOISES))
        value = jnp.maximum(log_g, LOWEST) - self.log_rate
        return value, self.log_prob(value, context)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        shape, scaled = jnp.exp(self.log_shape), value + self.log_rate
        return jnp.sum(shape * scaled - jnp.exp(jnp.minimum(scaled, 80.0)) - gammaln(shape))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of the logarithm: ψ(a) - log b and √ψ'(a)."""
        shape = jnp.exp(self.log_shape)
        return digamma(shape) - self.log_rate, jnp.sqrt(polygamma(1, shape))

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """The logarithm less its mean, by its sd."""
        mean, sd = self.mean_and_sd(context)
        return (value - mean) / sd

    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> Gamma:
        """Regresses slopes on x by the instrument D = ∂u/∂a (see `AbstractNatural`): slope = c + k (b x / a - 1).

        Moments of q itself, with e = a ψ'(a) - 1: E[b x / a - 1] = 0, E[a D - 1] = e, and their product -e.
        """
        shape, rest = jnp.exp(self.log_shape), 1.0 - rate
        noises = noise.reshape(-1, self.size, NOISES)
        shapes = jnp.broadcast_to(shape, noises.shape[:-1])
        drawn = jnp.maximum(log_gamma(shapes, noises), LOWEST)
        x = jnp.expm1(drawn - self.log_shape)
        instrument = shape * implicit_slope(shapes, drawn) - 1.0
        excess = shape * polygamma(1, shape) - 1.0
        mean_slope, mean_x = rate * jnp.mean(slopes, axis=0), rate * jnp.mean(x, axis=0)
        mean_instrument = rest * excess + rate * jnp.mean(instrument, axis=0)
        with_x = rate * jnp.mean(instrument * x, axis=0) - rest * excess - mean_instrument * mean_x
        with_slope = rate * jnp.mean(instrument * slopes, axis=0) - mean_instrument * mean_slope
        k = with_slope / with_x
        c = mean_slope - k * mean_x
        of_shape, of_rate = (jnp.maximum(1.0 + change / shape, least_share(rate)) for change in (c - k, -k))
        return Gamma(self.size, self.log_shape + jnp.log(of_shape), self.log_rate + jnp.log(of_rate))
