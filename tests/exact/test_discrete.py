"""Discrete latents from `amortize` to the answers: responsibilities of a mixture, classes of elements by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

import amortax as am

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

SHARES, MEANS, SDS = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 2.0]), np.array([0.5, 0.7, 0.4])
NOISE, SLOPES = 0.6, np.array([0.0, 1.0, 2.0])


def normal_log_prob(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def mixture(y):
    shares, means, sds = (jnp.asarray(x, jnp.float32) for x in (SHARES, MEANS, SDS))
    with numpyro.plate("unit", y.shape[0]):
        c = numpyro.sample("c", dist.Categorical(shares))
        numpyro.deterministic("mean", means[c])
        numpyro.sample("y", dist.Normal(means[c], sds[c]), obs=y)


def drawn_from_the_mixture(count, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.choice(3, size=count, p=SHARES)
    return (MEANS[c] + SDS[c] * rng.standard_normal(count)).astype(np.float32)


def test_responsibilities_of_a_known_mixture_are_exact(tmp_path):
    y = drawn_from_the_mixture(50)
    posterior = am.fit(am.amortize(mixture, {"y": y}, plate="unit"), {"y": y}, key=jax.random.key(0), num_steps=1)
    joint = np.log(SHARES) + normal_log_prob(y[:, None].astype(np.float64), MEANS, SDS)
    evidence = np.logaddexp.reduce(joint, axis=1)
    exact = np.exp(joint - evidence[:, None])
    found = np.stack([np.exp(posterior.log_prob({"c": np.full(50, k)}, {"y": y}).unit) for k in range(3)], axis=1)
    print(f"largest error of a responsibility {np.abs(found - exact).max():.1e}")
    assert np.abs(found - exact).max() <= 1e-5
    assert np.all(posterior.log_prob({"c": np.full(50, 3)}, {"y": y}).unit == -np.inf)

    report = posterior.check({"y": y}, key=jax.random.key(1), checks=WEIGHTS)
    assert report.verdict == "PASS"
    np.testing.assert_allclose(report.units["elbo"], evidence, atol=1e-5)

    count = 4000
    draws = posterior.sample({"y": y}, num_samples=count, key=jax.random.key(2))
    assert draws["c"].dims == ("sample", "unit")
    assert draws["c"].dtype == np.int32
    share = np.stack([(draws["c"].values == k).mean(axis=0) for k in range(3)], axis=1)
    assert np.all(np.abs(share - exact) <= 5 * np.sqrt(exact * (1 - exact) / count) + 1 / count)
    np.testing.assert_allclose(draws["mean"].values, MEANS[draws["c"].values], rtol=1e-6)

    posterior.save(tmp_path / "mixture.amx")
    again = am.load(tmp_path / "mixture.amx", mixture).sample({"y": y}, num_samples=count, key=jax.random.key(2))
    np.testing.assert_array_equal(again["c"].values, draws["c"].values)


def test_a_mixture_that_is_learned_ends_at_a_fixed_point_of_em():
    def model(y):
        shares = numpyro.param("shares", jnp.ones(3) / 3, constraint=constraints.simplex)
        means = numpyro.param("means", jnp.array([-0.5, 0.0, 1.0]))
        with numpyro.plate("unit", y.shape[0]):
            c = numpyro.sample("c", dist.Categorical(shares))
            numpyro.sample("y", dist.Normal(means[c], 0.5), obs=y)

    y = drawn_from_the_mixture(300, seed=1)
    posterior = am.fit(am.amortize(model, {"y": y}, plate="unit"), {"y": y}, key=jax.random.key(0), num_steps=1500)
    params = posterior.joint.params
    shares = np.asarray(biject_to(constraints.simplex)(params["shares"]), np.float64)
    means = np.asarray(params["means"], np.float64)
    joint = np.log(shares) + normal_log_prob(y[:, None], means, 0.5)
    responsibility = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    np.testing.assert_allclose(responsibility.mean(axis=0), shares, atol=1e-3)
    np.testing.assert_allclose(responsibility.T @ y / responsibility.sum(axis=0), means, atol=1e-3)


def classes(y):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("element", y.shape[1], dim=-1):
            c = numpyro.sample("c", dist.Categorical(logits=z[..., None] * jnp.arange(3.0)))
            numpyro.sample("y", dist.Normal(c, NOISE), obs=y)


def some_classes(count, seed):
    rng = np.random.default_rng(seed)
    found = []
    for n in rng.integers(1, 6, size=count):
        p = np.exp(rng.standard_normal() * SLOPES)
        found.append((rng.choice(3, size=n, p=p / p.sum()) + NOISE * rng.standard_normal(n)).astype(np.float32))
    return found


def by_quadrature(y):
    """(log evidence, probabilities (elements, 3) of the classes) of one unit."""
    z = np.linspace(-8, 8, 2001)
    log_shares = z[:, None] * SLOPES - np.logaddexp.reduce(z[:, None] * SLOPES, axis=1)[:, None]
    each = log_shares[:, None, :] + normal_log_prob(y[:, None].astype(np.float64), SLOPES, NOISE)
    summed = np.logaddexp.reduce(each, axis=2)
    log_joint = summed.sum(axis=1) + normal_log_prob(z, 0.0, 1.0)
    weight = np.exp(log_joint - log_joint.max())
    given = np.exp(each - summed[..., None])
    evidence = np.log(np.trapezoid(weight, z)) + log_joint.max()
    return evidence, np.einsum("z,zjk->jk", weight / weight.sum(), given)


@pytest.fixture(scope="module")
def class_posterior():
    data = {"y": some_classes(100, seed=0)}
    return am.fit(am.amortize(classes, data, plate="unit"), data, key=jax.random.key(0), num_steps=400)


def test_classes_of_elements_are_drawn_beside_a_number_of_the_unit(class_posterior):
    y, count = some_classes(20, seed=1), 3000
    draws = class_posterior.sample({"y": y}, num_samples=count, key=jax.random.key(1))
    longest = max(map(len, y))
    assert draws["c"].dims == ("sample", "unit", "element")
    assert draws["c"].shape == (count, 20, longest)
    report = class_posterior.check({"y": y}, key=jax.random.key(2), checks=WEIGHTS)
    evidences = []
    for i, row in enumerate(y):
        evidence, exact = by_quadrature(row)
        evidences.append(evidence)
        found = draws["c"].values[:, i, : len(row)]
        share = np.stack([(found == k).mean(axis=0) for k in range(3)], axis=1)
        assert np.all(np.abs(share - exact) <= 5 * np.sqrt(exact * (1 - exact) / count) + 0.02)
        assert np.all(np.isnan(draws["c"].values[:, i, len(row) :]))
        assert report.units["iw_elbo"][i] == pytest.approx(evidence, abs=0.02)
        assert report.units["elbo"][i] <= evidence + 0.01
    assert report.units["ess"].min() > 0.7 * 500  # weights are of the marginal over classes: nearly flat
    assert np.mean(evidences - report.units["elbo"]) < 0.02


@pytest.mark.slow
def test_the_density_of_classes_and_number_is_what_draws_have(class_posterior):
    y = some_classes(3, seed=2)
    draws = class_posterior.sample({"y": y}, num_samples=5, key=jax.random.key(1))
    unit = np.asarray(class_posterior.log_prob(draws, {"y": y}).unit, np.float64)
    alone = np.asarray(class_posterior.log_prob(draws.isel(sample=3, drop=True), {"y": y}).unit, np.float64)
    np.testing.assert_allclose(unit[3], alone, rtol=1e-5)
    with_other = draws.copy(deep=True)
    with_other["c"][:, 0, 0] = 2 - with_other["c"][:, 0, 0]  # 0 and 2 change places: the log odds are known given z
    other = np.asarray(class_posterior.log_prob(with_other, {"y": y}).unit, np.float64)
    c, z = draws["c"].values[:, 0, 0], draws["z"].values[:, 0]
    log_odds = (2 - 2 * c) * z + normal_log_prob(y[0][0], 2 - c, NOISE) - normal_log_prob(y[0][0], c, NOISE)
    np.testing.assert_allclose(other[:, 0] - unit[:, 0], log_odds, atol=2e-4)
    np.testing.assert_allclose(other[:, 1:], unit[:, 1:], rtol=1e-6)
    impossible = draws.copy(deep=True)
    impossible["c"][:, 0, 0] = 1.5
    assert np.all(class_posterior.log_prob(impossible, {"y": y}).unit[:, 0] == -np.inf)


@pytest.mark.slow
def test_predictions_keep_the_classes_of_the_units_own_elements(class_posterior):
    y = [np.full(3, -0.5, np.float32), np.full(2, 2.5, np.float32)]  # surely of class 0, surely of class 2
    same = class_posterior.predict({"y": y}, num_samples=2000, key=jax.random.key(1))["y"].values
    _, low = by_quadrature(y[0])
    _, high = by_quadrature(y[1])
    assert same[:, 0].mean() == pytest.approx(low[0] @ SLOPES, abs=0.06)
    assert np.nanmean(same[:, 1]) == pytest.approx(high[0] @ SLOPES, abs=0.06)
    new = class_posterior.predict({"y": y}, num_samples=500, key=jax.random.key(1), at={"y": [y[0][:1], y[1]]})["y"]
    assert new.shape == (500, 2, 2)
    assert new.values[:, 0, 0].mean() > same[:, 0].mean()  # other elements of the unit: their classes are not known
