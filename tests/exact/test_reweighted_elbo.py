"""Do KL weights and free bits act on training as their formulas say, and never on the bound that is reported?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conjugate import normal_kl, normals_of
from quadrature import NUM_UNITS, X, grouped, loss_of, mean_gradients, quadrature, started, worst_score

import amortax as am
from amortax.objectives.base import Minibatch
from amortax.train.schedule import FACTORS, WINDOW

HALF = am.warm_up(10, start=0.4, end=0.8)


def parts(guide, joint, batch):
    """log p(d | u, v) and log p(u | v) - log q of every unit, log p(v) - log q(v), at nodes of v and u; the weights."""
    nodes, weights = quadrature(48)
    few, of_few = quadrature(32)
    contexts = guide.encode(batch)
    spread = jnp.exp(joint.params["spread"])

    def at(of_shared, noise):
        shared, log_shared = guide.place_shared(of_shared[None], 0)
        local, log_q = guide.place_locals(jnp.full((3, 1), noise), 0, contexts, shared, batch, joint)
        log_p = joint.log_prob(local, shared, batch)
        prior = dist.Normal(shared[0], spread).log_prob(local[:, 0])
        return log_p.unit - prior, prior - log_q, log_p.shared - log_shared

    each = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(few, nodes)
    return *each, of_few[:, None] * weights


def test_the_kl_weight_has_the_gradient_of_its_formula():
    joint, guide, batch = started(grouped, head=am.concatenate())
    objective = am.ELBO(kl_weight=HALF)
    params, rest, _ = loss_of(objective, joint, guide, batch)

    def exact(params):
        joint, guide = eqx.combine(params, rest)
        fit, kl, shared, weights = parts(guide, joint, batch)
        unit = jnp.sum(weights[..., None] * (fit + 0.4 * kl)) * NUM_UNITS / len(X)
        return -(unit + jnp.sum(weights * shared)) / NUM_UNITS

    value, gradient = jax.jit(jax.value_and_grad(exact))(params)
    losses, gradients = mean_gradients(objective, joint, guide, batch, 2, 5000)
    scores = worst_score((losses, gradients), (value, gradient))
    print("scores in standard errors", {n: round(s, 2) for n, s in scores.items()})
    assert max(scores.values()) <= 5


def losses_at(objectives, joint, guide, batch, step):
    params, rest, _ = loss_of(objectives[0], joint, guide, batch)
    minibatch = Minibatch((batch,), jnp.asarray(float(NUM_UNITS)), jnp.asarray(step))

    @jax.jit
    def each(params):
        def of(objective):
            def loss(params):
                joint, guide = eqx.combine(params, rest)
                found = objective(jax.random.key(0), guide, joint, minibatch)
                return found.value, found.elbo_per_unit

            return jax.value_and_grad(loss, has_aux=True)(params)

        return [of(objective) for objective in objectives]

    return each(params)


def test_no_weight_and_no_free_bit_is_in_the_reported_bound_and_schedules_follow_the_step():
    joint, guide, batch = started(grouped, head=am.concatenate())
    plain = am.ELBO(path_derivative=False)
    none, full = (am.ELBO(path_derivative=False, kl_weight=w) for w in (0.0, 1.0))
    moving = am.ELBO(path_derivative=False, kl_weight=HALF)
    optaxs = am.ELBO(path_derivative=False, kl_weight=optax.linear_schedule(0.4, 0.8, 10))
    few, many = (am.ELBO(path_derivative=False, free_bits=b) for b in (1e-3, 50.0))
    found = losses_at([plain, none, full, moving, optaxs, few, many], joint, guide, batch, 5)
    values, elbos = [np.asarray([x[0][i] for x in found]) for i in (0, 1)]
    np.testing.assert_allclose(elbos, -values[0], rtol=1e-5)
    kl = values[0] - values[1]  # the mean KL of units, per unit
    assert kl > 0.1
    np.testing.assert_allclose(values[2:5], values[1] + kl * np.asarray([1.0, 0.6, 0.6]), rtol=1e-4)
    np.testing.assert_allclose(values[5:], [values[0], values[1] + 50.0], rtol=1e-5)
    for several, one in (
        (found[5], found[0]),
        (found[6], found[1]),
    ):  # below, none of the KL's
        for left, right in zip(jax.tree.leaves(several[1]), jax.tree.leaves(one[1]), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)


def simple(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def fitted(x, **options):
    plan = am.amortize(simple, {"x": x}, plate="unit", encoder=am.dense(depth=0))
    return am.fit(plan, {"x": x}, key=jax.random.key(1), **options)


def test_at_half_the_weight_q_is_the_posterior_of_the_squared_likelihood_and_the_bound_its_own():
    x = (1.1 * np.random.default_rng(0).standard_normal(200)).astype(np.float32)
    posterior = fitted(x, objective=am.ELBO(kl_weight=0.5), num_steps=1200)
    tempered = 1 / (1 + 2 / 0.25)
    mean = (tempered * 2 / 0.25 * x.astype(np.float64))[:, None]
    kl = normal_kl(*normals_of(posterior, {"x": x}), mean, np.full((1, 1), tempered))
    evidence = np.mean(-0.5 * x**2 / 1.25 - 0.5 * np.log(2 * np.pi * 1.25))
    gap = normal_kl(mean, np.full((1, 1), tempered), (0.8 * x)[:, None], np.full((1, 1), 0.2)).mean()
    found = evidence - np.mean(posterior.record.elbo_per_unit[-3:])
    print(f"KL to the tempered posterior {kl.mean():.5f}; reported gap {found:.4f}, exact {gap:.4f}")
    assert kl.mean() < 0.01
    assert abs(found - gap) < 0.02


def test_training_neither_ends_nor_goes_back_while_the_weight_still_rises():
    x = (1.1 * np.random.default_rng(0).standard_normal(200)).astype(np.float32)
    posterior = fitted(x, objective=am.ELBO(kl_weight=am.warm_up(3000)))
    assert posterior.record.num_steps >= 3000 + 100 * 2 * WINDOW * (len(FACTORS) - 1)
    exact = (0.8 * x.astype(np.float64))[:, None], np.full((1, 1), 0.2)
    kl = normal_kl(*normals_of(posterior, {"x": x}), *exact)
    print(f"{posterior.record.num_steps} steps, KL {kl.mean():.5f}")
    assert kl.mean() < 0.01
    assert posterior.record.stopped == "converged"


def test_a_schedule_is_settled_when_it_has_its_last_value():
    warm = am.ELBO(kl_weight=am.warm_up(300))
    assert [warm.is_settled(step) for step in (0, 299, 300, 10_000)] == [False, False, True, True]
    assert am.ELBO(kl_weight=0.5).is_settled(0)
    assert not am.Sum(am.ForwardKL(), warm).is_settled(100)
    assert not am.Sum(am.ELBO(), am.ForwardKL(), weights=(1.0, am.warm_up(200, 1.0, 0.1))).is_settled(100)
    assert am.Sum(am.ELBO(), am.ForwardKL(), weights=(1.0, am.warm_up(200, 1.0, 0.1))).is_settled(200)
    assert am.warm_up(300) == am.warm_up(300)
    np.testing.assert_allclose([am.warm_up(10)(s) for s in (0, 5, 10, 99)], [0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: am.ELBO(kl_weight=-0.1), "am.ELBO: kl_weight must be a finite number from 0"),
        (lambda: am.ELBO(kl_weight=float("nan")), "am.ELBO: kl_weight must be a finite number from 0"),
        (lambda: am.ELBO(kl_weight=am.warm_up(10, end=-1.0)), "which is 0.0 at step 0 and -1.0 at the end"),
        (lambda: am.ELBO(free_bits=float("inf")), "am.ELBO: free_bits must be a finite number from 0"),
        (lambda: am.warm_up(0), "am.warm_up: num_steps must be a whole number from 1, got 0"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(am.FitError, match=words):
        make()
