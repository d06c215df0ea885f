"""Discrete choices that are drawn, from `amortize` to the answers: a noisy-OR network whose posterior can be listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import as_units, conform, to_batch
from amortax.objectives.labels import label_log_prob

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

CAUSES, FINDINGS, UNITS = 8, 12, 240
RNG = np.random.default_rng(0)
PRIOR = RNG.uniform(0.1, 0.5, CAUSES).astype(np.float32)
STRENGTH = (RNG.gamma(1.0, 1.0, (CAUSES, FINDINGS)) * (RNG.random((CAUSES, FINDINGS)) < 0.4)).astype(np.float32)
LEAK = 0.05
ALL = np.array(list(itertools.product(range(2), repeat=CAUSES)))


def noisy_or(finding):
    with numpyro.plate("patient", finding.shape[0]):
        cause = numpyro.sample("cause", dist.Bernoulli(PRIOR).to_event(1))
        silent = jnp.exp(-LEAK - cause @ STRENGTH)
        numpyro.sample("finding", dist.Bernoulli(1.0 - silent).to_event(1), obs=finding)


def patients(count, seed):
    rng = np.random.default_rng(seed)
    cause = rng.random((count, CAUSES)) < PRIOR
    return {"finding": (rng.random((count, FINDINGS)) < 1 - np.exp(-LEAK - cause @ STRENGTH)).astype(np.int32)}


def log_joint(finding):
    """log p(finding, cause) (units, 256), in float64."""
    on = -np.expm1(-LEAK - ALL @ STRENGTH.astype(np.float64))
    prior = ALL @ np.log(PRIOR) + (1 - ALL) @ np.log1p(-PRIOR.astype(np.float64))
    return finding @ np.log(on).T + (1 - finding) @ np.log1p(-on).T + prior


def best_factorised(table, starts=20, sweeps=60):
    """The best bound (units,) of a q of independent elements, by coordinate ascent from several starts."""
    rng, best = np.random.default_rng(0), np.full(len(table), -np.inf)
    for _ in range(starts):
        q = rng.uniform(0.05, 0.95, (len(table), CAUSES))
        for _ in range(sweeps):
            for j in range(CAUSES):
                others = np.delete(np.arange(CAUSES), j)
                weight = np.prod(np.where(ALL[:, others], q[:, None, others], 1 - q[:, None, others]), axis=2)
                logit = np.sum(weight * table * np.where(ALL[:, j], 1.0, -1.0), axis=1)
                q[:, j] = np.clip(1 / (1 + np.exp(-logit)), 1e-9, 1 - 1e-9)
        best = np.maximum(best, bound_of(table, q))
    return best


def bound_of(table, q):
    share = np.prod(np.where(ALL, q[:, None], 1 - q[:, None]), axis=2)
    return np.sum(share * (table - np.log(np.maximum(share, 1e-300))), axis=1)


def probabilities(posterior, data):
    """q(cause = 1) (units, causes)."""
    contexts = jnp.asarray(posterior.encode(data))
    return np.exp(jax.vmap(lambda e: posterior.guide.classifier.log_probs((e,))[:, 1])(contexts), dtype=np.float64)


@pytest.fixture(scope="module")
def plan():
    return am.amortize(noisy_or, patients(UNITS, seed=0), plate="patient", classifier=am.factorised())


@pytest.mark.parametrize("objective", [None, pytest.param(am.IWELBO(8), marks=pytest.mark.slow)], ids=["elbo", "vimco"])
def test_the_bound_is_that_of_the_best_factorised_q(plan, objective):
    data = patients(UNITS, seed=0)
    posterior = am.fit(plan, data, key=jax.random.key(0), objective=objective, num_steps=1500)
    table = log_joint(data["finding"])
    evidence, best = np.logaddexp.reduce(table, axis=1), best_factorised(table)
    found = bound_of(table, probabilities(posterior, data))
    print(
        f"evidence {evidence.mean():.4f}, best factorised {best.mean():.4f}, reached {found.mean():.4f}; "
        f"recorded {posterior.record.elbo_per_unit[-1]:.4f}"
    )
    if objective is None:
        assert best.mean() - found.mean() <= 0.02
    # VIMCO asks for some good draws: its own bound lies between that of q and the evidence
    assert found.mean() - 0.02 <= posterior.record.elbo_per_unit[-1] <= evidence.mean() + 0.02


@pytest.fixture(scope="module")
def posterior(plan):
    return am.fit(plan, patients(UNITS, seed=0), key=jax.random.key(0), num_steps=300)


def test_densities_draws_and_weights_are_of_one_q(posterior, tmp_path):
    data, count = patients(6, seed=1), 4000
    every = np.broadcast_to(ALL[:, None], (256, 6, CAUSES))
    values = _dataset(every)
    log_q = np.asarray(posterior.log_prob(values, data).unit, np.float64)
    np.testing.assert_allclose(np.exp(log_q).sum(axis=0), 1.0, atol=1e-4)
    draws = posterior.sample(data, num_samples=count, key=jax.random.key(1))
    assert draws["cause"].dims == ("sample", "patient", "cause_dim_0")
    assert draws["cause"].dtype == np.int32
    q = probabilities(posterior, data)
    assert np.all(np.abs(draws["cause"].values.mean(axis=0) - q) <= 5 * np.sqrt(q * (1 - q) / count) + 1e-3)

    report = posterior.check(data, key=jax.random.key(2), num_samples=2000, checks=WEIGHTS)
    table = log_joint(data["finding"])
    np.testing.assert_allclose(report.units["log_evidence"], np.logaddexp.reduce(table, axis=1), atol=0.1)
    np.testing.assert_allclose(report.units["elbo"], bound_of(table, q), atol=0.1)

    predicted = posterior.predict(data, num_samples=200, key=jax.random.key(3))
    assert predicted["finding"].shape == (200, 6, FINDINGS)
    posterior.save(tmp_path / "causes.amx")
    again = am.load(tmp_path / "causes.amx", noisy_or).sample(data, num_samples=20, key=jax.random.key(1))
    np.testing.assert_array_equal(again["cause"].values, draws["cause"].values[:20])


def _dataset(values):
    import xarray

    return xarray.Dataset({"cause": (("sample", "patient", "cause_dim_0"), values)})


def test_the_plan_shows_what_is_drawn(plan):
    line = next(line for line in str(plan).splitlines() if "cause" in line and "finding" not in line)
    assert "8 elements" in line
    assert "factorised()" in line


def many(x, y=None, size=20):
    """Too many to list: a vector of three values each, half of it known for some units, and a number beside it."""
    with numpyro.plate("unit", x.shape[0]):
        y = numpyro.sample("y", dist.Categorical(jnp.ones((size, 3)) / 3).to_event(1), obs=y)
        z = numpyro.sample("z", dist.Normal(y.mean(-1), 0.3))
        numpyro.sample("x", dist.Normal(z[..., None] + 0.5 * y, 0.7).to_event(1), obs=x)


def some_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, (10, 20))
    x = (y.mean(-1, keepdims=True) + 0.5 * y + 0.7 * rng.normal(size=y.shape)).astype(np.float32)
    missing = np.ones((10, 20), bool)
    missing[:5, :10] = False
    return {"x": x, "y": np.ma.array(y, mask=missing)}, y, missing


def test_labels_of_some_elements_are_kept_and_taught():
    data, y, missing = some_labels()
    with pytest.raises(am.ModelError, match=r"have 3.5e\+09 assignments .*classifier=am.factorised\(\)"):
        am.amortize(many, data, plate="unit")
    plan = am.amortize(many, data, plate="unit", classifier=am.factorised())
    assert plan.inputs.features[0].name == "x"
    assert len(plan.inputs.features) == 1
    fitted = am.fit(plan, data, key=jax.random.key(0), num_steps=20, objective=am.ELBO(classifier_weight=1.0))
    draws = fitted.sample(data, num_samples=50, key=jax.random.key(1))
    np.testing.assert_array_equal(draws["y"].values[:, ~missing], np.broadcast_to(y[~missing], (50, 50)))
    assert draws["y"].values[:, missing].std() > 0
    density = fitted.log_prob(draws, data).unit
    assert np.all(np.isfinite(density))
    wrong = draws.assign(y=(draws["y"].dims, np.where(missing, draws["y"], (draws["y"] + 1) % 3)))
    assert np.all(np.isneginf(fitted.log_prob(wrong, data).unit[:, :5]))

    batch = jax.tree.map(jnp.asarray, to_batch(conform(as_units(data, many, "unit"), fitted.joint)))
    contexts = fitted.guide.encode(batch)
    told = label_log_prob(fitted.guide, fitted.joint, batch, contexts, jnp.zeros(0))
    each = jax.vmap(lambda e: fitted.guide.classifier.log_probs((e,)))(*contexts)
    own = np.take_along_axis(np.asarray(each), y[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(told, np.where(missing, 0.0, own).sum(axis=1), rtol=1e-4)
    unseen = fitted.sample({"x": data["x"]}, num_samples=5, key=jax.random.key(2))  # labels may be left out
    assert unseen["y"].shape == (5, 10, 20)


def test_what_can_not_be_drawn_or_learned_is_refused(plan):
    data = patients(UNITS, seed=0)
    with pytest.raises(am.FitError, match="am.ELBO: num_choices=1: the score function takes the other draws"):
        am.ELBO(num_choices=1)
    with pytest.raises(am.FitError, match="am.IWELBO: num_particles=1: .*give 2 or more"):
        am.fit(plan, data, key=jax.random.key(0), objective=am.IWELBO(1))
    with pytest.raises(am.GuideError, match="hold no q of its choice"):
        am.amortize(noisy_or, data, plate="patient", classifier=am.factorised(), encoder=am.free())
    with pytest.raises(am.GuideError, match="no local latents but discrete ones, which are drawn"):
        am.amortize(noisy_or, data, plate="patient", classifier=am.factorised(), family=am.full())
    labelled, *_ = some_labels()
    drawn = am.amortize(many, labelled, plate="unit", classifier=am.factorised())
    with pytest.raises(am.FitError, match="straight_through.*site 'y' takes 3 values"):
        am.fit(drawn, labelled, key=jax.random.key(0), objective=am.ELBO(straight_through=0.5))
    with pytest.raises(am.ModelError, match="kl_weight or free_bits weighs log p"):
        am.fit(plan, data, key=jax.random.key(0), objective=am.ELBO(free_bits=1.0))

    def normal(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(am.GuideError, match="factorised.. has nothing to do: model 'normal' has no discrete latent"):
        am.amortize(normal, {"x": np.ones(5, np.float32)}, plate="unit", classifier=am.factorised())
    with pytest.raises(am.FitError, match="straight_through=.*q draws no discrete site"):
        am.fit(
            am.amortize(normal, {"x": np.ones(5, np.float32)}, plate="unit"),
            {"x": np.ones(5, np.float32)},
            key=jax.random.key(0),
            objective=am.ELBO(straight_through=0.5),
        )


def test_straight_through_needs_arithmetic():
    def indexed(x):
        with numpyro.plate("unit", x.shape[0]):
            h = numpyro.sample("h", dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1))
            numpyro.sample("x", dist.Normal(jnp.array([0.0, 1.0])[h].sum(-1), 1.0), obs=x)

    data = {"x": np.ones(5, np.float32)}
    plan = am.amortize(indexed, data, plate="unit", classifier=am.factorised())
    with pytest.raises(am.FitError, match=r"can't take \['h'\] as numbers .*raised TypeError: .*arithmetic"):
        am.fit(plan, data, key=jax.random.key(0), objective=am.ELBO(straight_through=0.5))


def test_straight_through_is_labelled_where_the_posterior_is_shown(plan):
    data = patients(UNITS, seed=0)
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=5, objective=am.ELBO(straight_through=0.5))
    words = "BIASED gradient: straight-through Gumbel-softmax at temperature 0.5"
    assert posterior.record.bias.startswith("straight-through")
    assert words in str(posterior)
    assert words in str(posterior.check(data, key=jax.random.key(1), num_samples=100, checks=WEIGHTS).to_html())
