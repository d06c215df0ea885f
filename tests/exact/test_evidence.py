"""Evidence of units by importance draws against closed forms of Gaussian models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

import amortax as am

W, NOISE = np.array([[1.0, 0.5], [-0.5, 1.0], [0.8, 0.8], [0.3, -1.0]]), 0.7
KEY = jax.random.key(0)


def linear(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ jnp.asarray(W.T, jnp.float32), NOISE).to_event(1), obs=x)


def around_a_mean(x):
    m = numpyro.sample("m", dist.Normal(0.0, 3.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(m, 1.0))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 2)) @ W.T + NOISE * rng.normal(size=(300, 4))).astype(np.float32)
    plan = am.amortize(linear, {"x": x}, plate="unit", family=am.diagonal())
    return am.fit(plan, {"x": x}, key=KEY, num_steps=300), x


def test_the_evidence_is_that_of_the_gaussian_within_its_errors(fitted):
    posterior, x = fitted
    exact = multivariate_normal(np.zeros(4), W @ W.T + NOISE**2 * np.eye(4)).logpdf(x[:100].astype(np.float64))
    found = posterior.evidence({"x": x[:100]}, key=jax.random.key(1), num_samples=2000)
    error = (found.log_evidence - exact) / found.standard_error
    assert found.sizes == {"unit": 100}
    assert float(np.abs(error).max()) < 5
    assert 0.7 < float(error.std()) < 1.4  # the errors are neither too small nor too large
    gap = float((exact - found.elbo).mean())  # a diagonal q is at least this far from a correlated posterior
    precision = np.eye(2) + W.T @ W / NOISE**2
    assert gap >= 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]) - 0.02


def test_neither_the_draws_at_once_nor_the_units_beside_it_change_the_evidence_of_a_unit(fitted, monkeypatch):
    posterior, x = fitted
    key, few = jax.random.key(2), {"x": x[:3]}
    alone = posterior.evidence(few, key=key, num_samples=300)  # 250 draws, then 50
    among = posterior.evidence({"x": x[:20]}, key=key, num_samples=300)
    monkeypatch.setattr("amortax.evidence.TOGETHER", 1000)
    at_once = posterior.evidence(few, key=key, num_samples=300)
    for name in ("log_evidence", "elbo"):
        np.testing.assert_allclose(alone[name], among[name][:3], rtol=1e-5)
        np.testing.assert_allclose(alone[name], at_once[name], rtol=1e-5)


def test_with_globals_it_is_the_mean_over_them():
    x = (2.0 + 1.2 * np.random.default_rng(1).normal(size=60)).astype(np.float32)
    posterior = am.fit(am.amortize(around_a_mean, {"x": x}, plate="unit"), {"x": x}, key=KEY, num_steps=200)
    m = posterior.sample({"x": x[:2]}, num_samples=4000, key=jax.random.key(3))["m"].values.astype(np.float64)
    exact = norm(m[:, None], np.sqrt(1 + NOISE**2)).logpdf(x.astype(np.float64)).mean(axis=0)
    found = posterior.evidence({"x": x}, key=jax.random.key(4), num_samples=500)
    assert float(np.abs((found.log_evidence - exact) / found.standard_error).max()) < 7  # seven degrees of freedom
    assert float(np.abs(found.log_evidence - exact).max()) < 0.3


def test_too_few_draws_for_an_error_are_refused(fitted):
    posterior, x = fitted
    with pytest.raises(am.DataError, match="num_samples=20 is too few for an error and a k-hat; give 21 or more"):
        posterior.evidence({"x": x[:2]}, key=KEY, num_samples=20)
