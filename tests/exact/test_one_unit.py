"""Is VI of globals alone exact? A model without latents in its plate, of one unit, against its conjugate posterior."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import normal_log_prob

import amortax as am
from amortax._types import Batch

PRIOR, NOISE, LENGTH = 2.0, 0.5, 30
TIME = np.linspace(-1.0, 1.0, LENGTH).astype(np.float32)
DESIGN = np.stack([np.ones(LENGTH), TIME], axis=1)
SERIES = (0.8 - 0.4 * TIME + 0.5 * np.random.default_rng(0).standard_normal(LENGTH)).astype(np.float32)[None]


def line(y=None):
    weights = numpyro.sample("weights", dist.Normal(0.0, PRIOR).expand([2]).to_event(1))
    with numpyro.plate("series", 1 if y is None else y.shape[0]):
        numpyro.sample("y", dist.Normal(weights[0] + weights[1] * TIME, NOISE).to_event(1), obs=y)


def line_by_factor(y):
    weights = numpyro.sample("weights", dist.Normal(0.0, PRIOR).expand([2]).to_event(1))
    with numpyro.plate("series", y.shape[0]):
        numpyro.factor("density", dist.Normal(weights[0] + weights[1] * TIME, NOISE).log_prob(y).sum(-1))


def exact():
    """(mean, covariance, log evidence) of the weights."""
    covariance = np.linalg.inv(np.eye(2) / PRIOR**2 + DESIGN.T @ DESIGN / NOISE**2)
    marginal = PRIOR**2 * DESIGN @ DESIGN.T + NOISE**2 * np.eye(LENGTH)
    return covariance @ DESIGN.T @ SERIES[0] / NOISE**2, covariance, normal_log_prob(SERIES, 0.0, marginal)[0]


@pytest.mark.parametrize("model", [line, line_by_factor])
def test_one_series_has_its_conjugate_posterior(model):
    data = {"y": SERIES}
    posterior = am.fit(am.amortize(model, data, plate="series"), data, key=jax.random.key(0), num_steps=600)
    mean, covariance, evidence = exact()
    # its weights, at any values, are the evidence
    joint, guide = posterior.joint, posterior.guide
    noise = jax.random.normal(jax.random.key(1), (200, 2))
    values, log_q = jax.vmap(lambda e: guide.place_shared(e, 0))(noise)
    batch = Batch({"y": jnp.asarray(SERIES)}, {}, {})
    log_p = jax.vmap(lambda v: joint.log_prob(jnp.zeros((1, 0)), v, batch).total())(values)
    off = np.asarray(log_p - log_q, np.float64) - evidence
    print(f"log weights off by {off.mean():.1e}, spread {off.std():.1e}")
    assert np.abs(off).max() < 0.02
    draws = posterior.sample(data, num_samples=4000, key=jax.random.key(2))["weights"].values.astype(np.float64)
    sd = np.sqrt(np.diagonal(covariance))
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * sd / math.sqrt(4000))
    assert np.all(np.abs(draws.std(axis=0) / sd - 1.0) < 5 / math.sqrt(2 * 4000))
    report = posterior.check(data, key=jax.random.key(3))
    assert report.verdict == "PASS"
    assert report.numbers["globals_ess"] > 0.99 * report.numbers["globals_draws"]


def test_the_plan_says_that_there_is_no_encoder():
    plan = am.amortize(line, {"y": SERIES}, plate="series")
    assert plan.encoder is None
    assert "per series" not in str(plan)


def literal(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("series", 1):
        numpyro.sample("y", dist.Normal(level, 1.0).expand([LENGTH]).to_event(1), obs=y)


def global_per_unit(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0).expand([y.shape[0]]).to_event(1))
    with numpyro.plate("series", y.shape[0]):
        numpyro.sample("y", dist.Normal(level[:, None] + jnp.zeros(LENGTH), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(("model", "said"), [(literal, "series"), (global_per_unit, "site 'level' has shape")])
def test_what_one_unit_would_hide_is_refused_all_the_same(model, said):
    with pytest.raises(am.ModelError, match=said):
        am.amortize(model, {"y": SERIES}, plate="series")
