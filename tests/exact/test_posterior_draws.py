"""Are the draws those of the guide? Whatever is asked beside them, with the Jacobian, and after a save and a load."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import normals_of, shared_normal

import amortax as am
from amortax import answer
from amortax._types import Batch
from amortax.chunks import UNIT_BUCKETS
from amortax.intake import conform

TRACES = {"count": 0}


def model(x):
    TRACES["count"] += 1
    level = numpyro.sample("level", dist.Normal(0, 2))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("unit", x.shape[0]):
        rate = numpyro.sample("rate", dist.LogNormal(level, spread))
        numpyro.sample("x", dist.Normal(jnp.log1p(rate), 0.3), obs=x)


def some(count, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": np.log1p(np.exp(0.5 + 0.6 * rng.standard_normal(count))).astype(np.float32)}


@pytest.fixture(scope="module")
def posterior():
    data = some(200)
    return am.fit(am.amortize(model, data, plate="unit"), data, key=jax.random.key(0), num_steps=300)


def test_draws_do_not_depend_on_how_many_are_asked_for(posterior):
    data, key = some(300, seed=1), jax.random.key(1)
    first = {name: x[:3] for name, x in data.items()}
    many = posterior.sample(data, num_samples=50, key=key)
    few = posterior.sample(first, num_samples=50, key=key)
    short = posterior.sample(first, num_samples=7, key=key)
    for name in ("rate", "level", "spread"):
        units = slice(None) if "unit" in many[name].dims else None
        whole = many[name].values[:, :3] if units else many[name].values
        np.testing.assert_allclose(few[name].values, whole, rtol=1e-5)
        np.testing.assert_allclose(short[name].values, whole[:7], rtol=1e-5)
    other = posterior.sample(first, num_samples=7, key=jax.random.key(2))
    assert not np.any(other["rate"].values == short["rate"].values)


def test_draws_have_the_moments_of_the_guide(posterior):
    data, count = some(5, seed=2), 20_000
    draws = posterior.sample(data, num_samples=count, key=jax.random.key(3))
    mean, covariance = shared_normal(posterior)
    names = [site.name for site in posterior.plan.structure.of("global")]
    free = {"level": draws["level"].values, "spread": np.log(draws["spread"].values)}
    for i, name in enumerate(names):
        value, sd = free[name].astype(np.float64), math.sqrt(covariance[i, i])
        assert abs(value.mean() - mean[i]) <= 5 * sd / math.sqrt(count)
        assert abs(value.std() / sd - 1) <= 5 / math.sqrt(2 * count)
    # The locals given one draw of the globals: their own moments, over keys, at v fixed.
    shared = jnp.asarray(mean, jnp.float32)
    means, covariances = normals_of(posterior, data, shared)
    guide, joint = posterior.guide, posterior.joint
    batch = Batch({"x": jnp.asarray(data["x"])}, {}, {})
    keys = jax.random.split(jax.random.key(4), count)
    size, contexts = len(data["x"]), guide.encode(batch)

    def draw(key):
        return guide.place_locals(guide.local_noise(key, joint, batch, size), 0, contexts, shared, batch, joint)[0]

    local = np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)[..., 0]
    sd = np.sqrt(covariances[:, 0, 0])
    assert np.all(np.abs(local.mean(axis=0) - means[:, 0]) <= 5 * sd / math.sqrt(count))
    assert np.all(np.abs(local.std(axis=0) / sd - 1) <= 5 / math.sqrt(2 * count))


def test_the_density_of_constrained_values_integrates_to_one(posterior):
    data = some(2, seed=3)
    at = np.exp(np.linspace(-8, 8, 4001))
    grid = jnp.asarray(np.stack([at, at], axis=1), jnp.float32)
    found = posterior.joint.structure
    assert {s.name for s in found.of("local")} == {"rate"}

    def log_q(rate):
        values = {"rate": rate, "level": jnp.asarray(0.4), "spread": jnp.asarray(0.7)}
        batch = Batch({"x": jnp.asarray(data["x"])}, {}, {})
        values = {name: value[None] for name, value in values.items()}
        return answer._log_prob(posterior.joint, posterior.guide, batch, values, local=("rate",)).unit[0]

    densities = np.exp(np.asarray(jax.jit(jax.vmap(log_q))(grid), np.float64))
    integral = np.trapezoid(densities, at, axis=0)
    print("integral of exp(log_prob) over the constrained rate:", integral.round(6))
    assert np.all(np.abs(integral - 1) <= 1e-3)
    values = {"rate": np.array([at[2000], at[2100]], np.float32), "level": np.float32(0.4), "spread": np.float32(0.7)}
    public = posterior.log_prob(values, data)
    expected = np.log([densities[2000, 0], densities[2100, 1]])
    np.testing.assert_allclose(public.unit, expected, rtol=1e-4, atol=1e-4)


def test_the_density_of_own_draws_is_that_of_sampling(posterior):
    data, key, count = some(4, seed=4), jax.random.key(5), 6
    draws = posterior.sample(data, num_samples=count, key=key)
    terms = posterior.log_prob(draws, data)
    guide, joint = posterior.guide, posterior.joint
    shared_key, unit_key = answer.split_keys(key)
    batch = Batch({"x": jnp.asarray(data["x"])}, {}, {})
    contexts = guide.encode(batch)
    for s in range(count):
        shared, log_shared = guide.sample_shared(jax.random.fold_in(shared_key, s))
        jacobian = math.log(float(draws["spread"].values[s]))
        assert float(terms.shared[s]) == pytest.approx(float(log_shared) - jacobian, abs=2e-3)
        for i in range(4):
            sample_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(unit_key, i), s))[0]
            unit, context = jax.tree.map(lambda x, i=i: x[i], (batch, contexts))
            local, log_q = guide.sample_local(sample_key, context, shared, unit, joint)
            assert math.log(draws["rate"].values[s, i]) == pytest.approx(float(local[0]), abs=1e-4)
            assert float(terms.unit[s, i]) == pytest.approx(float(log_q) - float(local[0]), abs=2e-3)


def test_a_loaded_posterior_draws_the_same_bits(posterior, tmp_path):
    data, key = some(5, seed=5), jax.random.key(6)
    posterior.save(tmp_path / "one.amx")
    again = am.load(tmp_path / "one.amx", model)
    first, second = (p.sample(data, num_samples=9, key=key) for p in (posterior, again))
    for name in first.data_vars:
        assert np.array_equal(first[name].values, second[name].values), name


def test_any_number_of_units_compiles_at_most_once_a_bucket(posterior):
    """The model's body runs only while something is traced. Reading the data is not counted here, sampling is."""

    def traces(units):
        found = conform(some(units, seed=units), posterior.joint)
        before = TRACES["count"]
        answer.sample(posterior.joint, posterior.guide, found, 11, jax.random.key(7))
        return TRACES["count"] - before

    first = [traces(n) for n in (3, 5, 17, 100, 1000)]
    more = [traces(n) for n in (2, 4, 6, 16, 33, 64, 99, 256, 777)]
    print(f"runs of the model's body: {first}, then {more}; buckets {UNIT_BUCKETS}")
    assert sum(count > 0 for count in first) <= len(UNIT_BUCKETS)
    assert first[-1] == 0  # 1000 units are four times the largest bucket, which 100 units have compiled
    assert sum(more) == 0


def test_a_second_fit_of_equal_shapes_traces_only_to_read():
    plan = am.amortize(model, some(60), plate="unit")
    counts = []
    for seed in (0, 1, 2):
        before = TRACES["count"]
        am.fit(plan, some(60, seed=seed), key=jax.random.key(seed), num_steps=20)
        counts.append(TRACES["count"] - before)
    print("runs of the model's body in three fits of equal shapes:", counts)
    assert counts[1] == counts[2]
    assert counts[1] <= 5
