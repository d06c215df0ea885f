"""Every support has its bijection and exactly one Jacobian, for locals and for globals alike."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.distributions import biject_to, constraints

from amortax import units
from amortax.intake import to_batch
from amortax.joint.inverse import unconstrain
from amortax.joint.joint import Joint
from amortax.joint.read import read

Y = np.array([0.3, -0.4], np.float32)
LIKELIHOOD = st.norm.logpdf(Y[0])


def all_of(x):
    return jnp.ravel(x)


def below(x):
    return x[jnp.tril_indices(x.shape[0], -1)]


def lower(x):
    return x[jnp.tril_indices(x.shape[0])]


def but_last(x):
    return x[:-1]


# name -> support, event shape, coordinates in which the Jacobian is taken (None: orthonormal ones)
SUPPORTS = {
    "real": (constraints.real, (), all_of),
    "positive": (constraints.positive, (), all_of),
    "nonnegative": (constraints.nonnegative, (), all_of),
    "softplus_positive": (constraints.softplus_positive, (), all_of),
    "greater_than": (constraints.greater_than(2.0), (), all_of),
    "greater_than_eq": (constraints.greater_than_eq(2.0), (), all_of),
    "less_than": (constraints.less_than(2.0), (), all_of),
    "less_than_eq": (constraints.less_than_eq(2.0), (), all_of),
    "unit_interval": (constraints.unit_interval, (), all_of),
    "interval": (constraints.interval(-1.0, 3.0), (), all_of),
    "open_interval": (constraints.open_interval(-1.0, 3.0), (), all_of),
    "circular": (constraints.circular, (), all_of),
    "real_vector": (constraints.real_vector, (3,), all_of),
    "real_matrix": (constraints.real_matrix, (2, 2), all_of),
    "vector_of_positive": (constraints.positive, (3,), all_of),
    "l1_ball": (constraints.l1_ball, (3,), all_of),
    "ordered_vector": (constraints.ordered_vector, (3,), all_of),
    "positive_ordered_vector": (constraints.positive_ordered_vector, (3,), all_of),
    "simplex": (constraints.simplex, (4,), but_last),
    "zero_sum": (constraints.zero_sum(1), (4,), None),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3), lower),
    "scaled_unit_lower_cholesky": (constraints.scaled_unit_lower_cholesky, (3, 3), lower),
    "softplus_lower_cholesky": (constraints.softplus_lower_cholesky, (2, 2), lower),
    "positive_definite": (constraints.positive_definite, (2, 2), lower),
    "positive_semidefinite": (constraints.positive_semidefinite, (2, 2), lower),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3), below),
    "corr_matrix": (constraints.corr_matrix, (3, 3), below),
}
UNKNOWN = {"_Cat", "_Complex"}  # no single real space; refused by name
BOUNDLESS = {"_IndependentConstraint", "_Real", "_RealVector", "_RealMatrix"}


def joint_of(model):
    batch = to_batch(units({"y": Y}, name="u"))
    return Joint(model, read(model, batch, {}, "u"), {}), jax.tree.map(lambda x: jnp.asarray(x[0]), batch)


def free_of(joint, role, seed=0):
    return jax.random.normal(jax.random.key(seed), (joint.structure.size(role),))


def log_volume(transform, free, coordinates):
    if coordinates is not None:
        return jnp.linalg.slogdet(jax.jacobian(lambda u: coordinates(transform(u)))(free))[1]
    columns = jax.jacobian(lambda u: jnp.ravel(transform(u)))(free)
    return 0.5 * jnp.linalg.slogdet(columns.T @ columns)[1]


def test_every_support_that_numpyro_maps_is_here():
    tested = {type(getattr(s, "base_constraint", s)).__name__ for s, _, _ in SUPPORTS.values()}
    known = {key.__name__ for key in biject_to._registry}
    assert known - UNKNOWN - BOUNDLESS <= tested


@pytest.mark.parametrize("name", SUPPORTS)
def test_the_jacobian_is_that_of_the_transform_and_counted_once_in_its_own_part(name):
    support, shape, coordinates = SUPPORTS[name]
    site = dist.ImproperUniform(support, (), shape)

    def model(y):
        numpyro.sample("v", site)
        with numpyro.plate("u", y.shape[0]):
            numpyro.sample("z", site)
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    joint, unit = joint_of(model)
    local, shared = free_of(joint, "local", 0), free_of(joint, "global", 1)
    transform = biject_to(site.support)
    free_shape = transform.inverse_shape(shape)
    expected = [log_volume(lambda u: transform(u.reshape(free_shape)), free, coordinates) for free in (local, shared)]
    terms = joint.unit_log_prob(local, shared, unit)
    np.testing.assert_allclose((terms.unit - LIKELIHOOD, terms.shared), expected, rtol=2e-4, atol=1e-5)

    values = joint.constrain(local, shared, unit)
    assert values["z"].shape == values["v"].shape == shape
    assert bool(jnp.all(site.support(values["z"])))
    again_local, again_shared, jacobian = unconstrain(joint, values, unit)
    np.testing.assert_allclose(again_local, local, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(again_shared, shared, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose((jacobian.unit, jacobian.shared), expected, rtol=2e-3, atol=1e-4)


PRIORS = {
    "half_normal": dist.HalfNormal(1.3),
    "log_normal": dist.LogNormal(0.2, 0.7),
    "gamma": dist.Gamma(2.0, 1.5),
    "beta": dist.Beta(2.0, 3.0),
    "uniform": dist.Uniform(-1.0, 4.0),
    "von_mises": dist.VonMises(0.5, 2.0),
    "truncated": dist.TruncatedNormal(0.5, 1.0, low=0.0),
    "pareto": dist.Pareto(1.5, 3.0),
    "two_sided": dist.TwoSidedTruncatedDistribution(dist.Normal(0.0, 1.0), -0.5, 1.0),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_integrates_to_one_in_unconstrained_space(name):
    def model(y):
        numpyro.sample("v", PRIORS[name])
        with numpyro.plate("u", y.shape[0]):
            numpyro.sample("z", PRIORS[name])
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    joint, unit = joint_of(model)
    grid = jnp.linspace(-15.0, 15.0, 3001)
    terms = jax.vmap(lambda u: joint.unit_log_prob(u[None], u[None], unit))(grid)
    for density in (terms.unit - LIKELIHOOD, terms.shared):
        np.testing.assert_allclose(jnp.sum(jnp.exp(density)) * (grid[1] - grid[0]), 1.0, rtol=1e-3)


def test_bounds_may_depend_on_draws_and_integrate_for_each_of_them():
    def model(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("u", y.shape[0]):
            low = numpyro.sample("low", dist.Normal(0.0, 1.0))
            numpyro.sample("z", dist.Uniform(low, low + tau))
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    joint, unit = joint_of(model)
    local, shared = jnp.array([0.7, -1.1]), jnp.array([0.4])
    tau, low = np.exp(0.4), 0.7
    share = 1 / (1 + np.exp(1.1))
    values = joint.constrain(local, shared, unit)
    np.testing.assert_allclose(values["z"], low + tau * share, rtol=1e-5)
    terms = joint.unit_log_prob(local, shared, unit)
    np.testing.assert_allclose(terms.unit - LIKELIHOOD, st.norm.logpdf(low) + np.log(share * (1 - share)), rtol=1e-5)
    np.testing.assert_allclose(terms.shared, st.halfnorm.logpdf(tau) + 0.4, rtol=1e-5)
    again = unconstrain(joint, values, unit)
    np.testing.assert_allclose(again[0], local, rtol=1e-4)
    np.testing.assert_allclose(again[1], shared, rtol=1e-4)


def test_vector_valued_bounds_keep_their_shape():
    def model(y):
        low = numpyro.sample("low", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        numpyro.sample("w", dist.Uniform(low, low + 1.0).to_event(2))
        with numpyro.plate("u", y.shape[0]):
            numpyro.sample("z", dist.Uniform(low[0], low[0] + 1.0).to_event(1))
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    joint, unit = joint_of(model)
    assert (joint.local_size, joint.shared_size) == (3, 12)
    values = joint.constrain(free_of(joint, "local"), free_of(joint, "global"), unit)
    assert (values["z"].shape, values["w"].shape) == ((3,), (2, 3))
    assert bool(jnp.all((values["z"] > values["low"][0]) & (values["z"] < values["low"][0] + 1)))


def test_real_priors_on_structured_supports_are_numpyros_density_plus_the_jacobian():
    sites = {
        "p": (dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), but_last),
        "chol": (dist.LKJCholesky(3, 2.0), below),
        "corr": (dist.LKJ(3, 1.5), below),
        "ordered": (
            dist.TransformedDistribution(
                dist.Normal(0.0, 1.0).expand([3]).to_event(1), dist.transforms.OrderedTransform()
            ),
            all_of,
        ),
        "zero_sum": (dist.ZeroSumNormal(1.0, (4,)), None),
    }

    def model(y):
        with numpyro.plate("u", y.shape[0]):
            for name, (fn, _) in sites.items():
                numpyro.sample(name, fn)
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    joint, unit = joint_of(model)
    local = free_of(joint, "local")
    values = joint.constrain(local, jnp.zeros(0), unit)
    free = joint.structure.unpack("local", local)
    expected = LIKELIHOOD
    for name, (fn, coordinates) in sites.items():
        transform, u = biject_to(fn.support), free[name].reshape(-1)
        expected += fn.log_prob(values[name]) + log_volume(transform, u, coordinates)
    np.testing.assert_allclose(joint.unit_log_prob(local, jnp.zeros(0), unit).unit, expected, rtol=1e-4)
