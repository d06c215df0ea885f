"""Are latents that q leaves at the prior found, counted exactly, and called a failure only where training gave up?"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.checks.activity import ACTIVE, GLOBAL_DRAWS, PRIOR_DRAWS, activity, cross_covariance, verdicts
from amortax.guide import Guide
from amortax.intake import as_units, conform, to_batch
from amortax.train.initialise import initialise

SIZE, UNITS = 6, 300


def fixed_noise(x, weight, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)


class ByHand(Guide):
    """q(z | x) = N(A x, F F'), without a network."""

    gain: Any = None
    factor: Any = None

    def encode(self, batch):
        return (batch.arrays["x"] @ self.gain.T,)

    def sample_local(self, key, context, shared, unit, joint):
        noise = jax.random.normal(key, context[0].shape)
        log_q = -0.5 * jnp.sum(noise**2) - 0.5 * noise.size * jnp.log(2 * jnp.pi)
        return context[0] + self.factor @ noise, log_q - jnp.linalg.slogdet(self.factor)[1]


def by_hand(gain, factor):
    gain, factor = jnp.asarray(gain, jnp.float32), jnp.asarray(factor, jnp.float32)
    return ByHand(None, True, None, None, None, gain, factor)


def posterior_of(weight, noise):
    """The exact posterior as a guide, and its (A, C)."""
    precision = np.eye(weight.shape[1]) + weight.T @ weight / noise**2
    covariance = np.linalg.inv(precision)
    gain = covariance @ weight.T / noise**2
    guide = by_hand(gain, np.linalg.cholesky(covariance))
    return guide, gain, covariance


def ppca_weight(values, noise, rotation):
    """The maximum-likelihood loadings of fixed noise: columns where the eigenvalue exceeds it, zero elsewhere."""
    scale = np.sqrt(np.maximum(np.array(values) - noise**2, 0.0))
    return np.diag(scale)[:, : len(values)] @ rotation


def look(weight, noise, guide, *, refined_units=8, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((UNITS, weight.shape[1]))
    x = (z @ weight.T + noise * rng.standard_normal((UNITS, weight.shape[0]))).astype(np.float32)
    model = functools.partial(fixed_noise, weight=jnp.asarray(weight, jnp.float32), noise=noise)
    units = as_units({"x": x}, model, "unit")
    joint, _ = initialise(am.amortize(model, units, plate="unit"), to_batch(units), jax.random.key(0))
    return activity(
        joint, guide, conform(units, joint), key=jax.random.key(seed), most_units=500, refined_units=refined_units
    ), x


@pytest.mark.parametrize("turned", [False, True])
def test_ppca_has_as_many_active_directions_as_eigenvalues_above_the_noise(turned):
    """Exact, whatever the rotation; along the axes the latents are counted too, and none of it is a failure."""
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] if turned else np.eye(SIZE)
    weight = ppca_weight([9.0, 6.0, 4.0, 0.8, 0.7, 0.6], math.sqrt(2.0), rotation)
    guide, gain, covariance = posterior_of(weight, math.sqrt(2.0))
    (numbers, reasons, tables, _), x = look(weight, math.sqrt(2.0), guide)
    print(numbers, tables["latents"])
    assert numbers["active_directions"] == 3
    assert numbers["active_latents"] == (SIZE if turned else 3)
    assert reasons == []
    if not turned:
        assert list(tables["latents"]["verdict"]) == ["active"] * 3 + ["not needed"] * 3
    mean = x @ gain.T
    kl = 0.5 * (np.trace(covariance) - np.linalg.slogdet(covariance)[1] - SIZE + np.sum(mean**2, axis=1)).mean()
    assert abs(numbers["kl_per_unit"] - kl) <= 5 * 0.05 * kl / math.sqrt(UNITS)
    each = 0.5 * (np.diag(covariance) + np.mean(mean**2, axis=0) - 1 - np.log(np.diag(covariance)))
    noise = 5 * math.sqrt(2 / (GLOBAL_DRAWS * PRIOR_DRAWS))  # relative, of the prior's variance
    np.testing.assert_allclose(tables["latents"]["kl"], each, rtol=noise, atol=0.01)
    np.testing.assert_allclose(tables["latents"]["activity"], mean.var(axis=0, ddof=1), rtol=noise, atol=0.005)


def test_a_latent_that_training_gave_up_on_is_a_collapse_and_one_without_use_is_none():
    weight = np.zeros((SIZE, 3))
    weight[:, 0], weight[:, 1] = 1.0, [1, -1, 1, -1, 1, -1]
    guide, gain, covariance = posterior_of(weight, 0.7)
    assert abs(covariance[0, 1]) < 1e-9
    lost_gain, lost_factor = gain.copy(), np.sqrt(np.diag(np.diag(covariance)))
    lost_gain[1], lost_factor[1, 1] = 0.0, 1.0  # q of the second latent is its prior, though the data speak of it
    lost = by_hand(lost_gain, lost_factor)
    numbers, reasons, tables, _ = look(weight, 0.7, lost)[0]
    print(tables["latents"], reasons)
    assert list(tables["latents"]["verdict"]) == ["active", "gave up", "not needed"]
    assert [r.code for r in reasons] == ["collapse"]
    assert "z[1]" in reasons[0].text
    assert "warm_up" in reasons[0].next_step
    assert numbers["active_latents"] == 1
    whole = look(weight, 0.7, guide)[0]
    assert whole[1] == []
    assert list(whole[2]["latents"]["verdict"]) == ["active", "active", "not needed"]


def test_without_refined_units_idle_latents_are_not_judged():
    weight = np.zeros((SIZE, 2))
    weight[:, 0] = 1.0
    _, reasons, tables, _ = look(weight, 0.7, posterior_of(weight, 0.7)[0], refined_units=0)[0]
    assert reasons == []
    assert list(tables["latents"]["verdict"]) == ["active", "not tested"]


def test_a_latent_whose_refined_q_has_no_better_bound_is_undecided():
    refined = {"kl": np.full((4, 1), 1.0), "gain": 0.1, "gain_se": 0.1}
    assert list(verdicts(np.array([False]), np.zeros(1), [np.array([0])], refined)) == ["undecided"]


def nested(y):
    with numpyro.plate("school", y.shape[0], dim=-2):
        a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("pupil", y.shape[1], dim=-1):
            b = numpyro.sample("b", dist.Normal(a, 1))
            numpyro.sample("y", dist.Normal(b, 0.5), obs=y)


def test_padding_is_in_no_latent():
    """Schools of other sizes: before training q of every pupil is the one Newton step of the model, which is exact."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 7, 80)
    y = [(rng.standard_normal() + math.hypot(1, 0.5) * rng.standard_normal(n)).astype(np.float32) for n in sizes]
    units = as_units({"y": y}, nested, "school")
    joint, guide = initialise(am.amortize(nested, units, plate="school"), to_batch(units), jax.random.key(0))
    still = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, guide.local.family)
    guide = eqx.tree_at(lambda g: g.local.family, guide, still)
    found = activity(joint, guide, conform(units, joint), key=jax.random.key(1), most_units=80, refined_units=0)
    kl = []
    for x in y:
        precision = np.eye(len(x)) / 0.25 + np.linalg.inv(np.eye(len(x)) + 1.0)
        covariance = np.linalg.inv(precision)
        ratio, mean = np.diag(covariance) / 2, covariance @ x / 0.25 / math.sqrt(2)
        kl += list(0.5 * (mean**2 + ratio - 1 - np.log(ratio)))
    table = found.tables["latents"]
    print(table, np.mean(kl))
    assert list(table["latent"]) == ["a", "b"]
    assert abs(table["kl"][1] / np.mean(kl) - 1) < 5 * math.sqrt(2 / (GLOBAL_DRAWS * PRIOR_DRAWS))


def test_directions_without_noise_of_their_draws():
    """Of means that are all equal but for Monte Carlo, whose variance 0.1 is ten times the limit, none is active."""
    rng = np.random.default_rng(0)
    halves = math.sqrt(0.1) * rng.standard_normal((20_000, 1, 2, 3))
    assert np.abs(np.linalg.eigvalsh(cross_covariance(halves))).max() < ACTIVE / 2


def bimodal(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z**2, 0.2), obs=x)


def test_a_q_at_the_prior_of_two_modes_is_left_by_units_of_their_own():
    """x tells |z| alone: a unit's own q takes one of the modes."""
    x = np.random.default_rng(0).uniform(2.0, 4.0, 60).astype(np.float32)
    units = as_units({"x": x}, bimodal, "unit")
    joint, _ = initialise(am.amortize(bimodal, units, plate="unit"), to_batch(units), jax.random.key(0))
    data = conform(units, joint)
    guide = ByHandAtPrior(None, True, None, None, None, jnp.zeros((1, 1)), jnp.eye(1))
    _, reasons, tables, _ = activity(joint, guide, data, key=jax.random.key(1), most_units=60, refined_units=8)
    print(tables["latents"], reasons)
    assert list(tables["latents"]["verdict"]) == ["gave up"]
    assert [r.code for r in reasons] == ["collapse"]


class ByHandAtPrior(ByHand):
    """The same for one number a unit, of data that are one number."""

    def encode(self, batch):
        return (0.0 * batch.arrays["x"][:, None],)
