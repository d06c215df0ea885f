"""Guides that are known in closed form, exact or with a fault: no training, so every fault is planted in full."""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from conjugate import LinearGaussian
from jax.scipy.special import gammaln

import amortax as am
from amortax.guide import Guide
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise


class Known(Guide):
    """A guide whose draw of a unit's locals, and its log density, is `draw(key, unit, shared)`."""

    draw: Callable = eqx.field(static=True, kw_only=True)

    def encode(self, batch):
        return ()

    def sample_local(self, key, context, shared, unit, joint):
        return self.draw(key, unit, shared)


def known(model, data, draw, *, plate="unit"):
    """(joint, guide, units) of a model whose q of the locals is `draw`; q of globals is what `amortize` starts from."""
    plan = am.amortize(model, data, plate=plate)
    units = as_units(data, plan.model, plate)
    joint, guide = initialise(plan, to_batch(units), jax.random.key(0))
    return joint, Known(guide.shared, guide.local, None, None, draw=draw), units


# A linear-Gaussian model of K latents: posterior N(m(x), C).

WEIGHT = np.array([[1.0, 0.8, 0.0], [0.6, -0.4, 1.0], [0.9, 0.7, 0.3], [0.0, 0.5, -0.8]])
LINEAR = LinearGaussian(WEIGHT, np.zeros(4), 0.6)


def linear(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ WEIGHT.T.astype(np.float32), LINEAR.noise).to_event(1), obs=x)


def normal_draw(gain, factor):
    """Draws of N(gain x, factor factorᵀ), (K, D) and (K, K)."""
    gain, factor = jnp.asarray(gain, jnp.float32), jnp.asarray(factor, jnp.float32)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))

    def draw(key, unit, shared):
        noise = jax.random.normal(key, (len(factor),))
        log_q = -0.5 * jnp.sum(noise**2) - log_det - 0.5 * len(factor) * math.log(2 * math.pi)
        return gain @ unit.arrays["x"] + factor @ noise, log_q

    return draw


def linear_case(*, scale=1.0, moved=0.0, kl_weight=1.0, diagonal=False, independent=False):
    """The exact posterior of `linear`, but for what is said; `moved` in sd of the first latent."""
    precision = np.eye(3) + WEIGHT.T @ WEIGHT / LINEAR.noise**2 / kl_weight  # that of the likelihood to the power 1/β
    covariance = np.linalg.inv(precision)
    gain = covariance @ WEIGHT.T / LINEAR.noise**2 / kl_weight
    if diagonal:  # the best normal without correlations has the conditional variances
        covariance = np.diag(1.0 / np.diagonal(precision))
    if independent:  # every number right by itself
        covariance = np.diag(np.diagonal(covariance))
    factor = scale * np.linalg.cholesky(covariance)
    draw, away = normal_draw(gain, factor), jnp.asarray([moved * math.sqrt(covariance[0, 0]), 0.0, 0.0], jnp.float32)
    x = LINEAR.simulate(np.random.default_rng(0), 50)[1]

    def placed(key, unit, shared):
        local, log_q = draw(key, unit, shared)
        return local + away, log_q

    return known(linear, {"x": x}, placed)


# Counts with a Gamma rate: posterior Gamma(a + Σx, b + n), drawn on the model's unconstrained scale, log rate.

SHAPE, RATE = 3.0, 1.0


def counts(x):
    with numpyro.plate("unit", x.shape[0]):
        rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
        numpyro.sample("x", dist.Poisson(rate[:, None]).expand([x.shape[0], 5]).to_event(1), obs=x)


def counts_case(*, jacobian=True):
    """The exact posterior, or what it is where log rate is taken for rate: p(rate) without the Jacobian."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(SHAPE, 1 / RATE, size=(50, 1)), size=(50, 5)).astype(np.int32)

    def draw(key, unit, shared):
        shape = SHAPE + jnp.sum(unit.arrays["x"]) - (0.0 if jacobian else 1.0)
        rate = jnp.float32(RATE + 5)
        free = jax.random.loggamma(key, shape) - jnp.log(rate)
        log_q = shape * free - rate * jnp.exp(free) + shape * jnp.log(rate) - gammaln(shape)
        return free[None], log_q

    return known(counts, {"x": x}, draw)


# |z| seen with noise: two modes of equal weight, so far apart that each is a normal.

NOISE = 0.25


def sides(x):
    with numpyro.plate("unit", x.shape[0]):
        either = dist.Normal(jnp.array([-4.0, 4.0]), 0.5)
        z = numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), either))
        numpyro.sample("x", dist.Normal(jnp.abs(z), NOISE), obs=x)


def sides_case(*, lost=False):
    """Both modes, or the right one alone; z and -z are equally probable whatever x is."""
    rng = np.random.default_rng(0)
    x = np.abs(4 + 0.5 * rng.standard_normal(50) + NOISE * rng.standard_normal(50)).astype(np.float32)
    precision = 1 / 0.25 + 1 / NOISE**2
    sd = 1 / math.sqrt(precision)

    def draw(key, unit, shared):
        side_key, key = jax.random.split(key)
        noise = jax.random.normal(key)
        sign = 1.0 if lost else jnp.where(jax.random.bernoulli(side_key), 1.0, -1.0)
        mean = (4.0 / 0.25 + unit.arrays["x"] / NOISE**2) / precision
        log_q = -0.5 * noise**2 - math.log(sd * math.sqrt(2 * math.pi)) - (0.0 if lost else math.log(2))
        return (sign * (mean + sd * noise))[None], log_q

    return known(sides, {"x": x}, draw)


# Units of unequal length with a latent each: posterior N(Σx/s² / P, 1/P), P = 1 + n/s².


def lengths(x):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("seen", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z, 2.0), obs=x)


def lengths_case(scale=lambda n: 1.0):
    """q whose sd is `scale` of the number of observations times the exact one."""
    rng = np.random.default_rng(0)
    x = [(rng.standard_normal() + 2 * rng.standard_normal(n)).astype(np.float32) for n in rng.integers(1, 17, size=60)]

    def draw(key, unit, shared):
        n = unit.lengths["x"].astype(jnp.float32)
        inside = jnp.arange(unit.arrays["x"].shape[0]) < n
        precision = 1 + n / 4
        mean = jnp.sum(jnp.where(inside, unit.arrays["x"], 0.0)) / 4 / precision
        sd, noise = scale(n) / jnp.sqrt(precision), jax.random.normal(key)
        log_q = -0.5 * noise**2 - jnp.log(sd) - 0.5 * math.log(2 * math.pi)
        return (mean + sd * noise)[None], log_q

    return known(lengths, {"x": x}, draw)


# A hierarchy: z | level, x is N((level/τ² + x/s²) / P, 1/P), whatever q(level) is.


def groups(x):
    level = numpyro.sample("level", dist.Normal(0, 3))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def groups_case(*, follows=True):
    """q(z | x, level), or with the mean of q(level) in its stead: mean-field between levels."""
    x = (2 + np.random.default_rng(0).standard_normal(30)).astype(np.float32)

    def draw(key, unit, shared):
        noise, level = jax.random.normal(key), shared[0] if follows else 0.0
        log_q = -0.5 * noise**2 - 0.5 * math.log(math.pi)
        return (0.5 * (level + unit.arrays["x"]) + math.sqrt(0.5) * noise)[None], log_q

    return known(groups, {"x": x}, draw)
