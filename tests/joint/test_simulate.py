"""Simulation is the model's own: its moments, shapes, masks and covariates; and what can't be simulated says why."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from amortax import amortize, units
from amortax.intake import to_batch
from amortax.joint.joint import Joint
from amortax.joint.read import read
from amortax.train.initialise import initialise

NUM = 4000
FLAT = np.linspace(-1.0, 1.0, 4).astype(np.float32)
TABLE = np.linspace(0.1, 1.0, 12).reshape(4, 3).astype(np.float32)


def joint_of(model, data):
    found = units(data, name="u")
    batch = to_batch(found)
    return Joint(model, read(model, batch, found.axes, "u"), {}), batch


def regression(x, y):
    b = numpyro.sample("b", dist.Normal(2.0, 0.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z + b * x, 1.0 + tau), obs=y)


REGRESSION, BATCH = joint_of(regression, {"x": TABLE, "y": np.zeros_like(TABLE)})


def one(batch, index):
    return jax.tree.map(lambda x: jnp.asarray(x[index]), batch)


@eqx.filter_jit
def simulate(joint, keys, shared, unit):
    return jax.vmap(lambda key: joint.simulate(key, shared, unit))(keys)


def within_five_errors(draws, expected):
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(np.mean(draws, axis=0) - expected), 5 * error)


@pytest.mark.parametrize("index", [0, 3])
def test_responses_have_the_models_moments_at_the_units_covariates(index):
    keys = jax.random.split(jax.random.key(3), NUM)
    log_tau = -0.5
    local, drawn = simulate(REGRESSION, keys, jnp.array([1.5, log_tau]), one(BATCH, index))
    assert local.shape == (NUM, 1)
    assert drawn["y"].shape == (NUM, 3)
    assert set(drawn) == {"y"}
    within_five_errors(local[:, 0], 0.0)
    within_five_errors(local[:, 0] ** 2, 0.25)
    mean_z, var_z = np.exp(0.125), (np.exp(0.25) - 1) * np.exp(0.25)
    within_five_errors(drawn["y"], mean_z + 1.5 * TABLE[index])
    centred = drawn["y"] - (mean_z + 1.5 * TABLE[index])
    within_five_errors(centred**2, var_z + (1 + np.exp(log_tau)) ** 2)


def test_globals_are_drawn_from_their_prior_in_unconstrained_space():
    keys = jax.random.split(jax.random.key(4), NUM)
    shared = jax.jit(jax.vmap(REGRESSION.simulate_shared, (0, None)))(keys, one(BATCH, 0))
    assert shared.shape == (NUM, 2)
    within_five_errors(shared[:, 0], 2.0)
    within_five_errors((shared[:, 0] - 2.0) ** 2, 0.25)
    within_five_errors(np.exp(shared[:, 1]), np.sqrt(2 / np.pi))


def test_the_same_key_is_the_same_draw_and_another_key_another():
    unit, shared = one(BATCH, 1), jnp.array([1.0, 0.0])
    first, again = (REGRESSION.simulate(jax.random.key(5), shared, unit) for _ in range(2))
    other = REGRESSION.simulate(jax.random.key(6), shared, unit)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1]["y"], again[1]["y"])
    assert not np.any(np.asarray(first[1]["y"]) == np.asarray(other[1]["y"]))
    assert len(np.unique(first[1]["y"])) == 3


def test_predictions_are_drawn_at_the_given_latents():
    keys = jax.random.split(jax.random.key(7), NUM)
    local, shared = jnp.array([0.3]), jnp.array([1.5, -9.0])
    drawn = jax.jit(jax.vmap(REGRESSION.predict, (0, None, None, None)))(keys, local, shared, one(BATCH, 2))
    assert {name: x.shape for name, x in drawn.items()} == {"y": (NUM, 3)}
    within_five_errors(drawn["y"], np.exp(0.3) + 1.5 * TABLE[2])


def test_ragged_counts_keep_type_shape_and_lengths():
    def model(x, y):
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 0.1))
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.sample("y", dist.Poisson(jnp.exp(z + x)), obs=y)

    joint, batch = joint_of(model, {"x": [TABLE[0], TABLE[1, :1]], "y": [np.arange(3), np.arange(1)]})
    _, drawn = joint.simulate(jax.random.key(8), jnp.zeros(0), one(batch, 1))
    assert (drawn["y"].shape, drawn["y"].dtype) == ((3,), jnp.int32)


def test_deterministic_sites_come_out_by_unit_wherever_they_are_written():
    def model(x, y):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("u", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.deterministic("pair", jnp.concatenate([z, -z], axis=1)[:, None, :])
            numpyro.deterministic("two_b", 2 * b)
            with numpyro.plate("e", y.shape[1], dim=-1):
                numpyro.deterministic("mean", z + b * x)
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        numpyro.deterministic("three_z", 3 * z)
        numpyro.deterministic("flat_z", z[:, 0])
        numpyro.deterministic("four_b", jnp.stack([b, 3 * b]))

    joint, batch = joint_of(model, {"x": TABLE, "y": TABLE})
    values = joint.constrain(jnp.array([0.5]), jnp.array([2.0]), one(batch, 1))
    expected = {
        "pair": [0.5, -0.5],
        "two_b": 4.0,
        "mean": 0.5 + 2.0 * TABLE[1],
        "three_z": 1.5,
        "flat_z": 0.5,
        "four_b": [2.0, 6.0],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-6)
    sites = {s.name: s for s in joint.structure.of("deterministic")}
    assert {n for n, s in sites.items() if s.per_unit} == {"pair", "mean", "three_z", "flat_z"}
    assert {n: s.dims for n, s in sites.items()} == {
        "pair": (None,), "two_b": (), "mean": ("e",), "three_z": (), "flat_z": (), "four_b": (None,)
    }  # fmt: skip


def flat(body):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("u", y.shape[0]):
            body(numpyro.sample("z", dist.Normal(mu, 1.0)), y)

    return model


def with_factor(z, y):
    numpyro.factor("pull", -z)
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def improper(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu[0], 1.0))
        with_factor(z, y)


def lagged(z, y):
    numpyro.sample("y", dist.Normal(z + 0.5 * y, 1.0), obs=y)


def derived(z, y):
    numpyro.sample("log_y", dist.Normal(z, 1.0), obs=jnp.log(y))


def constant(z, y):
    numpyro.sample("anchor", dist.Normal(z, 1.0), obs=0.0)
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def own_total(y):
    with numpyro.plate("u", y.shape[0]):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("y", dist.Multinomial(y.sum(axis=-1), p), obs=y)


COUNTS = np.arange(1, 13).reshape(4, 3)
REASONS = [
    (flat(lambda z, y: numpyro.sample("y", dist.Normal(z, 1.0), obs=y)), FLAT, ""),
    (flat(with_factor), FLAT, "factor 'pull' has no sampler"),
    (improper, FLAT, "site 'mu' has an improper prior"),
    (flat(lagged), FLAT, "observed argument 'y' changes the distribution of site 'y'"),
    (flat(derived), np.exp(FLAT), "site 'log_y' observes a function of the data, not an argument itself"),
    (flat(constant), FLAT, "site 'anchor' observes a constant, which ties its parameters together"),
    (own_total, COUNTS, "observed argument 'y' changes the distribution of site 'y'"),
]


@pytest.mark.parametrize(("model", "data", "reason"), REASONS)
def test_what_cannot_be_simulated_says_why(model, data, reason):
    assert joint_of(model, {"y": data})[0].structure.cannot_simulate == reason


def test_improper_globals_work_and_leave_the_whitening_neutral():
    plan = amortize(improper, {"y": FLAT}, plate="u")
    assert "the model can't be simulated: site 'mu' has an improper prior" in str(plan)
    joint, guide = initialise(plan, to_batch(units({"y": FLAT})), jax.random.key(0))
    for block in (guide.shared, guide.local):
        np.testing.assert_array_equal(block.whitening.value["center"], 0.0)
        np.testing.assert_array_equal(block.whitening.value["scale"], 1.0)
    unit = one(to_batch(units({"y": FLAT})), 0)
    shared = jnp.array([0.3, -0.2])
    values = joint.constrain(jnp.zeros(1), shared, unit)
    np.testing.assert_allclose(values["mu"], [0.3, 0.3 + np.exp(-0.2)], rtol=1e-6)
    np.testing.assert_allclose(joint.unit_log_prob(jnp.zeros(1), shared, unit).shared, -0.2, rtol=1e-6)
