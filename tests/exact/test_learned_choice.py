"""Numbers that follow a discrete choice: q(c | x) q(u | x, c) against quadrature, and M2's bound written by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.elsewhere import complete_responses
from amortax.intake import as_units, conform, to_batch
from amortax.joint.joint import Joint
from amortax.objectives.base import Minibatch
from amortax.objectives.estimators import local_draws

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

SHARES, MEANS, SDS = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.0, 3.0]), np.array([0.5, 1.0, 0.3])
NOISE = 0.8


def normal_log_prob(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def mixture(x):
    shares, means, sds = (jnp.asarray(a, jnp.float32) for a in (SHARES, MEANS, SDS))
    with numpyro.plate("unit", x.shape[0]):
        c = numpyro.sample("c", dist.Categorical(shares))
        z = numpyro.sample("z", dist.Normal(means[c], sds[c]))
        numpyro.sample("x", dist.Normal(z + 0.3 * jnp.tanh(z), NOISE), obs=x)


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    c = rng.choice(3, size=count, p=SHARES)
    z = MEANS[c] + SDS[c] * rng.standard_normal(count)
    return {"x": (z + 0.3 * np.tanh(z) + NOISE * rng.standard_normal(count)).astype(np.float32)}


def by_quadrature(x):
    """(log evidence (N,), log p(c | x) (N, 3), mean of z given c and x (N, 3))."""
    z = np.linspace(-8, 8, 4001)
    log_joint = (
        np.log(SHARES)[:, None]
        + normal_log_prob(z, MEANS[:, None], SDS[:, None])
        + normal_log_prob(x[:, None, None].astype(np.float64), z + 0.3 * np.tanh(z), NOISE)
    )
    weight = np.exp(log_joint)
    each = np.trapezoid(weight, z, axis=2)
    return (
        np.log(each.sum(axis=1)),
        np.log(each) - np.log(each.sum(axis=1, keepdims=True)),
        (weight @ z) * (z[1] - z[0]) / each,
    )


@pytest.fixture(scope="module")
def posterior():
    data = drawn(500, seed=0)
    return am.fit(am.amortize(mixture, data, plate="unit"), data, key=jax.random.key(0), num_steps=1500)


@pytest.mark.slow
def test_choice_and_number_are_those_of_quadrature(posterior):
    data, count = drawn(40, seed=1), 4000
    evidence, log_share, mean = by_quadrature(data["x"])
    report = posterior.check(data, key=jax.random.key(1), checks=WEIGHTS)
    gap = evidence - report.units["elbo"]
    print(f"log p - ELBO {gap.mean():.4f}, at most {gap.max():.4f}")
    assert gap.min() > -0.02
    assert gap.mean() < 0.03
    np.testing.assert_allclose(report.units["iw_elbo"], evidence, atol=0.03)
    draws = posterior.sample(data, num_samples=count, key=jax.random.key(2))
    exact = np.exp(log_share)
    for k in range(3):
        chosen = draws["c"].values == k
        assert np.all(np.abs(chosen.mean(axis=0) - exact[:, k]) <= 5 * 0.5 / np.sqrt(count) + 0.05)
        often = exact[:, k] > 0.2
        found = (draws["z"].values * chosen).sum(axis=0) / np.maximum(chosen.sum(axis=0), 1)
        assert np.all(np.abs(found - mean[:, k])[often] <= 0.15)


@pytest.mark.slow
def test_the_density_of_draws_sums_and_integrates_to_one(posterior, tmp_path):
    data = drawn(2, seed=3)
    z = np.linspace(-8, 8, 2001)
    posterior.save(tmp_path / "choice.amx")
    again = am.load(tmp_path / "choice.amx", mixture)
    total = 0.0
    for k in range(3):
        values = _dataset(z, k)
        total = total + np.trapezoid(np.exp(np.asarray(again.log_prob(values, data).unit, np.float64)), z, axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-3)
    draws = posterior.sample(data, num_samples=20, key=jax.random.key(1))
    same = again.sample(data, num_samples=20, key=jax.random.key(1))
    np.testing.assert_array_equal(same["z"].values, draws["z"].values)
    np.testing.assert_array_equal(same["c"].values, draws["c"].values)


def _dataset(z, k):
    import xarray

    both = np.stack([z, z], axis=1).astype(np.float32)
    return xarray.Dataset({"z": (("sample", "unit"), both), "c": (("sample", "unit"), np.full(both.shape, k))})


WEIGHT = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.2]], np.float32)
CENTERS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0], [2.0, 2.0, 0.0]], np.float32)


def semi_supervised(x, y):
    with numpyro.plate("unit", x.shape[0]):
        y = numpyro.sample("y", dist.Categorical(jnp.asarray(SHARES, jnp.float32)), obs=y)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ WEIGHT.T + jnp.asarray(CENTERS)[y], NOISE).to_event(1), obs=x)


def some_labels(count=12):
    rng = np.random.default_rng(0)
    y = rng.choice(3, size=count, p=SHARES)
    x = rng.standard_normal((count, 2)) @ WEIGHT.T + CENTERS[y] + NOISE * rng.standard_normal((count, 3))
    missing = np.arange(count) % 3 != 0
    return {"x": x.astype(np.float32), "y": np.ma.array(y, mask=missing)}, y, missing


def built(data):
    plan = am.amortize(semi_supervised, data, plate="unit")
    joint, guide = Joint(plan.model, plan.structure, {}), plan.build(jax.random.key(3))
    rng = np.random.default_rng(1)  # away from the start, where q(y | x) hardly knows x
    guide = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32), guide)
    batch = jax.tree.map(jnp.asarray, to_batch(conform(as_units(data, plan.model, "unit"), joint)))
    return guide, joint, batch


def by_hand(guide, batch, noise, y, missing, alpha):
    """(bound per unit, its sum with the classifier's term) of M2, unit by unit."""
    codes, bound, told = jnp.eye(3), [], []
    white = guide.local.whitening.value
    for i in range(len(y)):
        context = guide.encoder(jax.tree.map(lambda a, i=i: a[i], batch))
        log_q_y = jax.nn.log_softmax(guide.classifier.network(*context))
        each = []
        for k in range(3):
            free, log_q = guide.local.family.sample_and_log_prob(noise[i], 0, (*context, codes[k]))
            center, scale = white["center"][k], white["scale"][k]
            z, log_q = center + scale * free, log_q - jnp.sum(jnp.log(jnp.abs(scale)))
            log_p = (
                jnp.log(SHARES[k])
                + jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi))
                + jnp.sum(-0.5 * ((batch.arrays["x"][i] - WEIGHT @ z - CENTERS[k]) / NOISE) ** 2)
                - 3 * jnp.log(NOISE * jnp.sqrt(2 * jnp.pi))
            )
            each.append(log_p - log_q)
        unlabelled = sum(jnp.exp(log_q_y[k]) * (each[k] - log_q_y[k]) for k in range(3))
        bound.append(unlabelled if missing[i] else each[int(y[i])])
        told.append(0.0 if missing[i] else log_q_y[int(y[i])])
    bound = sum(bound) / len(y)
    return bound, bound + alpha * sum(told) / len(y)


