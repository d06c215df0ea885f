"""Are whole data sets (`plate=None`) what the user's program says, one call each, and is their posterior exact?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl
from numpyro.infer.util import log_density
from scipy.stats import norm

import amortax as am
from amortax._errors import DataError, ModelError
from amortax.intake import conform, to_batch
from amortax.joint.joint import Joint
from amortax.joint.structure import Structure

RNG = np.random.default_rng(0)
LINEAR = LinearGaussian(RNG.normal(size=(4, 2)), np.array([0.5, 0.0, -0.5, 1.0]), 0.7)
WEIGHT, MEAN = jnp.asarray(LINEAR.weight, jnp.float32), jnp.asarray(LINEAR.mean, jnp.float32)


def linear(x):
    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0))  # a batch in no plate: an event
    numpyro.sample("x", dist.Normal(WEIGHT @ z + MEAN, LINEAR.noise), obs=x)


def clustered(x, dose, k=None):
    """Deterministic first; a scalar, a vector, a batch that `obs` alone gives, a set, and labels in it."""
    numpyro.deterministic("constant", jnp.arange(3.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 2.0).expand([2]))
    assert (rate.shape, level.shape, dose.shape) == ((), (2,), (3,))
    numpyro.sample("dose", dist.Normal(rate, 1.0), obs=dose)
    with numpyro.plate("element", x.shape[0]):
        label = numpyro.sample("label", dist.Categorical(jnp.array([0.3, 0.7])), obs=k)
        numpyro.sample("x", dist.Normal(level[label], rate), obs=x)


def data_sets(count=6):
    rng = np.random.default_rng(1)
    sets = []
    for _ in range(count):
        length = rng.integers(2, 5)
        label = [None if rng.random() < 0.4 else int(rng.integers(2)) for _ in range(length)]
        sets.append({"x": rng.normal(size=length), "dose": rng.normal(size=3), "k": label})
    sets[0]["x"][1] = sets[1]["dose"][2] = np.nan
    return sets


def by_hand(data, values):
    """NumPyro's own log density of one data set, gaps left out and labels that are missing summed over."""
    rate, level = values
    total = dist.Gamma(2.0, 1.0).log_prob(rate) + dist.Normal(0.0, 2.0).log_prob(level).sum()
    seen = ~np.isnan(data["dose"])
    total += dist.Normal(rate, 1.0).log_prob(data["dose"][seen]).sum()
    for x, label in zip(data["x"], data["k"], strict=True):
        each = jnp.log(jnp.array([0.3, 0.7])) + (0.0 if np.isnan(x) else dist.Normal(level, rate).log_prob(x))
        total += jax.nn.logsumexp(each) if label is None else each[label]
    return float(total) + float(jnp.log(rate))  # and the Jacobian of exp


def test_density_is_that_of_each_data_set_alone():
    sets = data_sets()
    plan = am.amortize(clustered, sets, plate=None)
    joint = Joint(plan.model, plan.structure, {})
    batch = jax.tree.map(jnp.asarray, to_batch(conform(am.units(sets), joint)))
    local = jnp.asarray(RNG.normal(size=(len(sets), 3)), jnp.float32)
    terms = eqx.filter_jit(joint.log_prob)(local, jnp.zeros(0), batch)
    exact = [by_hand(data, (jnp.exp(u[0]), u[1:])) for data, u in zip(sets, local, strict=True)]
    np.testing.assert_allclose(terms.unit, exact, rtol=2e-5)
    assert float(terms.shared) == 0.0
    assert [p.exchangeable for p in plan.structure.plates] == [True]
    assert Structure.from_json(plan.structure.to_json()) == plan.structure


def test_density_is_numpyros():
    _, x = LINEAR.simulate(RNG, 3)
    plan = am.amortize(linear, {"x": x}, plate=None)
    z = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    terms = Joint(plan.model, plan.structure, {}).log_prob(z, jnp.zeros(0), to_batch(am.units({"x": jnp.asarray(x)})))
    exact = [log_density(linear, (), {"x": d}, {"z": u})[0] for d, u in zip(x, z, strict=True)]
    np.testing.assert_allclose(terms.unit, exact, rtol=1e-6)


