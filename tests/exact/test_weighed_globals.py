"""Are bounds that weigh draws of the globals against each other, and their gradients, those that quadrature gives?"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from quadrature import NOISE, NUM_UNITS, X, grouped, loss_of, mean_gradients, quadrature, started, worst_score

import amortax as am
from amortax.objectives.weighted import power_mean


def without_locals(x):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    spread = numpyro.param("spread", NOISE, constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0]):
        numpyro.sample("x", dist.Normal(level, spread), obs=x)


@pytest.mark.parametrize("doubly", [True, False], ids=["doubly", "plain"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_value_and_gradient_without_locals_are_those_of_the_exact_bound(alpha, doubly):
    """Of two draws: parameters of q(v), and the model's own."""
    joint, guide, batch = started(without_locals, move=0.3, encoder=None, family=None)
    if alpha:
        objective = am.Renyi(alpha, num_shared_draws=2, weigh_shared=True)
    else:
        objective = am.IWELBO(num_shared_draws=2, weigh_shared=True, doubly_reparametrised=doubly)
    params, rest, _ = loss_of(objective, joint, guide, batch)
    nodes, weights = quadrature(300)

    def exact(params):
        joint, guide = eqx.combine(params, rest)

        def log_weight(noise):
            shared, log_q = guide.place_shared(noise[None], 0)
            return joint.log_prob(jnp.zeros((len(X), 0)), shared, batch).total() - log_q

        each = jax.vmap(log_weight)(nodes)
        pairs = jnp.stack([jnp.broadcast_to(each[:, None], (300, 300)), jnp.broadcast_to(each, (300, 300))])
        value = power_mean(pairs.reshape(2, -1), jnp.full((2, 90_000), -math.log(2.0)), alpha).reshape(300, 300)
        return -(weights @ value @ weights) / NUM_UNITS

    value, gradient = jax.jit(jax.value_and_grad(exact))(params)
    found = mean_gradients(objective, joint, guide, batch, 2, 20_000)
    scores = worst_score(found, (value, gradient))
    print(f"{objective}: scores in standard errors", {n: round(s, 2) for n, s in scores.items()})
    assert all(float(jnp.abs(x).max()) > 1e-3 for x in jax.tree.leaves(gradient))
    assert max(scores.values()) <= 5


@pytest.mark.parametrize("head", [am.newton(width=4), am.concatenate()], ids=["newton", "told"])
def test_seen_twice_through_the_draws_the_gradient_is_the_plain_one_with_less_noise(head):
    """Two draws of each unit in each of three of the globals: q of both, encoder, head, prior and likelihood."""
    joint, guide, batch = started(grouped, move=0.2, head=head)
    found = []
    for doubly, count in ((True, 20_000), (False, 40_000)):
        objective = am.IWELBO(2, num_shared_draws=3, weigh_shared=True, doubly_reparametrised=doubly)
        found.append(mean_gradients(objective, joint, guide, batch, 3, count))
    scores, noise = {}, {}
    for (where, one), other in zip(
        jax.tree_util.tree_leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True
    ):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        error = np.sqrt(one.var(axis=0) / len(one) + other.var(axis=0) / len(other)) + 2e-6
        name = jax.tree_util.keystr(where)
        scores[name] = float(np.max(np.abs(one.mean(axis=0) - other.mean(axis=0)) / error))
        noise[name] = float(np.sqrt(one.var(axis=0).sum() / other.var(axis=0).sum()))
    print({name: (round(score, 2), round(noise[name], 2)) for name, score in scores.items()})
    assert max(scores.values()) <= 5
    assert min(noise[name] for name in noise if ".shared" in name) < 0.8


def test_a_tail_that_the_elbo_cuts_short_is_reached():
    """The log spread of five numbers is skewed to the right: the normal by the ELBO is too narrow, the other is not."""
    x = np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32)

    def model(x):
        spread = numpyro.sample("spread", dist.HalfCauchy(2.0))
        with numpyro.plate("unit", len(x)):
            numpyro.sample("x", dist.Normal(0.0, spread), obs=x)

    grid = np.exp(np.linspace(-4.0, 6.0, 20_001))  # evenly in the log, whose Jacobian is the value itself
    mass = grid * np.exp(-np.sum(x.astype(float) ** 2) / (2 * grid**2)) / grid ** len(x) / (1 + (grid / 2) ** 2)
    mass /= mass.sum()
    exact = np.log(grid) @ mass, math.sqrt(np.log(grid) ** 2 @ mass - (np.log(grid) @ mass) ** 2)
    plan = am.amortize(model, {"x": x}, plate="unit")
    ratios = []
    for objective in (am.ELBO(8), am.IWELBO(num_shared_draws=16, weigh_shared=True)):
        posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), objective=objective, num_steps=1000)
        mean, sd = posterior.guide.shared.family.mean_and_sd(())
        ratios.append(float(sd[0] * posterior.guide.shared.whitening.value["scale"][0]) / exact[1])
    print(f"sd of the log spread over the exact one: ELBO {ratios[0]:.3f}, weighed {ratios[1]:.3f}")
    assert ratios[0] < 0.95
    assert 1.0 < ratios[1] < 1.15


def refused(objective, error, words, model=grouped, **options):
    plan = am.amortize(model, {"x": X}, plate="unit")
    with pytest.raises(error, match=words):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=objective, **options)


def test_what_cannot_be_weighed_is_refused():
    weighed = am.IWELBO(num_shared_draws=4, weigh_shared=True)
    with pytest.raises(am.FitError, match="one draw of the globals has nothing to be weighed against"):
        am.Renyi(0.5, num_shared_draws=1, weigh_shared=True)
    refused(weighed, am.FitError, "weighs draws of the globals by all 3 units, and batch_size=2 shows", batch_size=2)
    refused(am.Sum(weighed, am.ForwardKL()), am.FitError, "batch_size=2 shows it fewer", batch_size=2)
    held_out = am.Run(validation={"x": X + 1})
    refused(weighed, am.FitError, "no bound of held-out units alone; leave run.validation out", run=held_out)

    def no_globals(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    refused(weighed, am.ModelError, "'no_globals' has no globals to weigh", model=no_globals)