def test_the_bound_is_that_of_m2_and_so_is_its_gradient(monkeypatch):
    data, y, missing = some_labels()
    guide, joint, batch = built(data)
    key, minibatch = jax.random.key(5), Minibatch((batch,), jnp.asarray(12.0), jnp.zeros((), jnp.int32))
    objective = am.ELBO(path_derivative=False, classifier_weight=0.7)
    noise = guide.local_noise(jax.random.key(6), joint, batch, 12)
    monkeypatch.setattr(type(guide), "local_noise", lambda *_: noise)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def ours(guide):
        loss = objective(key, guide, joint, minibatch)
        return -loss.value, loss.elbo_per_unit

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def theirs(guide):
        bound, trained = by_hand(guide, batch, noise, y, missing, 0.7)
        return trained, bound

    (value, elbo), gradient = ours(guide)
    (expected, bound), exact = theirs(guide)
    assert float(elbo) == pytest.approx(float(bound), rel=1e-5)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    named = jax.tree_util.tree_leaves_with_path(eqx.filter(gradient, eqx.is_inexact_array))
    for (path, mine), right in zip(named, jax.tree.leaves(eqx.filter(exact, eqx.is_inexact_array)), strict=True):
        if "whitening" not in jax.tree_util.keystr(path) and "statistics" not in jax.tree_util.keystr(path):
            np.testing.assert_allclose(mine, right, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))
    assert float(jnp.max(jnp.abs(gradient.classifier.network.layers[0].weights[0]))) > 1e-3


def test_the_default_estimator_has_the_same_gradient_in_the_mean():
    data, _, _ = some_labels()
    guide, joint, batch = built(data)
    contexts = jax.vmap(guide.encoder)(batch)

    @eqx.filter_jit
    def gradients(keys, path):
        def bound(classifier, key):
            whole = eqx.tree_at(lambda g: g.classifier, guide, classifier)
            draws = local_draws(key, whole, joint, batch, contexts, jnp.zeros(0), path_derivative=path)
            return draws.elbo.sum()

        return jax.vmap(lambda k: jax.grad(bound)(guide.classifier, k).network.layers[-1].bias)(keys)

    count = 4000
    keys = jax.random.split(jax.random.key(0), count)
    plain, path = (np.asarray(gradients(keys, p), np.float64) for p in (False, True))
    away = plain - path  # the same draws: what differs has mean zero
    error = 5 * away.std(axis=0) / np.sqrt(count) + 1e-4
    assert np.all(np.abs(away.mean(axis=0)) <= error)


