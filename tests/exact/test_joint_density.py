"""The joint's density is the model's: closed forms by unit, and NumPyro's own density of the whole model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import constrain_fn, log_density

from amortax import units
from amortax.intake import as_units, to_batch
from amortax.joint.joint import Joint
from amortax.joint.probe import initial_params
from amortax.joint.read import read

N, INNER = 3, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, INNER)).astype(np.float32)
Y = RNG.normal(size=(N, INNER)).astype(np.float32)
COUNTS = RNG.poisson(3.0, size=(N, INNER))
DECODER = eqx.nn.MLP(2, INNER, 3, 1, jax.nn.tanh, key=jax.random.key(7))


def joint_of(model, data, plate="u"):
    found = as_units(data, model, plate)
    batch = to_batch(found)
    structure = read(model, batch, found.axes, plate)
    return Joint(model, structure, initial_params(model, structure, batch, jax.random.key(0))), batch


@eqx.filter_jit
def log_prob(joint, local, shared, batch):
    return joint.log_prob(local, shared, batch)


def hierarchy(x, y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.5))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.5, tau))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z * x, 0.7), obs=y)


def nested_latents(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", y.shape[0], dim=-2):
        s = numpyro.sample("s", dist.Gamma(2.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            w = numpyro.sample("w", dist.LogNormal(mu, 1.0))
            numpyro.sample("y", dist.Normal(w, s), obs=y)


def units_last(x, y):  # arrays (elements, units)
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", x.shape[1], dim=-1):
        z = numpyro.sample("z", dist.Exponential(1.0))
        with numpyro.plate("e", x.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(z + b * x, 0.7), obs=y)


def events(y):
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.HalfNormal(jnp.array([1.0, 2.0])).to_event(1))
        numpyro.sample("y", dist.Normal(z, 0.7).to_event(1), obs=y)


def multivariate(y):
    root = numpyro.sample("root", dist.Normal(0.0, 1.0))
    cov = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), cov))
        numpyro.sample("y", dist.MultivariateNormal(z + root, cov), obs=y)


def many_globals(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([100]))
    b = numpyro.sample("b", dist.Exponential(1.0).expand([2, 3]).to_event(2))
    with numpyro.plate("g", 4):
        c = numpyro.sample("c", dist.HalfNormal(1.0))
    d = numpyro.sample("d", dist.Normal(0.0, 2.0), sample_shape=(3,))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(a.sum() / 10 + b.sum() + c.sum() + d.sum(), 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled_and_masked(x, y):
    with handlers.scale(scale=0.3):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("u", y.shape[0], dim=-2):
        with handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.LogNormal(0.0, tau))
        with numpyro.plate("e", y.shape[1], dim=-1):
            with handlers.mask(mask=x > 0):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            numpyro.sample("x", dist.Normal(z, 1.0).mask(jnp.array([True, False])), obs=x)


def learned(y):
    net = eqx_module("net", DECODER)
    s = numpyro.param("s", 0.8, constraint=constraints.positive)
    shift = numpyro.param("shift", jnp.array([0.1, 0.2]))
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(jax.vmap(net)(z) + shift, s).to_event(1), obs=y)


def factors(y):
    v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    numpyro.factor("outside", -(v**4))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(v, 1.0))
        numpyro.factor("unit", jnp.sin(z))
        numpyro.factor("broadcast", v)
        numpyro.deterministic("twice", 2 * z)
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.factor("element", -jnp.abs(y - z))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def pseudo_observation(y):
    v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    numpyro.sample("outside", dist.Normal(v, 0.1), obs=0.3)
    with numpyro.plate("u", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(v, 1.0).expand([2]).to_event(1))
        numpyro.sample("sum", dist.Normal(z.sum(-1), 0.01), obs=0.0)
        numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def bounded_by_draws(y):
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    width = numpyro.sample("width", dist.Uniform(0.5, 3.0))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Uniform(low, low + width))
        w = numpyro.sample("w", dist.Uniform(z, z + 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def counts(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        with numpyro.plate("e", x.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(z * jnp.exp(b * x)), obs=y)


def no_locals(x, y):
    b = numpyro.sample("b", dist.Cauchy(0.0, 1.0))
    with numpyro.plate("u", y.shape[0], dim=-2), numpyro.plate("e", y.shape[1], dim=-1):
        numpyro.sample("y", dist.StudentT(4.0, b * x, 1.0), obs=y)


MODELS = [
    (hierarchy, {"x": X, "y": Y}),
    (nested_latents, {"y": Y}),
    (units_last, {"x": X.T, "y": Y.T}),
    (events, {"y": Y}),
    (multivariate, {"y": Y}),
    (many_globals, {"y": Y}),
    (scaled_and_masked, {"x": X, "y": Y}),
    (learned, {"y": Y}),
    (factors, {"y": Y}),
    (pseudo_observation, {"y": Y}),
    (bounded_by_draws, {"y": Y}),
    (counts, {"x": X, "y": COUNTS}),
    (no_locals, {"x": X, "y": Y}),
]


def whole_density(model, data, free, params):
    """NumPyro's density of the whole model at unconstrained values, each Jacobian from autodiff."""
    return float(_whole_density(model, {n: jnp.asarray(x) for n, x in data.items()}, free, params))


