"""A linear-Gaussian state space model written with `scan`: probed, fitted, and answered like any other model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import amortax as am

STEPS, PHI = 8, 0.9  # both noises have variance one; the level before the first is zero
MOVE = np.tril(PHI ** np.maximum(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)), 0))
PRIOR = MOVE @ MOVE.T


def levels(x):
    def body(z, xt):
        with numpyro.plate("series", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(PHI * z, 1.0))
            numpyro.deterministic("double", 2.0 * z)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
        return z, None

    scan(body, jnp.zeros(x.shape[0]), jnp.moveaxis(x, 1, 0))


def mixed(x):
    """Series tell each other of their levels at every step."""

    def body(z, xt):
        with numpyro.plate("series", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(PHI * z - 0.5 * jnp.mean(z), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
        return z, None

    scan(body, jnp.zeros(x.shape[0]), jnp.moveaxis(x, 1, 0))


def some_series(count, seed, gaps=0.0):
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal(np.zeros(STEPS), PRIOR + np.eye(STEPS), size=count).astype(np.float32)
    x[rng.random(x.shape) < gaps] = np.nan
    return {"x": x}


def smoother(x):
    """Mean and covariance of the levels of one series, given what was seen."""
    seen = ~np.isnan(x)
    covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.diag(seen.astype(float)))
    return covariance @ np.nan_to_num(x), covariance


def divergence(posterior, data):
    """Mean KL(q || smoother) over series, in nats, by 200 draws of each."""
    draws = posterior.sample(data, num_samples=200, key=jax.random.key(3))
    log_q, found = np.asarray(posterior.log_prob(draws, data).unit), []
    for i, x in enumerate(data["x"]):
        mean, covariance = smoother(x)
        away = draws["z"].values[:, i] - mean
        log_p = -0.5 * np.einsum("si,ij,sj->s", away, np.linalg.inv(covariance), away)
        found.append(np.mean(log_q[:, i] - log_p) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1])
    return float(np.mean(found))


@pytest.fixture(scope="module")
def fitted():
    data = some_series(1000, seed=0)
    plan = am.amortize(levels, data, plate="series", family=am.markov())
    return am.fit(plan, data, key=jax.random.key(1), num_steps=600, batch_size=128)


def test_the_smoother_is_reached(fitted):
    found = divergence(fitted, some_series(50, seed=2))
    print(f"{found:.4f} nats, {found / STEPS:.5f} a step")
    assert found < 0.05


def test_answers_have_the_axis_of_the_steps(fitted):
    new = some_series(3, seed=4)
    draws = fitted.sample(new, num_samples=5, key=jax.random.key(0))
    assert draws["z"].dims == draws["double"].dims == ("sample", "series", "time")
    assert draws["z"].shape == (5, 3, STEPS)
    np.testing.assert_allclose(draws["double"], 2.0 * draws["z"], rtol=1e-6)
    predicted = fitted.predict(new, num_samples=5, key=jax.random.key(0))
    assert predicted["x"].dims == ("sample", "series", "time")


def test_saved_and_loaded_it_answers_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "s.amx")
    again, ask = am.load(tmp_path / "s.amx", model=levels), {"num_samples": 5, "key": jax.random.key(1)}
    new = some_series(3, seed=4)
    assert again.sample(new, **ask).identical(fitted.sample(new, **ask))


def test_series_that_tell_each_other_are_refused():
    with pytest.raises(am.ModelError, match="site 'z' is not separable by unit"):
        am.amortize(mixed, some_series(4, seed=0), plate="series")


def test_a_series_of_one_step_is_read():
    plan = am.amortize(levels, {"x": some_series(4, seed=0)["x"][:, :1]}, plate="series", family=am.markov())
    assert plan.structure.size("local") == 1


def test_ragged_lists_say_what_to_do():
    ragged = {"x": [np.zeros(n, np.float32) for n in (2, 4, 3)]}
    with pytest.raises(am.ModelError, match="site 'z' is in the steps of a scan.*pad the shorter series with NaN"):
        am.amortize(levels, ragged, plate="series")


@pytest.mark.slow
def test_beliefs_of_a_scan_are_those_of_the_kalman_filter():
    """Within 0.02 nats a step, a third of the measurements missing."""
    data = some_series(1000, seed=0, gaps=0.3)
    plan = am.amortize(levels, data, plate="series", family=am.filtering())
    beliefs = am.fit(plan, data, key=jax.random.key(1), num_steps=1500, batch_size=128).filter()

    def step(state, x):
        state = beliefs.update(state, {"x": x})
        return state, beliefs.belief(state).mean_and_cov()

    new = some_series(100, seed=2, gaps=0.3)["x"]
    means, covariances = jax.jit(jax.vmap(lambda x: jax.lax.scan(step, beliefs.init(), x)[1]))(new)
    means, variances = np.asarray(means)[..., 0], np.asarray(covariances)[..., 0, 0]
    mean, variance, found = np.zeros(len(new)), np.zeros(len(new)), []
    for t, x in enumerate(new.T):
        mean, variance = PHI * mean, PHI**2 * variance + 1.0
        gain = np.where(np.isnan(x), 0.0, variance / (variance + 1.0))
        mean, variance = mean + gain * (np.nan_to_num(x) - mean), (1.0 - gain) * variance
        ratio = variance / variances[:, t]  # KL(Kalman || q)
        found.append(0.5 * (ratio - 1.0 - np.log(ratio) + (means[:, t] - mean) ** 2 / variances[:, t]))
    print(f"KL to the Kalman filter {np.mean(found):.4f} nats a step")
    assert np.mean(found) < 0.02
