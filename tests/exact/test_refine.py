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


def product(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z[..., 0] * z[..., 1], 0.3), obs=x)


def test_modes_that_q_never_draws_are_found():
    """p(z | x) has two modes, at about ±(√x, √x), of equal weight; q is a normal in one of them."""
    x = np.array([1.0, 2.0, 4.0], np.float32)
    posterior = am.fit(am.amortize(product, {"x": x}, plate="unit"), {"x": x}, key=jax.random.key(0), num_steps=300)
    refined = posterior.refine({"x": x}, key=jax.random.key(1), num_samples=DRAWS)
    grid = np.linspace(-6, 6, 601)
    a, b = np.meshgrid(grid, grid)
    for unit, value in enumerate(x):
        weight = np.exp(-0.5 * (a**2 + b**2 + ((value - a * b) / 0.3) ** 2))
        sd = np.sqrt(np.sum(weight * a**2) / np.sum(weight))
        found = refined["z"].values[:, unit, 0]
        print(f"x = {value}: mean {found.mean():.3f}, sd {found.std():.3f} of {sd:.3f}", refined["rung"].values[unit])
        assert refined["verdict"].values[unit] == "PASS"
        assert refined["rung"].values[unit] in ("reweight", "smc", "hmc")
        assert abs(found.mean()) < 0.15 * sd  # of modes of even weight, resampled over and over
        assert found.std() == pytest.approx(sd, rel=0.05)


def counts(exposure, x):
    rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(rate, 1.0))
        with numpyro.plate("visit", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Poisson(exposure * jnp.exp(z)), obs=x)


def test_units_follow_the_globals_at_every_rung():
    """E[z | x, v] at each draw of v by quadrature, for units whose q is put far off."""
    rng = np.random.default_rng(0)
    exposure = np.ones((60, 3), np.float32)
    x = rng.poisson(np.exp(rng.normal(size=(60, 1))) * exposure)
    data = {"exposure": exposure, "x": x}
    posterior = am.fit(am.amortize(counts, data, plate="unit"), data, key=jax.random.key(0), num_steps=300)
    new = {"exposure": exposure[:3], "x": np.array([[0, 0, 0], [3, 4, 5], [4000, 4100, 3900]])}
    refined = posterior.refine(new, key=jax.random.key(1), num_samples=DRAWS, budget="exact")
    print(refined["rung"].values, refined["verdict"].values)
    rate, grid = refined["rate"].values, np.linspace(-8, 10, 4001)
    for unit in range(3):
        log_p = new["x"][unit].sum() * grid - 3 * np.exp(grid) - 0.5 * (grid - rate[:, None]) ** 2
        weight = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        mean, square = weight @ grid, weight @ grid**2
        sd = np.sqrt(np.mean(square) - np.mean(mean) ** 2)
        found = refined["z"].values[:, unit]
        assert abs(found.mean() - mean.mean()) < 5 * sd / np.sqrt(DRAWS)
        assert found.std() == pytest.approx(sd, rel=5 * np.sqrt(0.75 / DRAWS))
        resid = np.corrcoef(found - mean, rate)[0, 1]  # what is left of z once its mean given v is taken away
        assert abs(resid) < 5 / np.sqrt(DRAWS)
    assert np.all(refined["verdict"] == "PASS")


@pytest.mark.parametrize("budget", [0, -1.0, "fast", True])
def test_a_budget_that_is_none_is_refused(trained, exact, budget):
    x = exact.simulate(np.random.default_rng(3), 2)[1]
    with pytest.raises(am.DataError, match="budget must be seconds above zero, 'exact' or None"):
        trained.refine({"x": x}, key=jax.random.key(1), budget=budget)


def test_a_budget_that_is_used_up_leaves_an_honest_failure(trained, exact):
    x = 10.0 * exact.simulate(np.random.default_rng(3), 3)[1]
    refined = trained.refine({"x": x}, key=jax.random.key(1), num_samples=50, budget=1e-9)
    draws = trained.sample({"x": x}, num_samples=50, key=jax.random.key(1))
    assert list(refined["verdict"].values) == ["FAIL"] * 3
    np.testing.assert_array_equal(refined["z"], draws["z"])


def two_kinds(x):
    with numpyro.plate("unit", x.shape[0]):
        kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.5, 0.5])))
        z = numpyro.sample("z", dist.Normal(jnp.array([-2.0, 2.0])[kind], 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_a_learned_choice_is_summed_and_drawn_again():
    """z | kind, x is N((m + 4 x) / 5, 1/5), and kind given x has the odds of N(x; m, 1.25); q is hardly trained."""
    train = np.random.default_rng(0).normal(size=200).astype(np.float32) * 2
    posterior = am.fit(
        am.amortize(two_kinds, {"x": train}, plate="unit"), {"x": train}, key=jax.random.key(0), num_steps=5
    )
    x = np.array([0.0, 0.3, -30.0], np.float32)
    refined = posterior.refine({"x": x}, key=jax.random.key(1), num_samples=DRAWS)
    second = 0.5 + 0.5 * np.tanh(2.0 * x / 1.25)  # probability of the second kind
    means = np.stack([(-2 + 4 * x) / 5, (2 + 4 * x) / 5])
    mean = (1 - second) * means[0] + second * means[1]
    sd = np.sqrt(0.2 + second * (1 - second) * 0.8**2)
    print(refined["rung"].values, refined["verdict"].values)
    assert np.all(refined["verdict"] == "PASS")
    np.testing.assert_allclose(refined["kind"].values.mean(axis=0), second, atol=5 * 0.5 / np.sqrt(DRAWS))
    assert np.all(np.abs(refined["z"].values.mean(axis=0) - mean) < 5 * sd / np.sqrt(DRAWS))
    own = refined["z"].values - means[refined["kind"].values.astype(int), np.arange(3)]
    assert own.std(axis=0) == pytest.approx(np.sqrt(0.2), rel=5 / np.sqrt(2 * DRAWS))
