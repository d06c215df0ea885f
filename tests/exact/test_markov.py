"""A linear-Gaussian state space model (TRUST §1): the smoother of every series, from one trained network."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortax as am
from amortax.families.markov import in_rounds, in_steps
from amortax.models import state_space

STEPS, PHI = 50, 0.9  # both noises have variance one, the first state is that of the stationary process
LAGS = np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS)))
PRIOR = PHI**LAGS / (1 - PHI**2)
COVARIANCE = np.linalg.inv(np.linalg.inv(PRIOR) + np.eye(STEPS))  # of the posterior of any series


def some_series(count, seed):
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(STEPS), PRIOR, size=count)
    return {"y": (z + rng.normal(size=z.shape)).astype(np.float32)}


def divergence(posterior, data):
    """Mean KL(q || smoother) over series, in nats, by 200 draws of each."""
    draws = posterior.sample(data, num_samples=200, key=jax.random.key(3))
    log_q = np.asarray(posterior.log_prob(draws, data).unit)
    away = draws["level"].values[..., 0] - data["y"] @ COVARIANCE
    log_p = -0.5 * np.einsum("sni,ij,snj->sn", away, np.linalg.inv(COVARIANCE), away, optimize=True)
    return float(np.mean(log_q - log_p + 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]))


@pytest.mark.parametrize(("family", "most"), [(am.markov(), 0.05 * STEPS), (am.diagonal(), 3.6)])
def test_the_smoother_is_within_its_tolerance(family, most):
    """0.05 nats a step by a structured family; independent steps can't do better than 3.07 nats in all."""
    data = some_series(2000, seed=0)
    model = functools.partial(state_space.many, persistence=PHI)
    plan = am.amortize(model, data, plate="series", family=family)
    posterior = am.fit(plan, data, key=jax.random.key(1), num_steps=1500, batch_size=128)
    found = divergence(posterior, some_series(100, seed=2))
    precision = np.linalg.inv(COVARIANCE)
    mean_field = 0.5 * (np.sum(np.log(np.diag(precision))) - np.linalg.slogdet(precision)[1])
    print(f"{type(family).__name__}: {found:.3f} nats, {found / STEPS:.4f} a step; apart at best {mean_field:.3f}")
    assert mean_field == pytest.approx(3.07, abs=0.01)
    assert found < most
    assert (found < mean_field) == isinstance(family, am.markov)


def test_the_numbers_of_a_step_stand_together_whatever_the_layout():
    """Two sites, one along a plate on its last axis: a draw is the recurrence, written out."""
    layout = (((), (3, 2), ()), (("time",), (1, 3), (1,)))
    family = am.markov(layout=layout).build(9, (), key=jax.random.key(0))
    offset = jnp.asarray(np.random.default_rng(0).normal(size=family.parameters.offset.shape), jnp.float32)
    family = eqx.tree_at(lambda f: f.parameters.offset, family, 0.5 * offset)
    noise = np.random.default_rng(1).normal(size=9).astype(np.float32)
    steps = np.array([[2 * t, 2 * t + 1, 6 + t] for t in range(3)])
    mean, factor, carry = (np.asarray(x) for x in family._split(()))
    state, by_step = np.zeros(3), []
    for t in range(3):
        state = carry[t] @ state + factor[t] @ noise[steps[t]]
        by_step.append(mean[t] + state)
    draw = jax.jit(lambda e: family.sample_and_log_prob(e, 0, ())[0])
    np.testing.assert_allclose(np.asarray(draw(jnp.asarray(noise)))[steps], by_step, rtol=1e-5)
    draws = jax.jit(jax.vmap(draw))(jax.random.normal(jax.random.key(2), (20000, 9)))
    mean, sd = (np.asarray(x) for x in family.mean_and_sd(()))
    assert np.all(np.abs(np.mean(draws, axis=0) - mean) < 5 * sd / 20000**0.5)
    assert np.all(np.abs(np.std(draws, axis=0) / sd - 1) < 5 / 40000**0.5)


def test_rounds_and_steps_are_one_recurrence():
    """A CPU takes steps, an accelerator rounds; compared with the recurrence as it is written."""
    rng = np.random.default_rng(0)
    carry, moved = rng.normal(size=(7, 2, 2)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    state, expected = np.zeros(2), []
    for a, b in zip(carry, moved, strict=True):
        state = a @ state + b
        expected.append(state)
    for way in (in_rounds, in_steps):
        np.testing.assert_allclose(jax.jit(way)(carry, moved), expected, rtol=1e-4, atol=1e-4)


def test_a_series_of_one_step_is_a_normal():
    family = am.markov(layout=(((), (1, 1), ()),)).build(1, (), key=jax.random.key(0))
    value, log_q = family.sample_and_log_prob(jnp.array([0.7]), 0, ())
    assert float(log_q) == pytest.approx(float(family.log_prob(value, ())), abs=1e-6)


def test_a_level_that_would_explode_is_refused():
    with pytest.raises(am.ModelError, match="persistence=1.1"):
        am.amortize(functools.partial(state_space.many, persistence=1.1), some_series(3, seed=0), plate="series")


def test_a_level_before_the_first_step_is_the_first():
    layout = ((("time",), (3, 1), (0,)), ((), (1,), ()))
    assert am.markov(layout=layout).build(4, (), key=jax.random.key(0)).steps == ((3,), (0,), (1,), (2,))
    with pytest.raises(am.GuideError, match="must be as many as a step has"):
        am.markov(layout=(((), (3, 2), ()), ((), (1,), ()))).build(7, (), key=jax.random.key(0))


def test_sites_without_a_common_time_axis_are_refused():
    with pytest.raises(am.GuideError, match="no time axis in common"):
        am.markov(layout=(((), (5,), ()), ((), (3,), ()))).build(8, (), key=jax.random.key(0))
