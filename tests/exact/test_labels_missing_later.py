"""Labels in another shape than the site's, and labels that are missing only in later data: the same exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

SHARES, MEANS, NOISE = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 2.0]), 0.6
RNG = np.random.default_rng(3)


def normal_log_prob(x, mean):
    return -0.5 * ((x - mean) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))


def one_label(x, label):  # (units, elements) and (units,)
    with numpyro.plate("unit", x.shape[0], dim=-2):
        c = numpyro.sample("c", dist.Categorical(jnp.asarray(SHARES, jnp.float32)), obs=label[:, None])
        with numpyro.plate("element", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(jnp.asarray(MEANS, jnp.float32)[c], NOISE), obs=x)


def label_of_a_group(x, label):  # (units, groups, elements) and (units, groups)
    with numpyro.plate("unit", x.shape[0], dim=-3), numpyro.plate("group", x.shape[1], dim=-2):
        c = numpyro.sample("c", dist.Categorical(jnp.asarray(SHARES, jnp.float32)), obs=label[:, :, None])
        with numpyro.plate("element", x.shape[2], dim=-1):
            numpyro.sample("x", dist.Normal(jnp.asarray(MEANS, jnp.float32)[c], NOISE), obs=x)


def label_and_number(x, y):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        y = numpyro.sample("y", dist.Bernoulli(0.3), obs=y)
        numpyro.sample("x", dist.Normal(z + y, NOISE), obs=x)


def exact(x, label, missing):
    """(log evidence, log probabilities of every label) of groups of independent elements, in float64."""
    each = np.log(SHARES) + normal_log_prob(x[..., None].astype(np.float64), MEANS).sum(axis=-2)
    seen = np.where(missing[..., None] | (np.arange(3) == label[..., None]), each, -np.inf)
    total = np.logaddexp.reduce(seen, axis=-1)
    return total, seen - total[..., None]


@pytest.mark.parametrize(("model", "shape"), [(one_label, (6,)), (label_of_a_group, (6, 3))])
def test_a_label_may_lack_the_axes_that_the_model_gives_it(model, shape, tmp_path):
    x, label = RNG.normal(size=(*shape, 4)).astype(np.float32), RNG.integers(0, 3, size=shape)
    missing = RNG.random(shape) < 0.5
    data = {"x": x, "label": np.ma.array(label, mask=missing)}
    posterior = am.fit(am.amortize(model, data, plate="unit"), data, key=jax.random.key(0), num_steps=1)
    total, log_probs = exact(x, label, missing)
    elbo = posterior.check(data, key=jax.random.key(1), checks=WEIGHTS).units["elbo"]
    np.testing.assert_allclose(elbo, total.reshape(6, -1).sum(axis=1), rtol=1e-5)
    posterior.save(tmp_path / "label.amx")
    posterior = am.load(tmp_path / "label.amx", model)
    for k in range(3):
        found = np.asarray(posterior.log_prob({"c": np.full(shape, k)}, data).unit)
        np.testing.assert_allclose(found, log_probs[..., k].reshape(6, -1).sum(axis=1), atol=1e-4)
    drawn = posterior.sample(data, num_samples=100, key=jax.random.key(2))["c"].values
    assert drawn.shape == (100, *shape)
    assert np.all(drawn[:, ~missing] == label[~missing])


def test_labels_complete_in_training_may_be_missing_later_if_planned_so(tmp_path):
    x, label = RNG.normal(size=(6, 4)).astype(np.float32), RNG.integers(0, 3, size=6)
    data = {"x": x, "label": label}
    posterior = am.fit(
        am.amortize(one_label, data, plate="unit", missing=["label"]), data, key=jax.random.key(0), num_steps=1
    )
    posterior.save(tmp_path / "label.amx")
    posterior = am.load(tmp_path / "label.amx", one_label)
    missing = np.arange(6) % 2 == 0
    later = {"x": x, "label": np.ma.array(label, mask=missing)}
    for units, gaps in ((data, np.zeros(6, bool)), (later, missing), ({"x": x}, np.ones(6, bool))):
        total, log_probs = exact(x, label, gaps)
        elbo = posterior.check(units, key=jax.random.key(1), checks=WEIGHTS).units["elbo"]
        np.testing.assert_allclose(elbo, total, rtol=1e-5)
        found = np.asarray(posterior.log_prob({"c": np.ones(6, int)}, units).unit)
        np.testing.assert_allclose(found, log_probs[:, 1], atol=1e-4)


def test_a_classifier_that_nothing_teaches_is_refused_and_a_taught_one_answers():
    y = RNG.integers(0, 2, size=64)
    x = (6.0 * y + RNG.normal(size=64)).astype(np.float32)
    data = {"x": x, "y": y}
    plan = am.amortize(label_and_number, data, plate="unit", missing=["y"])
    for objective in (am.ELBO(), am.IWELBO(2), am.Renyi(0.5), am.WakeSleep(2, wake_share=1.0)):
        with pytest.raises(am.FitError, match=r"teaches q\(y \| data\) nothing .*classifier_weight=1.0"):
            am.fit(plan, data, key=jax.random.key(0), objective=objective)
    with pytest.raises(am.FitError, match=r"teaches q\(y \| data\) nothing"):
        am.fit(plan, data, key=jax.random.key(0))
    taught = am.ELBO(classifier_weight=1.0)
    posterior = am.fit(plan, data, key=jax.random.key(0), objective=taught, num_steps=300)
    drawn = posterior.sample({"x": x}, num_samples=200, key=jax.random.key(1))["y"].mean("sample").values
    assert np.mean((drawn > 0.5) == y) > 0.95  # the labels lie 6 sd apart


def test_messages_say_how_labels_may_be_missing_later():
    x, y = RNG.normal(size=6).astype(np.float32), RNG.integers(0, 2, size=6)
    data, say = {"x": x, "y": y}, r"no 'y' was missing .*am.amortize\(..., missing=\['y'\]\)"
    posterior = am.fit(am.amortize(label_and_number, data, plate="unit"), data, key=jax.random.key(0), num_steps=1)
    with pytest.raises(am.DataError, match=r"data\['y'\] is missing at unit '0', but " + say):
        posterior.encode({"x": x, "y": np.ma.array(y, mask=np.arange(6) == 0)})
    with pytest.raises(am.DataError, match=r"new data .* has no \['y'\]; .*" + say):
        posterior.encode({"x": x})
    with pytest.raises(am.ModelError, match="there is no posterior to learn; no 'label' was missing"):
        am.amortize(one_label, {"x": x[:, None], "label": y}, plate="unit")
    with pytest.raises(am.GuideError, match="missing=.*'x' of model 'label_and_number' is no label"):
        am.amortize(label_and_number, data, plate="unit", missing=["x"])
    with pytest.raises(am.GuideError, match=r"expected a list of names, got the text 'y'; write \['y'\]"):
        am.amortize(label_and_number, data, plate="unit", missing="y")