@eqx.filter_jit
def _whole_density(model, arrays, free, params):
    placed = handlers.substitute(model, data=params)
    values = constrain_fn(placed, (), arrays, free)
    density, trace = log_density(placed, (), arrays, values)
    for name, u in free.items():
        transform = biject_to(trace[name]["fn"].support)
        jacobian = jax.jacobian(lambda flat, t=transform, u=u: jnp.ravel(t(flat.reshape(u.shape))))(jnp.ravel(u))
        density += jnp.linalg.slogdet(jacobian)[1]
    return density


@pytest.mark.parametrize(("model", "data"), MODELS, ids=[model.__name__ for model, _ in MODELS])
def test_units_and_shared_add_up_to_the_density_of_the_whole_model(model, data):
    joint, batch = joint_of(model, data)
    joint = Joint(joint.model, joint.structure, jax.tree.map(lambda x: x + 0.3, joint.params))
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(**{n: jnp.asarray(x) for n, x in data.items()})
    rng = np.random.default_rng(1)
    free, local, shared = {}, [], []
    for site in joint.structure.of("local", "global"):
        shape = biject_to(trace[site.name]["fn"].support).inverse_shape(np.shape(trace[site.name]["value"]))
        free[site.name] = jnp.asarray(rng.normal(size=shape), jnp.float32)
        if site.per_unit:
            axis = len(shape) - site.event_dim + site.unit_dim
            local.append(np.moveaxis(free[site.name], axis, 0).reshape(N, -1))
        else:
            shared.append(np.ravel(free[site.name]))
    local = np.concatenate(local, axis=1) if local else np.zeros((N, 0), np.float32)
    shared = np.concatenate(shared) if shared else np.zeros(0, np.float32)
    assert local.shape == (N, joint.local_size)
    assert shared.shape == (joint.shared_size,)
    terms = log_prob(joint, local, shared, batch)
    params = {n: jnp.exp(v) if n == "s" else v for n, v in joint.params.items()}
    np.testing.assert_allclose(terms.total(), whole_density(model, data, free, params), rtol=2e-5)


def test_one_unit_is_its_closed_form():
    joint, batch = joint_of(hierarchy, {"x": X, "y": Y})
    u, log_tau = 0.4, -0.2
    tau = np.exp(log_tau)
    for i in range(N):
        one = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), batch)
        terms = joint.unit_log_prob(jnp.array([u]), jnp.array([log_tau]), one)
        expected = st.norm(0.5, tau).logpdf(u) + st.norm(u * X[i], 0.7).logpdf(Y[i]).sum()
        np.testing.assert_allclose(terms.unit, expected, rtol=1e-5)
        np.testing.assert_allclose(terms.shared, st.halfnorm(scale=1.5).logpdf(tau) + log_tau, rtol=1e-5)