def test_what_q_is_told_of_labels():
    data, y, missing = some_labels()
    guide, joint, batch = built(data)
    contexts = jax.vmap(guide.encoder)(batch)
    assert "y" not in {f.name for f in guide.encoder.features.inputs.features}
    log_probs = jax.vmap(guide.choice_log_probs, in_axes=(0, None, 0, None))(contexts, jnp.zeros(0), batch, joint)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-5)
    assert np.all(np.isfinite(log_probs[missing]))
    np.testing.assert_array_equal(np.argmax(log_probs, axis=1)[~missing], y[~missing])
    assert np.all(np.isneginf(log_probs[~missing]).sum(axis=1) == 2)


def hierarchy(x, y):  # labels, a global, a number placed by a Newton step, and a choice in every element
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        y = numpyro.sample("y", dist.Bernoulli(0.4), obs=y)
        z = numpyro.sample("z", dist.Normal(mu + 3 * y, 0.5))
        with numpyro.plate("element", x.shape[1], dim=-1):
            far = numpyro.sample("far", dist.Bernoulli(0.1))
            numpyro.sample("x", dist.Normal(jnp.where(far, 0.0, z), jnp.where(far, 5.0, 0.4)), obs=x)


def test_labels_leave_every_weight_finite():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(n).astype(np.float32) for n in (1, 4, 2, 3)]
    data = {"x": x, "y": np.ma.array([[0], [1], [0], [1]], mask=[[False], [False], [True], [True]])}
    plan = am.amortize(hierarchy, data, plate="unit", family=am.mixture(am.full(), 2))
    lines = str(plan).splitlines()
    assert any("y" in line and "2 values" in line and "categorical()" in line for line in lines)
    assert any("far" in line and "per unit and element" in line and "summed exactly" in line for line in lines)
    assert "the encoder sees x (set along element)" in lines
    joint, guide = Joint(plan.model, plan.structure, {}), plan.build(jax.random.key(1))
    batch = jax.tree.map(jnp.asarray, to_batch(conform(as_units(data, hierarchy, "unit"), joint)))

    @eqx.filter_jit
    def drawn_by(guide):
        return local_draws(jax.random.key(0), guide, joint, batch, guide.encode(batch), jnp.zeros(1))

    draws = drawn_by(guide)
    assert draws.log_weight.shape == (4, 4)  # two values times two members
    assert np.all(np.isfinite(draws.log_weight))
    shares = np.exp(np.asarray(draws.log_share, np.float64)).reshape(2, 2, 4).sum(axis=1)
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(shares[:, :2], [[1.0, 0.0], [0.0, 1.0]], atol=1e-6)


def test_a_classifier_that_has_nothing_to_do_is_refused():
    data = drawn(20, seed=0)
    with pytest.raises(am.FitError, match=r"am.ELBO\(classifier_weight=1.0\) needs a discrete site"):
        am.fit(
            am.amortize(mixture, data, plate="unit"),
            data,
            key=jax.random.key(0),
            objective=am.ELBO(classifier_weight=1.0),
        )
    with pytest.raises(am.FitError, match="classifier_weight must be a finite number from 0, got -1.0"):
        am.ELBO(classifier_weight=-1.0)

    def summed(x):
        with numpyro.plate("unit", x.shape[0]):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(c, NOISE), obs=x)

    with pytest.raises(am.GuideError, match="classifier=.*no numeric local stands beside a discrete site"):
        am.amortize(summed, data, plate="unit", classifier=am.categorical())


def test_a_choice_against_the_label_has_no_probability():
    data, y, missing = some_labels()
    _, joint, batch = built(data)
    assert not missing[0]
    unit = jax.tree.map(lambda x: x[0], batch)
    found = [
        float(joint.log_choice({"y": jnp.array([k])}, jnp.array([0.1, -0.2, k]), jnp.zeros(0), unit)) for k in range(3)
    ]
    np.testing.assert_allclose(found, np.where(np.arange(3) == y[0], 0.0, -np.inf), atol=1e-5)


def test_prediction_elsewhere_needs_the_labels_that_other_sites_follow():
    data, *_ = some_labels()
    _, joint, _ = built(data)
    units = conform(as_units(data, semi_supervised, "unit"), joint)
    with pytest.raises(am.DataError, match="at lacks 'y', on which other sites depend; give the values"):
        complete_responses({"x": data["x"]}, units, joint)


def test_labels_that_nan_made_floats_are_refused_with_what_to_write():
    data, y, missing = some_labels()
    floats = np.where(missing, np.nan, y).astype(np.float32)
    with pytest.raises(am.ModelError, match="numpy.ma.masked_array of integers"):
        am.amortize(semi_supervised, {"x": data["x"], "y": floats}, plate="unit")
