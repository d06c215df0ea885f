"""What is exact? Closed forms of conjugate models in float64 NumPy, and the normals that a trained guide stands for."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

LOG_2PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, I), x ~ N(W z + mu, s² I) with W (D, K); s one number, or one per measurement."""

    weight: np.ndarray
    mean: np.ndarray
    noise: float | np.ndarray

    def simulate(self, rng, count):
        """(z (N, K), x (N, D)), x in float32 as a user's data would be."""
        z = rng.standard_normal((count, self.weight.shape[1]))
        x = z @ self.weight.T + self.mean + self.noise * rng.standard_normal((count, len(self.mean)))
        return z, x.astype(np.float32)

    def posterior(self, x):
        """Means (N, K) and the one covariance (K, K) of z | x."""
        covariance = np.linalg.inv(self.precision)
        return (np.asarray(x, np.float64) - self.mean) / self.noise**2 @ self.weight @ covariance, covariance

    @property
    def precision(self):
        """L = I + Wᵀ W / s²."""
        return np.eye(self.weight.shape[1]) + self.weight.T / self.noise**2 @ self.weight

    def log_evidence(self, x):
        """log p(x) per unit."""
        covariance = self.weight @ self.weight.T + self.noise**2 * np.eye(len(self.mean))  # scales columns: a diagonal
        return normal_log_prob(x, self.mean, covariance)

    @property
    def diagonal_gap(self):
        """KL of the best diagonal normal: ½ (Σ log L_ii - log det L)."""
        precision = self.precision
        return 0.5 * (np.log(np.diagonal(precision)).sum() - np.linalg.slogdet(precision)[1])


def normal_log_prob(x, mean, covariance):
    """Log density of N(mean, covariance) at the rows of x."""
    away = np.asarray(x, np.float64) - mean
    square = np.sum(away * np.linalg.solve(covariance, away.T).T, axis=1)
    return -0.5 * (square + np.linalg.slogdet(covariance)[1] + len(covariance) * LOG_2PI)


def normal_kl(mean, covariance, other_mean, other_covariance):
    """KL(N(mean, covariance) ‖ N(other...)) per unit: means (N, d), covariances (N, d, d) or (d, d)."""
    away = other_mean - mean
    solved = np.linalg.solve(other_covariance, covariance)
    trace = np.trace(solved, axis1=-2, axis2=-1)
    square = np.sum(away * np.linalg.solve(other_covariance, away[..., None])[..., 0], axis=-1)
    log_det = np.linalg.slogdet(other_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (trace + square - mean.shape[-1] + log_det)


def ppca(x, size):
    """(weight up to rotation, mean, sigma, log-likelihood per unit) at the maximum (Tipping and Bishop 1999)."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[size:].mean()
    weight = vectors[:, :size] * np.sqrt(np.maximum(values[:size] - variance, 0.0))
    model = LinearGaussian(weight, mean, math.sqrt(variance))
    return weight, mean, model.noise, model.log_evidence(x).mean()


def factor_analysis(x, size, steps=5000):
    """`LinearGaussian` at the maximum of the likelihood, by EM from principal components (Rubin and Thayer 1982)."""
    x = np.asarray(x, np.float64)
    covariance = np.cov(x.T, bias=True)
    weight, mean, noise, _ = ppca(x, size)
    variance = np.full(len(mean), noise**2)
    for _ in range(steps):
        gain = np.linalg.solve(weight @ weight.T + np.diag(variance), weight)  # of E[z | x]
        cross = covariance @ gain
        second = np.eye(size) - gain.T @ weight + gain.T @ cross
        weight = np.linalg.solve(second, cross.T).T
        variance = np.diagonal(covariance) - np.sum(weight * cross, axis=1)
    return LinearGaussian(weight, mean, np.sqrt(variance))


def best_normal(log_density, start, width):
    """(mean, sd, KL) of the normal q with the least KL(q ‖ p), for an unnormalised 1-d log density on the reals.

    `start` and `width` place a grid of quadrature nodes that holds p; KL by Gauss-Hermite nodes of q.
    """
    grid = start + width * np.linspace(-1, 1, 20_001)
    values = log_density(grid)
    log_total = np.log(np.trapezoid(np.exp(values - values.max()), grid)) + values.max()
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()

    def kl(mean, log_sd):
        entropy = 0.5 * (LOG_2PI + 1) + log_sd
        return log_total - entropy - weights @ log_density(mean + math.exp(log_sd) * nodes)

    found = optimize.minimize(
        lambda p: kl(*p), [start, math.log(width / 10)], method="Nelder-Mead", options={"fatol": 1e-12, "xatol": 1e-8}
    )
    return found.x[0], math.exp(found.x[1]), found.fun, kl


def normals_of(posterior, data, shared=None):
    """(means (N, d), covariances (N, d, d)) in unconstrained space of q(u | unit, v) for a normal family.

    Read from the guide itself: `standardize` is u → L⁻¹ (u - m) for a normal, so its Jacobian and offset tell L and m.
    """
    from amortax.intake import drop_full_masks, to_batch

    joint, guide = posterior.joint, posterior.guide
    batch = jax.tree.map(jnp.asarray, drop_full_masks(to_batch(posterior.answerable(data)), joint.structure))
    shared = jnp.zeros(joint.shared_size) if shared is None else jnp.asarray(shared)

    def one(context, unit):
        frame, told = guide.frame_given(context, shared, unit, joint)

        def standardize(value):
            return guide.local.family.standardize(frame.take(value), told)

        return jax.jacobian(standardize)(frame.center), standardize(frame.center), frame.center

    inverse, at_center, center = jax.jit(jax.vmap(one))(guide.encode(batch), batch)
    factor = np.linalg.inv(np.asarray(inverse, np.float64))
    mean = np.asarray(center, np.float64) - np.einsum("nij,nj->ni", factor, np.asarray(at_center, np.float64))
    return mean, factor @ np.swapaxes(factor, 1, 2)


def shared_normal(posterior):
    """(mean (g,), covariance (g, g)) in unconstrained space of q(v) for a normal family."""
    from amortax.frames import prior_frame

    block = posterior.guide.shared
    frame = prior_frame(block.whitening)

    def standardize(value):
        return block.family.standardize(frame.take(value), ())

    factor = np.linalg.inv(np.asarray(jax.jacobian(standardize)(frame.center), np.float64))
    mean = np.asarray(frame.center, np.float64) - factor @ np.asarray(standardize(frame.center), np.float64)
    return mean, factor @ factor.T
