"""Discrete choices that are drawn: values and gradients of the bounds against sums over every assignment."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax._types import trainable
from amortax.intake import as_units, to_batch
from amortax.joint.joint import Joint
from amortax.objectives import score
from amortax.objectives.score import drawn_bounds, relaxed_bounds

CHOICES = np.array(list(itertools.product(range(2), range(2), range(3))), np.int32)  # h, h, c
NODES, WEIGHTS = (x.astype(np.float32) for x in np.polynomial.hermite_e.hermegauss(12))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
RNG = np.random.default_rng(0)
LOADINGS, CENTERS = RNG.normal(size=(2, 3)).astype(np.float32), 1.5 * RNG.normal(size=(3, 3)).astype(np.float32)
X = RNG.normal(size=(2, 3)).astype(np.float32)


def mixed(x):
    """A global, two binary elements, one of three values, and a number that follows them."""
    v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    with numpyro.plate("unit", x.shape[0]):
        h = numpyro.sample("h", dist.Bernoulli(jnp.array([0.3, 0.6])).to_event(1))
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        z = numpyro.sample("z", dist.Normal(v + h[..., 0] - 0.5 * c, 0.8))
        mean = z[..., None] * jnp.array([1.0, -0.5, 0.2]) + h @ LOADINGS + jnp.asarray(CENTERS)[c]
        numpyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)


def built(model, data, **recipes):
    """(guide away from its start, joint, batch) of small networks."""
    small = {"encoder": am.dense(width=4, depth=1), "classifier": am.factorised(width=4)}
    plan = am.amortize(model, data, plate="unit", **small, **recipes)
    guide = plan.build(jax.random.key(3))
    rng = np.random.default_rng(1)
    guide = jax.tree.map(lambda a: a + 0.4 * rng.standard_normal(a.shape).astype(np.float32), guide)
    units = as_units(data, model, "unit")
    return guide, Joint(model, plan.structure, {}), jax.tree.map(jnp.asarray, to_batch(units))


@pytest.fixture(scope="module")
def pair():
    return built(mixed, {"x": X}, family=am.diagonal(depth=0), head=am.concatenate())


def by_enumeration(guide, joint, batch, shared):
    """(probabilities, log weights) (units, assignments x nodes) of every choice and node of the number's noise."""

    def one(context, unit):
        def at(choice, node):
            stands = unit.at(choice)
            number, log_q = guide.place_local(jnp.array([node]), 0, context, shared, stands, joint)
            log_choice = guide.choice_log_prob(choice, context, shared, unit, joint)
            return log_choice, joint.unit_log_prob(number, shared, stands).unit - log_q - log_choice

        each = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))
        log_choice, log_weight = each(jnp.asarray(CHOICES), jnp.asarray(NODES))
        return (jnp.exp(log_choice) * WEIGHTS).ravel(), log_weight.ravel()

    return jax.vmap(one)(guide.encode(batch), batch)


def exact_bound(alpha):
    """The sum over units of the exact bound: one draw (α = 1), or the mean over all pairs of draws."""

    def elbo(guide, joint, batch, shared):
        share, log_weight = by_enumeration(guide, joint, batch, shared)
        return jnp.sum(share * log_weight)

    def pairs(guide, joint, batch, shared):
        share, log_weight = by_enumeration(guide, joint, batch, shared)
        both = jnp.stack(jnp.broadcast_arrays(log_weight[:, :, None], log_weight[:, None, :]))
        bound = (jax.nn.logsumexp((1 - alpha) * both, axis=0) - jnp.log(2.0)) / (1 - alpha)
        return jnp.einsum("ia,ib,iab->", share, share, bound)

    return elbo if alpha == 1.0 else pairs


def value_and_gradient(bound, guide, shared):
    """(value, gradient by all that learns of the guide, and by v) of `bound(guide, v)`."""
    learned, rest = eqx.partition((guide, shared), trainable((guide, shared)))
    value, gradient = jax.value_and_grad(lambda learned: bound(*eqx.combine(learned, rest)))(learned)
    return value, jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(gradient)])


def estimates(pair, shared, count, estimator):
    """Values (count,) and gradients (count, parameters) of independent estimates of a sum over units."""
    guide, joint, batch = pair

    @eqx.filter_jit
    def all_of(keys):
        def one(key):
            def bound(guide, shared):
                return estimator(key, guide, joint, batch, guide.encode(batch), shared)[0].sum()

            return value_and_gradient(bound, guide, shared)

        return jax.lax.map(one, keys, batch_size=500)

    values, gradients = all_of(jax.random.split(jax.random.key(8), count))
    return np.asarray(values, np.float64), np.asarray(gradients, np.float64)


