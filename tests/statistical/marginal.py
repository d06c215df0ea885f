"""What is the posterior of the globals, with each unit's own numbers integrated out exactly? Importance sampling.

A target is a log density on R^g, in float64, of which no sum over units is left out. Draws are from a multivariate t at
its mode, weighted; with an effective sample size of n, a mean is good to 1/√n posterior sd.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

FREEDOM = 6.0
NODES = np.linspace(-6.0, 6.0, 121)  # for one standard normal per unit: the trapezoid rule, exact for smooth integrands
LOG_NODES = -0.5 * NODES**2 - 0.5 * math.log(2 * math.pi) + math.log(NODES[1] - NODES[0])


@dataclasses.dataclass(frozen=True)
class Weighed:
    """Draws (S, g) of the globals and weights that sum to one."""

    draws: np.ndarray
    weights: np.ndarray

    @property
    def ess(self):
        return 1 / np.sum(self.weights**2)

    def moments(self, of):
        """(mean, sd) of every quantity `of` computes from the draws, name -> array (S,)."""
        found = {}
        for name, value in of(self.draws).items():
            mean = float(self.weights @ value)
            found[name] = (mean, float(np.sqrt(self.weights @ (value - mean) ** 2)))
        return found


def mode(log_density, start):
    """Where a function of jax.numpy, in float64, is largest, and its value there."""
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(lambda v: -log_density(v)))

        def value_and_slope(v):
            value, slope = both(jnp.asarray(v))
            return float(value), np.asarray(slope)

        found = optimize.minimize(value_and_slope, start, jac=True, method="BFGS", options={"gtol": 1e-6})
    return found.x, -float(found.fun)


def weigh(log_density, start, *, size=2**14, chunk=256):
    """Importance draws of exp(log_density), a function of jax.numpy, in float64."""
    found, _ = mode(log_density, start)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((size, len(start))) / np.sqrt(rng.chisquare(FREEDOM, size) / FREEDOM)[:, None]
    with jax.enable_x64(True):
        precision = -np.asarray(jax.jit(jax.hessian(log_density))(jnp.asarray(found)))
        draws = found + noise @ np.linalg.cholesky(np.linalg.inv(precision)).T
        many = jax.jit(lambda v: jax.lax.map(jax.vmap(log_density), v.reshape(-1, chunk, len(start))).ravel())
        log_weights = np.asarray(many(jnp.asarray(draws)))
    log_weights = log_weights + 0.5 * (FREEDOM + len(start)) * np.log1p(np.sum(noise**2, axis=1) / FREEDOM)
    weights = np.exp(log_weights - log_weights.max())
    return Weighed(draws, weights / weights.sum())


def normal(value, mean, sd):
    """Log density of N(mean, sd²), summed."""
    return jnp.sum(-0.5 * ((value - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * math.log(2 * math.pi))


def half_normal(value, scale):
    """Log density of |N(0, scale²)|, summed."""
    return normal(value, 0.0, scale) + value.size * math.log(2)


def linear_mixed(x, z, y, beta, factor, sigma):
    """log p(y_i | globals) of every group: y_i ~ N(X_i β, σ² I + Z_i Λ Λ' Z_i')."""
    zf = z @ factor
    covariance = sigma**2 * jnp.eye(y.shape[1]) + zf @ jnp.swapaxes(zf, 1, 2)
    root = jnp.linalg.cholesky(covariance)
    away = jax.scipy.linalg.solve_triangular(root, (y - x @ beta)[..., None], lower=True)[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
    return -0.5 * jnp.sum(away**2, axis=1) - log_det - 0.5 * y.shape[1] * math.log(2 * math.pi)
