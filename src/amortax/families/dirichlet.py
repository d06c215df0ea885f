"""Dirichlet distributions on NumPyro's stick-breaking scale; a beta is one of two shares.

A simplex x of K shares has K - 1 unconstrained numbers, u_k = log x_k - log(x_{k+1} + ... + x_K) + log(K - k). The
Jacobian is the product of all shares, so that

    log q(u) = Σ_k α_k log x_k + log Γ(Σ α) - Σ log Γ(α_k)

is linear in log x. For K = 2 the number is the log odds of x_1.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma
from jaxtyping import Array, Float

from .._types import Context
from .base import AbstractNatural, Component, least_share
from .gamma import LOWEST, NOISES, implicit_slope, log_gamma


def to_free(log_x: Float[Array, "*rows shares"]) -> Float[Array, "*rows free"]:
    """Unconstrained numbers of shares from their logarithms."""
    rest = jnp.cumsum(jnp.exp(log_x[..., ::-1]), axis=-1)[..., -2::-1]
    return log_x[..., :-1] - jnp.log(rest) + _offset(log_x.shape[-1])


def to_log_shares(free: Float[Array, "*rows free"]) -> Float[Array, "*rows shares"]:
    """The inverse of `to_free`, for shares that sum to one."""
    log_odds = free - _offset(free.shape[-1] + 1)
    log_rest = jnp.cumsum(-jax.nn.softplus(log_odds), axis=-1)
    first = jnp.zeros_like(log_rest[..., :1])
    return jnp.concatenate([-jax.nn.softplus(-log_odds), first], -1) + jnp.concatenate([first, log_rest], -1)


def _log_shares(log_g: Float[Array, "*rows shares"]) -> Float[Array, "*rows shares"]:
    """Of gammas; no share is so small that float32 has zero for it."""
    return jax.nn.log_softmax(jnp.maximum(jax.nn.log_softmax(log_g, axis=-1), LOWEST), axis=-1)


def _by_log_g(slopes: Float[Array, "*rows free"], log_x: Float[Array, "*rows shares"]) -> Float[Array, "*rows shares"]:
    """Slopes by the unconstrained numbers as slopes by log g: of u_k = log g_k - log Σ_{j>k} g_j + constant."""
    x, nothing = jnp.exp(log_x), jnp.zeros_like(log_x[..., :1])
    rest = jnp.cumsum(x[..., ::-1], axis=-1)[..., -2::-1]
    pulled = jnp.cumsum(slopes / rest, axis=-1)
    return jnp.concatenate([slopes, nothing], -1) - x * jnp.concatenate([nothing, pulled], -1)


def _offset(shares: int) -> Array:
    return jnp.log(jnp.arange(shares - 1.0, 0.0, -1.0))


class Dirichlet(AbstractNatural):
    """Independent Dirichlet distributions, one a row."""

    size: int = eqx.field(static=True)
    log_concentration: Float[Array, "rows shares"]
    cheap_log_prob: ClassVar[bool] = True
    draws_needed: ClassVar[int] = 2

    @staticmethod
    def start(rows: int, shares: int, *, key: Array | None = None) -> Dirichlet:
        """Uniform; with a key, concentrations of about ten, by chance some factors apart.

        Rows that start equal stay equal for long: the noise of their draws hides small differences.
        """
        apart = jnp.zeros((rows, shares)) if key is None else jnp.log(10.0) + jax.random.normal(key, (rows, shares))
        return Dirichlet(rows * (shares - 1), apart)

    @property
    def noise_size(self) -> int:
        """Normals of one gamma for every share."""
        return NOISES * self.log_concentration.size

    def own_frame(self, center: Float[Array, " d"], scale: Float[Array, " d"]) -> tuple[Array, Array]:
        """Neither shifted nor stretched is it one."""
        return jnp.zeros_like(center), jnp.ones_like(scale)

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw with its implicit gradient, and its log density in nats."""
        log_g = log_gamma(jnp.exp(self.log_concentration), noise.reshape(*self.log_concentration.shape, NOISES))
        log_x = _log_shares(log_g)
        return jnp.ravel(to_free(log_x)), self._density(log_x)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        return self._density(to_log_shares(value.reshape(self.log_concentration.shape[0], -1)))

    def _density(self, log_x: Float[Array, "rows shares"]) -> Float[Array, ""]:
        concentration = jnp.exp(self.log_concentration)
        total = gammaln(jnp.sum(concentration, axis=-1))
        return jnp.sum(concentration * log_x) + jnp.sum(total) - jnp.sum(gammaln(concentration))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of the unconstrained numbers, each the log ratio of two gammas."""
        own = jnp.exp(self.log_concentration)
        rest = jnp.cumsum(own[:, ::-1], axis=1)[:, -2::-1]
        own = own[:, :-1]
        mean = digamma(own) - digamma(rest) + _offset(own.shape[1] + 1)
        return jnp.ravel(mean), jnp.ravel(jnp.sqrt(polygamma(1, own) + polygamma(1, rest)))

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """Every number less its mean, by its sd."""
        mean, sd = self.mean_and_sd(context)
        return (value - mean) / sd

    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> Dirichlet:
        """Regresses slopes by log g on x by the instruments D_k = ∂ log g_k / ∂α_k (see `AbstractNatural`).

        With x = g / Σ g, the slope by log g_k of what is linear in log x is δ_k - x_k Σ δ. So

            δ_k = (E[D_k slope_k] + E[D_k x_k] Σ δ) / E[D_k],

        and summed over k, one equation for Σ δ. Moments of q itself: E[D_k] = ψ'(α_k), E[D_k x_k] = ψ'(Σ α). Written in
        covariances, which are small beside the products of means that they replace.
        """
        alpha, rest = jnp.exp(self.log_concentration), 1.0 - rate
        total = jnp.sum(alpha, axis=1, keepdims=True)
        noises = noise.reshape(-1, *alpha.shape, NOISES)
        alphas = jnp.broadcast_to(alpha, noises.shape[:-1])
        log_g = log_gamma(alphas, noises)
        log_x = _log_shares(log_g)
        x, slope = jnp.exp(log_x), _by_log_g(slopes.reshape(slopes.shape[0], alpha.shape[0], -1), log_x)
        instrument = implicit_slope(alphas, log_g)
        own, whole = polygamma(1, alpha), polygamma(1, total)
        mean_x, mean_drawn_x = alpha / total, jnp.mean(x, axis=0)
        drawn = jnp.mean(instrument, axis=0)
        mean_instrument, mean_slope = rest * own + rate * drawn, rate * jnp.mean(slope, axis=0)
        with_x = rest * (whole - mean_x * own) + rate * jnp.mean((instrument - drawn) * (x - mean_drawn_x), axis=0)
        with_x = with_x + rate * rest * (own - drawn) * (mean_x - mean_drawn_x)
        with_slope = rate * jnp.mean((instrument - mean_instrument) * slope, axis=0)
        sum_x, sum_slope = (jnp.sum(y / mean_instrument, axis=1, keepdims=True) for y in (with_x, with_slope))
        change = -sum_slope / sum_x
        mean_x = rest * mean_x + rate * mean_drawn_x
        delta = mean_slope + with_slope / mean_instrument + change * (mean_x + with_x / mean_instrument)
        return Dirichlet(self.size, jnp.log(jnp.maximum(alpha + delta, least_share(rate) * alpha)))