def standard_errors_away(found, exact):
    """How many standard errors the mean of each column lies from the exact number."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    return np.abs(found.mean(axis=0) - np.asarray(exact, np.float64)) / (error + 1e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("alpha", "draws"), [(1.0, 3), (0.0, 2)], ids=["elbo", "vimco"])
def test_values_and_gradients_are_those_of_all_assignments(pair, alpha, draws):
    guide, joint, batch = pair
    shared = jnp.array([0.4])
    exact = exact_bound(alpha)
    value, gradient = eqx.filter_jit(value_and_gradient)(lambda g, v: exact(g, joint, batch, v), guide, shared)

    def estimator(*args):
        return drawn_bounds(*args, count=draws, alpha=alpha)

    values, gradients = estimates(pair, shared, 6000, estimator)
    off, away = standard_errors_away(values, value), standard_errors_away(gradients, gradient)
    print(f"alpha {alpha}: value {off:.2f} standard errors off, gradients at most {away.max():.2f} of {len(away)}")
    assert np.abs(np.asarray(gradient)).max() > 0.1
    assert off <= 5
    assert away.max() <= 5


@pytest.mark.parametrize("alpha", [1.0, 0.0], ids=["elbo", "vimco"])
def test_the_baseline_lowers_the_noise(pair, alpha, monkeypatch):
    def estimator(*args):
        return drawn_bounds(*args, count=4, alpha=alpha)

    with_baseline = estimates(pair, jnp.array([0.4]), 1000, estimator)[1].var(axis=0).sum()
    monkeypatch.setattr(score, "baselines", lambda each, alpha: jnp.zeros_like(each))
    without = estimates(pair, jnp.array([0.4]), 1000, estimator)[1].var(axis=0).sum()
    print(f"alpha {alpha}: variance {with_baseline:.4g} with the baseline, {without:.4g} without")
    assert with_baseline < 0.5 * without


@pytest.mark.parametrize("alpha", [1.0, 0.0], ids=["elbo", "vimco"])
def test_at_the_exact_posterior_no_noise_is_left(alpha):
    def one_element(x):
        with numpyro.plate("unit", x.shape[0]):
            c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
            numpyro.sample("x", dist.Normal(jnp.asarray(CENTERS)[c], 0.7).to_event(1), obs=x)

    guide, joint, batch = built(one_element, {"x": X})
    batch = jax.tree.map(lambda a: a[:1], batch)
    unit, none = jax.tree.map(lambda a: a[0], batch), jnp.zeros(0)
    log_p = jnp.stack([joint.unit_log_prob(none, none, unit.at(jnp.array([k]))).unit for k in range(3)])
    last = guide.classifier.network.layers[-1]
    exact = jax.tree.map(jnp.zeros_like, last.weights), log_p[1:] - log_p[0]
    guide = eqx.tree_at(
        lambda g: (g.classifier.network.layers[-1].weights, g.classifier.network.layers[-1].bias), guide, exact
    )

    def estimator(*args):
        return drawn_bounds(*args, count=3, alpha=alpha)

    values, gradients = estimates((guide, joint, batch), none, 200, estimator)
    np.testing.assert_allclose(values, float(jax.nn.logsumexp(log_p)), rtol=1e-5)
    assert np.abs(gradients).max() <= 1e-4


def binary(x):
    with numpyro.plate("unit", x.shape[0]):
        h = numpyro.sample("h", dist.Bernoulli(jnp.array([0.3, 0.6, 0.5])).to_event(1))
        numpyro.sample("x", dist.Normal((h @ np.vstack([LOADINGS, CENTERS[:1]])) ** 2, 0.7).to_event(1), obs=x)


def test_straight_through_is_biased_as_it_says():
    """Its label is true: on a likelihood that is not linear in c, the mean of the gradient is another one."""
    pair = guide, joint, batch = built(binary, {"x": X})
    assignments = jnp.asarray(list(itertools.product(range(2), repeat=3)), jnp.int32)

    def exact(guide, joint, batch):
        def one(context, unit):
            def at(choice):
                log_q = guide.choice_log_prob(choice, context, jnp.zeros(0), unit, joint)
                log_p = joint.unit_log_prob(jnp.zeros(0), jnp.zeros(0), unit.at(choice)).unit
                return jnp.exp(log_q) * (log_p - log_q)

            return jnp.sum(jax.vmap(at)(assignments))

        return jnp.sum(jax.vmap(one)(guide.encode(batch), batch))

    none = jnp.zeros(0)
    value, gradient = eqx.filter_jit(value_and_gradient)(lambda g, _: exact(g, joint, batch), guide, none)
    away = {}
    for name, estimator in {
        "straight-through": lambda *args: relaxed_bounds(*args, temperature=0.5),
        "leave-one-out": lambda *args: drawn_bounds(*args, count=2, alpha=1.0),
    }.items():
        values, gradients = estimates(pair, none, 6000, estimator)
        assert standard_errors_away(values, value) <= 5  # the bound itself is right
        away[name] = standard_errors_away(gradients, gradient).max()
        off = np.linalg.norm(gradients.mean(axis=0) - np.asarray(gradient)) / np.linalg.norm(np.asarray(gradient))
        print(f"{name}: off by {off:.3f} of the gradient, at most {away[name]:.1f} standard errors")
    assert away["straight-through"] > 5
    assert away["leave-one-out"] <= 5