def test_a_batch_is_the_loop_over_its_units():
    joint, batch = joint_of(counts, {"x": X, "y": COUNTS})
    log_rate, b = RNG.normal(size=(N, 1)), 0.3
    terms = log_prob(joint, jnp.asarray(log_rate), jnp.array([b]), batch)
    rate = np.exp(log_rate)
    likelihood = st.poisson(rate * np.exp(b * X)).logpmf(COUNTS).sum(axis=1)
    expected = (st.gamma(2.0).logpdf(rate) + log_rate)[:, 0] + likelihood
    np.testing.assert_allclose(terms.unit, expected, rtol=1e-5)
    np.testing.assert_allclose(terms.shared, st.norm.logpdf(b), rtol=1e-5)


def test_a_multivariate_event_is_its_closed_form():
    joint, batch = joint_of(multivariate, {"y": Y})
    cov = [[2.0, 0.3], [0.3, 1.0]]
    z, v = RNG.normal(size=(N, 2)), 0.3
    terms = log_prob(joint, jnp.asarray(z), jnp.array([v]), batch)
    expected = [
        st.multivariate_normal(np.zeros(2), cov).logpdf(z[i]) + st.multivariate_normal(z[i] + v, cov).logpdf(Y[i])
        for i in range(N)
    ]
    np.testing.assert_allclose(terms.unit, expected, rtol=1e-5)


def test_the_users_scale_does_not_touch_the_jacobian():
    joint, batch = joint_of(scaled_and_masked, {"x": X, "y": Y})
    log_tau = 0.7
    shared = log_prob(joint, jnp.zeros((N, 1)), jnp.array([log_tau]), batch).shared
    np.testing.assert_allclose(shared, 0.3 * st.halfnorm.logpdf(np.exp(log_tau)) + log_tau, rtol=1e-5)


def test_parameters_are_trained_unconstrained_and_modules_as_they_are():
    joint, batch = joint_of(learned, {"y": Y})
    np.testing.assert_allclose(joint.params["s"], np.log(0.8), rtol=1e-6)
    gradient = eqx.filter_grad(lambda j: j.log_prob(jnp.ones((N, 2)), jnp.zeros(0), batch).total())(joint)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradient.params))


def test_arrays_with_units_last_are_read_from_the_plates_or_from_axes():
    joint, batch = joint_of(units_last, {"x": X.T, "y": Y.T})
    assert {a.name: a.axis for a in joint.structure.arguments} == {"x": 1, "y": 1}
    said, same = joint_of(units_last, units({"x": X.T, "y": Y.T}, axes={"x": 1, "y": 1}, name="u"))
    assert said.structure == joint.structure
    np.testing.assert_array_equal(batch.arrays["x"], same.arrays["x"])
    np.testing.assert_array_equal(batch.arrays["x"], X)


def test_a_value_outside_a_support_that_a_draw_decides_is_impossible():
    # Values that can't leave a fixed support are checked once, before training; here each draw of `end` decides anew.
    def uniform(y):
        with numpyro.plate("u", y.shape[0]):
            end = numpyro.sample("end", dist.LogNormal(0.0, 1.0))
            numpyro.sample("y", dist.Uniform(0.0, end), obs=y)

    joint, batch = joint_of(uniform, {"y": np.array([0.5, 2.0, 2.0], np.float32)})
    local = jnp.log(jnp.asarray([[1.0], [1.0], [4.0]]))
    unit = log_prob(joint, local, jnp.zeros(0), batch).unit
    prior = st.norm.logpdf(np.log([1.0, 1.0, 4.0]))
    np.testing.assert_allclose(unit, [prior[0], -np.inf, prior[2] - np.log(4.0)], rtol=1e-5)
