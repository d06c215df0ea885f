"""Is half of the posterior lost in silence? Two modes and one normal: the bound must show the missing log 2."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

WIDE, NOISE = 5.0, 0.25


def model(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, WIDE))
        numpyro.sample("x", dist.Normal(abs(z), NOISE), obs=x)


def log_evidence(x):
    """log ∫ N(z | 0, wide²) N(x | |z|, noise²) dz on a grid of both modes."""
    grid = np.linspace(-8, 8, 16_001)
    prior = -0.5 * (grid / WIDE) ** 2 - math.log(WIDE * math.sqrt(2 * math.pi))
    likelihood = -0.5 * ((x[:, None] - abs(grid)) / NOISE) ** 2 - math.log(NOISE * math.sqrt(2 * math.pi))
    return np.log(np.trapezoid(np.exp(prior + likelihood), grid, axis=1))


def test_the_reported_bound_lacks_log_two():
    rng = np.random.default_rng(0)
    data = {"x": (4.0 + 0.3 * rng.standard_normal(200)).astype(np.float32)}
    posterior = am.fit(am.amortize(model, data, plate="unit"), data, key=jax.random.key(0), num_steps=1000)
    draws = np.asarray(posterior.sample(data, num_samples=200, key=jax.random.key(1))["z"])
    right = (draws > 0).mean(axis=0)
    assert np.all((right == 0) | (right == 1)), "one normal sits on one mode: this is the failure to be reported"

    report = posterior.check(data, key=jax.random.key(2), num_samples=200)
    evidence = log_evidence(data["x"].astype(np.float64))
    gap = evidence - report.units["elbo"]
    print(
        f"log p - ELBO {gap.mean():.4f} (log 2 is {math.log(2):.4f}), from {gap.min():.4f} to {gap.max():.4f}; ", end=""
    )
    print(f"ESS/S {report.units['ess'].mean() / 200:.3f}, blind to it")
    assert abs(report.numbers["elbo_per_unit"] - report.units["elbo"].mean()) <= 1e-4
    assert abs(gap.mean() - math.log(2)) <= 0.03
    assert gap.min() > 0.6


@pytest.mark.slow
def test_a_mixture_has_both_modes_and_no_gap():
    rng = np.random.default_rng(0)
    data = {"x": (4.0 + 0.3 * rng.standard_normal(200)).astype(np.float32)}
    plan = am.amortize(model, data, plate="unit", family=am.mixture(am.diagonal(), 2))
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=1000)
    draws = np.asarray(posterior.sample(data, num_samples=400, key=jax.random.key(1))["z"])
    share = (draws > 0).mean()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(draws.size) + 0.02

    report = posterior.check(data, key=jax.random.key(2), num_samples=400)
    gap = log_evidence(data["x"].astype(np.float64)) - report.units["elbo"]
    print(f"log p - ELBO {gap.mean():.4f}; one normal lacks log 2 = {math.log(2):.4f}")
    assert gap.mean() < 0.02
    assert gap.max() < 0.1
