"""Encoders of series: what only the order of steps tells is read, whatever the length; q may go step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm
from test_markov import PHI, STEPS, divergence, some_series

import amortax as am
from amortax.models import state_space

PERSISTENCE = np.linspace(-0.98, 0.98, 161)
LOG_SCALE = np.linspace(-1.8, 1.8, 121)


def autoregression(y):
    """Each series has a persistence and a scale of its own: only pairs of neighbouring steps tell of the first."""
    with numpyro.plate("series", y.shape[0], dim=-2):
        persistence = numpyro.sample("persistence", dist.Uniform(-0.98, 0.98))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        before = jnp.concatenate([jnp.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
        with numpyro.plate("time", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(persistence * before, scale), obs=y)


def some_autoregressions(lengths, seed):
    rng, found = np.random.default_rng(seed), []
    for length in lengths:
        persistence, scale = rng.uniform(-0.98, 0.98), np.exp(0.5 * rng.normal())
        y = np.zeros(length + 1)
        for t in range(length):
            y[t + 1] = persistence * y[t] + scale * rng.normal()
        found.append(y[1:].astype(np.float32))
    return found


def exact(y):
    """(log evidence, mean and sd of the persistence) of one series, by a grid."""
    before = np.concatenate([[0.0], y[:-1]])
    errors = np.sum((y - PERSISTENCE[:, None] * before) ** 2, axis=1)[:, None]
    log_p = -0.5 * errors * np.exp(-2 * LOG_SCALE) - len(y) * (LOG_SCALE + 0.5 * np.log(2 * np.pi))
    log_p = log_p - 0.5 * (LOG_SCALE / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi)) - np.log(1.96)
    weight = np.exp(log_p - log_p.max())
    area = (PERSISTENCE[1] - PERSISTENCE[0]) * (LOG_SCALE[1] - LOG_SCALE[0])
    share = weight.sum(axis=1) / weight.sum()
    mean = share @ PERSISTENCE
    return log_p.max() + np.log(weight.sum() * area), mean, np.sqrt(share @ (PERSISTENCE - mean) ** 2)


@pytest.fixture(scope="module")
def trained():
    lengths = np.random.default_rng(0).integers(1, 25, size=2000)
    data = {"y": some_autoregressions(lengths, seed=1)}
    plan = am.amortize(autoregression, data, plate="series")
    assert isinstance(plan.encoder, am.recurrent)  # chosen: steps of any number, and their order counts
    return am.fit(plan, data, key=jax.random.key(1), num_steps=1000, batch_size=128)


@pytest.mark.slow
def test_a_persistence_is_read_from_the_order_of_steps(trained):
    """The bound is within 0.15 nats of the exact evidence on new series."""
    new = some_autoregressions([6, 12, 18, 24] * 15, seed=2)
    draws = trained.sample({"y": new}, num_samples=300, key=jax.random.key(3))
    log_q, evidence = np.asarray(trained.log_prob(draws, {"y": new}).unit), np.array([exact(y)[0] for y in new])
    persistence, scale = draws["persistence"].values, draws["scale"].values
    before = [np.concatenate([[0.0], y[:-1]]) for y in new]
    errors = [np.sum((y - persistence[:, i, None] * before[i]) ** 2, axis=1) for i, y in enumerate(new)]
    count = np.array([len(y) for y in new])
    log_p = -0.5 * np.stack(errors, axis=1) / scale**2 - count * (np.log(scale) + 0.5 * np.log(2 * np.pi))
    log_p += norm.logpdf(np.log(scale), 0.0, 0.5) - np.log(scale) - np.log(1.96)
    gap = np.mean(evidence - np.mean(log_p - log_q, axis=0))
    print(f"the bound is {gap:.3f} nats below the evidence")
    assert -0.05 < gap < 0.15


@pytest.mark.slow
def test_longer_and_shorter_series_than_those_of_training(trained):
    new = some_autoregressions([1, 4, 12, 40], seed=4)
    draws = trained.sample({"y": new}, num_samples=2000, key=jax.random.key(5))["persistence"]
    for series, y in enumerate(new):
        _, mean, sd = exact(y)
        assert abs(float(draws[:, series].mean()) - mean) < 0.5 * sd
        assert 0.6 < float(draws[:, series].std()) / sd < 1.6


def test_q_step_by_step_is_near_the_smoother():
    """Within a fiftieth of a nat a step, after few steps: the same network serves all 50."""
    data, model = some_series(2000, seed=0), functools.partial(state_space.many, persistence=PHI)
    plan = am.amortize(model, data, plate="series", encoder=am.recurrent(), family=am.markov())
    assert plan.family.by_step
    posterior = am.fit(plan, data, key=jax.random.key(1), num_steps=300, batch_size=128)
    found = divergence(posterior, some_series(100, seed=2))
    print(f"{found / STEPS:.4f} nats a step")
    assert found < 0.02 * STEPS


def test_a_posterior_step_by_step_is_saved_and_loaded(tmp_path):
    data, model = some_series(20, seed=0), functools.partial(state_space.many, persistence=PHI)
    plan = am.amortize(model, data, plate="series", encoder=am.temporal_convolution(width=8), family=am.markov())
    posterior = am.fit(plan, data, key=jax.random.key(1), num_steps=1)
    posterior.save(tmp_path / "series.amx")
    again = am.load(tmp_path / "series.amx", model=model)
    first, second = (p.sample(data, num_samples=2, key=jax.random.key(2))["level"] for p in (posterior, again))
    np.testing.assert_array_equal(first, second)


def unequal(y, extra):
    """A covariate that is no series, and states one fewer than measurements."""
    with numpyro.plate("series", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([y.shape[1] - 1]).to_event(1))
        mean = jnp.concatenate([extra[..., :1], z], axis=-1)
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def test_where_steps_of_data_and_of_latents_differ_the_series_is_pooled():
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=(6, 9)).astype(np.float32), "extra": rng.normal(size=(6, 2)).astype(np.float32)}
    plan = am.amortize(unequal, data, plate="series", encoder=am.recurrent(), family=am.markov())
    assert not plan.family.by_step
    assert plan.skeleton().encoder.features.inputs.plates == ("time",)
    assert [f.name for f in plan.skeleton().encoder.features.inputs.along("time")] == ["y"]


def houses(y):
    with numpyro.plate("county", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("house", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)


@pytest.mark.parametrize("encoder", [am.recurrent(), am.temporal_convolution(), am.attention_sequence()])
def test_a_set_is_no_series(encoder):
    with pytest.raises(am.GuideError, match=r"reads one series per unit.*'y' \(4,\) a set along house"):
        am.amortize(houses, {"y": np.zeros((3, 4), np.float32)}, plate="county", encoder=encoder)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(am.GuideError, match="multiple of twice"):
        am.amortize(
            houses, {"y": np.zeros((3, 4), np.float32)}, plate="county", encoder=am.attention_sequence(width=30)
        )
