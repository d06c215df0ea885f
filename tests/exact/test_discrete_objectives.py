"""Objectives beside the ELBO on discrete choices: a listed one by quadrature, drawn ones by their exact marginals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from test_drawn_choices import ALL, log_joint, noisy_or, patients, probabilities

import amortax as am
from amortax._types import trainable
from amortax.intake import as_units, to_batch
from amortax.joint.joint import Joint
from amortax.objectives.base import Minibatch

NODES, WEIGHTS = (x.astype(np.float32) for x in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SHARES, MEANS = np.array([0.2, 0.5, 0.3], np.float32), np.array([-2.0, 0.0, 3.0], np.float32)
X = np.array([-1.5, 0.3, 1.4, 3.2], np.float32)


def listed(x):
    with numpyro.plate("unit", x.shape[0]):
        c = numpyro.sample("c", dist.Categorical(SHARES))
        z = numpyro.sample("z", dist.Normal(jnp.asarray(MEANS)[c], 0.7))
        numpyro.sample("x", dist.Normal(z, 0.8), obs=x)


def exact_evidence(x):
    sd = np.hypot(0.7, 0.8)
    return np.logaddexp.reduce(
        np.log(SHARES) - 0.5 * ((x[:, None] - MEANS) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi)), axis=1
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_bounds_of_a_listed_choice_are_those_of_quadrature(alpha):
    """Every assignment has the same noise: the bound is log Σ_c q(c) w(c, noise) in the mean over one normal."""
    small = {"encoder": am.dense(width=4, depth=1), "classifier": am.categorical(width=4)}
    plan = am.amortize(listed, {"x": X}, plate="unit", family=am.diagonal(depth=0), **small)
    guide, joint = plan.build(jax.random.key(3)), Joint(listed, plan.structure, {})
    rng = np.random.default_rng(1)
    guide = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32), guide)
    batch = jax.tree.map(jnp.asarray, to_batch(as_units({"x": X}, listed, "unit")))
    none = jnp.zeros(0)

    def exact(guide):
        def one(context, unit):
            share = jax.nn.softmax(guide.local_log_shares(context, none, unit, joint))

            def at(node, component):
                local, log_q = guide.place_local(node[None], component, context, none, unit, joint)
                return joint.unit_log_prob(local, none, unit).unit - log_q

            log_weight = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(jnp.asarray(NODES), jnp.arange(3))
            return WEIGHTS @ (jax.nn.logsumexp((1 - alpha) * log_weight, b=share, axis=1) / (1 - alpha))

        return jnp.mean(jax.vmap(one)(guide.encode(batch), batch))

    objective = am.Renyi(alpha, num_particles=1)
    minibatch = Minibatch((batch,), jnp.asarray(4.0), jnp.zeros((), jnp.int32))
    learned, rest = eqx.partition(guide, trainable(guide))

    def flat(bound, learned):
        value, gradient = jax.value_and_grad(lambda p: bound(eqx.combine(p, rest)))(learned)
        return jnp.concatenate([value[None], *(jnp.ravel(x) for x in jax.tree.leaves(gradient))])

    @jax.jit
    def estimates(keys):
        return jax.lax.map(
            lambda key: flat(lambda g: -objective(key, g, joint, minibatch).value, learned), keys, batch_size=500
        )

    found = np.asarray(estimates(jax.random.split(jax.random.key(0), 10_000)), np.float64)
    right = np.asarray(jax.jit(lambda p: flat(exact, p))(learned), np.float64)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found)) + 1e-5 * np.abs(right).max()
    away = np.abs(found.mean(axis=0) - right) / error
    print(
        f"alpha {alpha}: bound {right[0]:.4f}, evidence {exact_evidence(X).mean():.4f}; at most {away.max():.1f} errors"
    )
    assert right[0] < exact_evidence(X).mean()
    assert away.max() <= 5


@pytest.mark.parametrize(
    "objective", [am.ForwardKL(), am.WakeSleep(), am.WakeSleep(8, wake_share=1)], ids=["forward", "sleep", "wake"]
)
def test_what_covers_ends_at_the_marginals_of_the_posterior(objective):
    """Of all independent elements those with the posterior's marginals are nearest in forward KL."""
    data = patients(2000, seed=0)
    plan = am.amortize(noisy_or, data, plate="patient", classifier=am.factorised())
    posterior = am.fit(plan, data, key=jax.random.key(0), objective=objective, num_steps=1500)
    new = patients(200, seed=5)
    table = log_joint(new["finding"])
    share = np.exp(table - np.logaddexp.reduce(table, axis=1, keepdims=True))
    off = np.abs(probabilities(posterior, new) - share @ ALL)
    print(f"off the marginals by {off.mean():.3f} in the mean")
    assert off.mean() <= 0.04


def test_draws_through_which_q_of_the_globals_would_not_learn_are_refused():
    def shared(x):
        v = numpyro.sample("v", dist.Normal())
        with numpyro.plate("unit", x.shape[0]):
            h = numpyro.sample("h", dist.Bernoulli(0.5 * jnp.ones(12)).to_event(1))
            numpyro.sample("x", dist.Normal(v + h.sum(-1), 1.0), obs=x)

    plan = am.amortize(shared, {"x": X}, plate="unit", classifier=am.factorised())
    with pytest.raises(am.ModelError, match="am.WakeSleep: q draws .'h'. given the globals"):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=am.WakeSleep())