def kl(posterior, x):
    """Mean KL in nats of the draws' normals to the exact posteriors; its own noise is d(d+3)/4 per draw."""
    draws = posterior.sample({"x": x}, num_samples=4000, key=jax.random.key(5)).z.transpose("dataset", "sample", ...)
    means, covariance = LINEAR.posterior(x)
    each = np.stack([np.cov(unit, rowvar=False) for unit in draws.values])
    return float(np.mean(normal_kl(draws.mean("sample").values, each, means, covariance)))


@pytest.fixture(scope="module")
def fitted():
    """By the likelihood, and by simulations in the place of these data sets."""
    _, x = LINEAR.simulate(np.random.default_rng(2), 2000)
    plan = am.amortize(linear, {"x": x}, plate=None)
    run = {"key": jax.random.key(0), "num_steps": 1000, "batch_size": 256}
    return x, {o.__class__.__name__: am.fit(plan, {"x": x}, objective=o, **run) for o in (am.ELBO(), am.ForwardKL())}


@pytest.mark.parametrize("objective", ["ELBO", "ForwardKL"])
def test_posterior_is_exact(fitted, objective):
    x, posteriors = fitted
    _, new = LINEAR.simulate(np.random.default_rng(3), 200)
    assert kl(posteriors[objective], new) < 0.02
    assert posteriors[objective].sample({"x": new[:2]}, num_samples=3, key=jax.random.key(0)).z.dims == (
        "sample",
        "dataset",
        "z_dim_0",
    )


def test_saved_and_loaded_it_answers_the_same(fitted, tmp_path):
    x, posteriors = fitted
    posteriors["ELBO"].save(tmp_path / "w.amx")
    again = am.load(tmp_path / "w.amx", model=linear)
    ask = {"num_samples": 5, "key": jax.random.key(1)}
    assert again.sample({"x": x[:3]}, **ask).identical(posteriors["ELBO"].sample({"x": x[:3]}, **ask))
    assert again.check({"x": x[:20]}, key=jax.random.key(2), num_samples=200).verdict == "PASS"


def test_one_data_set_is_plain_variational_inference():
    _, x = LINEAR.simulate(np.random.default_rng(4), 1)
    one = am.units([{"x": x[0]}])
    posterior = am.fit(am.amortize(linear, one, plate=None), one, key=jax.random.key(0), num_steps=600)
    assert kl(posterior, x) < 0.02


def rounded(x):
    numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(0.0, 3.0).expand([4]), obs=x)


def test_simulations_in_the_place_of_whole_numbers_are_rounded():
    """To the nearest, as those were: cut off, twice as many were zero."""
    plan = am.amortize(rounded, {"x": RNG.integers(-3, 4, size=(5, 4))}, plate=None)
    found = am.simulate(plan, 1000, key=jax.random.key(0))[1].arrays["x"]
    share = 2 * norm.cdf(0.5 / 3.0) - 1
    assert abs(np.mean(found == 0) - share) < 5 * np.sqrt(share * (1 - share) / found.size)


def named_alike(x):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("dataset", x.shape[0]):
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_a_plate_that_is_called_as_data_sets_are_is_refused():
    with pytest.raises(ModelError, match="model 'named_alike' has a site or plate 'dataset'.*rename"):
        am.amortize(named_alike, {"x": np.ones((5, 4))}, plate=None)


def test_errors_name_the_data_set():
    _, x = LINEAR.simulate(RNG, 4)
    plan = am.amortize(linear, {"x": x}, plate=None)
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="dataset '2'"):
        conform({"x": x}, Joint(plan.model, plan.structure, {}))
    with pytest.raises(ModelError, match="model 'linear' raised .*shape"):
        am.amortize(linear, {"x": x[:, :3]}, plate=None)
    with pytest.raises(DataError, match="per dataset"):
        conform({"x": x[:, :3]}, Joint(plan.model, plan.structure, {}))
