"""Is a plate without local latents plain minibatched inference of the globals? Bayesian regression, conjugate."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from conjugate import shared_normal

import amortax as am

UNITS, NOISE, PRIOR = 5_000, 0.8, 3.0


def model(row, y):
    slope = numpyro.sample("slope", dist.Normal(0, PRIOR).expand([3]).to_event(1))
    level = numpyro.sample("level", dist.Normal(0, PRIOR))
    with numpyro.plate("unit", y.shape[0]):
        numpyro.sample("y", dist.Normal(row @ slope + level, NOISE), obs=y)


def test_minibatches_find_the_conjugate_posterior():
    rng = np.random.default_rng(0)
    row = rng.standard_normal((UNITS, 3)) @ np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.3, 0.0, 0.5]])
    y = row @ [1.0, -2.0, 0.5] + 0.7 + NOISE * rng.standard_normal(UNITS)
    data = {"row": row.astype(np.float32), "y": y.astype(np.float32)}
    plan = am.amortize(model, data, plate="unit")
    assert plan.encoder is None
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=3000)
    assert posterior.record.batch_size < UNITS

    names = [site.name for site in plan.structure.of("global")]
    columns = {"slope": data["row"], "level": np.ones((UNITS, 1))}
    design = np.concatenate([columns[name] for name in names], axis=1).astype(np.float64)
    covariance = np.linalg.inv(design.T @ design / NOISE**2 + np.eye(4) / PRIOR**2)
    expected = covariance @ design.T @ data["y"].astype(np.float64) / NOISE**2
    mean, got = shared_normal(posterior)
    spread = np.sqrt(np.diagonal(covariance))
    off, ratio = (mean - expected) / spread, np.sqrt(np.diagonal(got)) / spread
    correlation = got / np.sqrt(np.outer(np.diagonal(got), np.diagonal(got))) - covariance / np.outer(spread, spread)
    print(f"means off by {np.round(off, 3)} sd, sd ratios {np.round(ratio, 3)}, ", end="")
    print(f"largest error of a correlation {np.abs(correlation).max():.3f}")
    assert np.max(np.abs(off)) <= 0.1
    assert np.max(np.abs(ratio - 1)) <= 0.05
    assert np.max(np.abs(correlation)) <= 0.05
