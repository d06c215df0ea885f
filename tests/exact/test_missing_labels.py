"""An observed discrete site with missing entries is summed where it is missing and conditioned on elsewhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import conform, to_batch
from amortax.joint.joint import Joint
from amortax.joint.probe import probe
from amortax.joint.read import read

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

SHARES, MEANS = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 2.0])
NOISE = 0.6
RNG = np.random.default_rng(0)


def normal_log_prob(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def labelled(x, y):
    with numpyro.plate("unit", x.shape[0]):
        y = numpyro.sample("y", dist.Categorical(jnp.asarray(SHARES, jnp.float32)), obs=y)
        numpyro.sample("x", dist.Normal(jnp.asarray(MEANS, jnp.float32)[y], NOISE), obs=x)


def labelled_beside_a_number(x, y):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Bernoulli(logits=z), obs=y)
        numpyro.sample("x", dist.Normal(z + 2.0 * y, NOISE), obs=x)  # the argument itself, not the site's value


def labelled_elements(x, y):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("element", x.shape[1], dim=-1):
            y = numpyro.sample("y", dist.Bernoulli(logits=z), obs=y)
            numpyro.sample("x", dist.Normal(z + 2.0 * y, NOISE), obs=x)


def labelled_events(x, y):  # three labels at once, each of which may be missing
    with numpyro.plate("unit", x.shape[0]):
        y = numpyro.sample("y", dist.Bernoulli(jnp.array([0.2, 0.5, 0.7])).to_event(1), obs=y)
        numpyro.sample("x", dist.Normal(y @ jnp.asarray(MEANS, jnp.float32), NOISE), obs=x)


def with_gaps(values, missing):
    return np.ma.array(values, mask=missing)


def joint_of(model, data):
    found = am.units(data, name="unit")
    batch = to_batch(found)
    structure = probe(model, read(model, batch, found.axes, "unit"), batch, {}, jax.random.key(0))
    return Joint(model, structure, {}), batch


def log_prob(joint, local, batch):
    return np.asarray(eqx.filter_jit(joint.log_prob)(local, jnp.zeros(0), batch).unit, np.float64)


def test_units_with_a_label_are_conditioned_on_and_others_summed(tmp_path):
    x, y = RNG.normal(size=8).astype(np.float32), RNG.integers(0, 3, size=8)
    missing = np.arange(8) % 3 == 0
    data = {"x": x, "y": with_gaps(y, missing)}
    plan = am.amortize(labelled, data, plate="unit")
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=1)
    joint = np.log(SHARES) + normal_log_prob(x[:, None].astype(np.float64), MEANS, NOISE)
    summed = np.logaddexp.reduce(joint, axis=1)
    report = posterior.check(data, key=jax.random.key(1), checks=WEIGHTS)
    np.testing.assert_allclose(report.units["elbo"], np.where(missing, summed, joint[np.arange(8), y]), rtol=1e-5)
    count = 3000
    posterior.save(tmp_path / "labels.amx")
    posterior = am.load(tmp_path / "labels.amx", labelled)
    drawn = posterior.sample(data, num_samples=count, key=jax.random.key(2))["y"].values
    assert np.all(drawn[:, ~missing] == y[~missing])
    exact = np.exp(joint - summed[:, None])
    for k in range(3):
        share, p = (drawn == k).mean(axis=0), exact[:, k]
        assert np.all(np.abs(share - p)[missing] <= (5 * np.sqrt(p * (1 - p) / count) + 1 / count)[missing])
        log_q = np.asarray(posterior.log_prob({"y": np.full(8, k)}, data).unit)
        np.testing.assert_allclose(log_q[missing], np.log(p)[missing], atol=1e-5)
        np.testing.assert_array_equal(log_q[~missing], np.where(y[~missing] == k, 0.0, -np.inf))
    again = np.asarray(posterior.log_prob({"y": np.zeros(8, int)}, {"x": x}).unit)  # no labels at all
    np.testing.assert_allclose(again, np.log(exact[:, 0]), atol=1e-5)


def by_hand(z, x, y, missing):
    """log p(x, y | z) of independent elements, in float64, summed over y where it is missing."""
    each = np.stack([normal_log_prob(x, z + 2.0 * k, NOISE) - np.log1p(np.exp(-(2 * k - 1) * z)) for k in (0, 1)])
    return np.where(missing, np.logaddexp(*each), np.where(y == 1, each[1], each[0]))


def test_a_number_of_the_unit_stands_beside_the_label():
    x, y, z = RNG.normal(size=6).astype(np.float32), RNG.integers(0, 2, size=6), RNG.normal(size=6)
    missing = np.arange(6) % 2 == 0
    joint, batch = joint_of(labelled_beside_a_number, {"x": x, "y": with_gaps(y, missing)})
    expected = by_hand(z, x.astype(np.float64), y, missing) + normal_log_prob(z, 0.0, 1.0)
    np.testing.assert_allclose(log_prob(joint, jnp.asarray(z)[:, None], batch), expected, rtol=2e-5)


def test_elements_of_a_ragged_plate_may_miss_their_labels():
    lengths, z = (1, 4, 2), RNG.normal(size=3)
    x = [RNG.normal(size=n).astype(np.float32) for n in lengths]
    y = [RNG.integers(0, 2, size=n) for n in lengths]
    missing = [np.arange(n) % 2 == 1 for n in lengths]
    data = {"x": x, "y": [with_gaps(a, b) for a, b in zip(y, missing, strict=True)]}
    joint, batch = joint_of(labelled_elements, data)
    assert {s.name for s in joint.structure.summed} == {"y"}
    expected = [
        by_hand(z[i], x[i].astype(np.float64), y[i], missing[i]).sum() + normal_log_prob(z[i], 0.0, 1.0)
        for i in range(3)
    ]
    np.testing.assert_allclose(log_prob(joint, jnp.asarray(z)[:, None], batch), expected, rtol=2e-5)
    without = to_batch(conform({"x": x}, joint))
    expected = [
        by_hand(z[i], x[i].astype(np.float64), y[i], True).sum() + normal_log_prob(z[i], 0.0, 1.0) for i in range(3)
    ]
    np.testing.assert_allclose(log_prob(joint, jnp.asarray(z)[:, None], without), expected, rtol=2e-5)
    slope = jax.jit(jax.grad(lambda u: joint.log_prob(u, jnp.zeros(0), batch).unit.sum()))(jnp.asarray(z)[:, None])
    assert np.all(np.isfinite(slope))


def test_what_stands_in_a_gap_does_not_matter():
    x, y = RNG.normal(size=6).astype(np.float32), RNG.integers(0, 3, size=6)
    missing = np.arange(6) % 2 == 0
    joint, batch = joint_of(labelled, {"x": x, "y": with_gaps(y, missing)})
    filled = [am.units({"x": x, "y": with_gaps(np.where(missing, k, y), missing)}, name="unit") for k in range(3)]
    values = [log_prob(joint, jnp.zeros((6, 0)), to_batch(conform(data, joint))) for data in filled]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def test_an_event_of_labels_may_miss_some():
    x, y = RNG.normal(size=4).astype(np.float32), RNG.integers(0, 2, size=(4, 3))
    missing = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    joint, batch = joint_of(labelled_events, {"x": x, "y": with_gaps(y, missing)})
    p = np.array([0.2, 0.5, 0.7])
    found = log_prob(joint, jnp.zeros((4, 0)), batch)
    for i in range(4):
        every = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        every = every[np.all((every == y[i]) | missing[i], axis=1)]
        prior = np.log(np.where(every == 1, p, 1 - p)).sum(axis=1)
        expected = np.logaddexp.reduce(prior + normal_log_prob(float(x[i]), every @ MEANS, NOISE))
        assert found[i] == pytest.approx(expected, rel=2e-5)


def counted(x, n):
    with numpyro.plate("unit", x.shape[0]):
        n = numpyro.sample("n", dist.Poisson(2.0), obs=n)
        numpyro.sample("x", dist.Normal(n, NOISE), obs=x)


def labelled_with_a_number(x, y):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        y = numpyro.sample("y", dist.Bernoulli(0.3), obs=y)
        numpyro.sample("x", dist.Normal(z + y, NOISE), obs=x)


def shared_between_elements(x, y):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        with numpyro.plate("element", y.shape[1], dim=-1):
            y = numpyro.sample("y", dist.Bernoulli(0.3), obs=y)
        numpyro.sample("x", dist.Normal(y.sum(-1, keepdims=True), NOISE), obs=x)


def test_labels_that_cannot_be_summed_are_refused():
    x, n = RNG.normal(size=4).astype(np.float32), RNG.integers(0, 3, size=4)
    gaps = np.arange(4) == 1
    with pytest.raises(am.DataError, match=r"data\['n'\] is missing at unit '1', but it also changes .* site 'x'"):
        am.amortize(counted, {"x": x, "n": with_gaps(n, gaps)}, plate="unit")
    table = with_gaps(RNG.integers(0, 2, size=(4, 3)), np.arange(12).reshape(4, 3) % 5 == 1)
    with pytest.raises(am.ModelError, match="site 'x' depends on the discrete site 'y' of every element"):
        am.amortize(shared_between_elements, {"x": x[:, None], "y": table}, plate="unit")
    whole, _ = joint_of(labelled_with_a_number, {"x": x, "y": n % 2})
    with pytest.raises(am.DataError, match=r"data\['y'\] is missing at unit '1'"):
        conform({"x": x, "y": with_gaps(n % 2, gaps)}, whole)
