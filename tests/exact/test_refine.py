"""Are units repaired to their exact posterior, each by the rung that it needs, and none made worse?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of

import amortax as am

DRAWS = 2000


def linear(x, weight, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)


@pytest.fixture(scope="module")
def exact():
    rng = np.random.default_rng(0)
    return LinearGaussian(rng.standard_normal((10, 3)).astype(np.float32), np.zeros(10), 0.5)


@pytest.fixture(scope="module")
def trained(exact):
    x = exact.simulate(np.random.default_rng(1), 5000)[1]
    model = functools.partial(linear, weight=exact.weight, noise=exact.noise)
    return am.fit(am.amortize(model, {"x": x}, plate="unit"), {"x": x}, key=jax.random.key(0), num_steps=1000)


def divergence(draws, exact, x):
    """KL of the normals of draws (sample, unit, d) from the exact posteriors."""
    means, covariances = draws.mean(axis=0), np.stack([np.cov(d.T) for d in np.swapaxes(draws, 0, 1)])
    return normal_kl(means, covariances, *exact.posterior(x))


def test_units_far_from_the_training_are_repaired_and_none_is_made_worse(exact, trained):
    x = exact.simulate(np.random.default_rng(2), 40)[1]
    x[20:] *= 10.0
    before = normal_kl(*normals_of(trained, {"x": x}), *exact.posterior(x))
    refined = trained.refine({"x": x}, key=jax.random.key(1), num_samples=DRAWS)
    after = divergence(refined["z"].values, exact, x)
    noise = 9 / (2 * DRAWS) * 5  # means and covariances of so many draws
    print(f"KL before {before[20:].mean():.2f}, after {after[20:].max():.4f}")
    assert np.median(before[20:]) > 1.0
    assert after[20:].max() < noise
    assert np.all(after <= before + noise)
    assert set(refined["rung"].values[20:]) == {"own"}
    assert np.all(refined["verdict"] == "PASS")


def test_units_that_need_nothing_have_the_draws_of_sample(exact, trained):
    x = exact.simulate(np.random.default_rng(3), 20)[1]
    x[10:] *= 10.0
    refined = trained.refine({"x": x}, key=jax.random.key(1), num_samples=50)
    draws = trained.sample({"x": x}, num_samples=50, key=jax.random.key(1))
    kept = refined["rung"].values == "encoder"
    assert kept[:10].all()
    assert not kept[10:].any()
    np.testing.assert_array_equal(refined["z"].values[:, kept], draws["z"].values[:, kept])
    assert set(draws.dims) == set(refined.dims)


def two_modes(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 4.0))
        numpyro.sample("x", dist.Normal(jnp.abs(z), 0.5), obs=x)


def test_two_modes_are_both_found_by_smc():
    """q is a normal of one mode; p(z | x) has two of equal weight, at about ±x."""
    x = np.full(8, 3.0, np.float32)
    plan = am.amortize(two_modes, {"x": x}, plate="unit", family=am.full())
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), num_steps=200)
    refined = posterior.refine({"x": x}, key=jax.random.key(1), num_samples=DRAWS)
    share = np.mean(refined["z"].values > 0, axis=0)
    print("share of the positive mode", share, refined["rung"].values, refined["verdict"].values)
