"""Does every part of a model learn in wake-sleep what it should, and from nothing else?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import normal_kl, normals_of
from quadrature import X, alone, exact_bound, grouped, loss_of, mean_gradients, quadrature, started, worst_score
from test_forward import exact_loss, still

import amortax as am


def exact_lesson(guide, joint, batch):
    """-Σ_k ŵ_k log q(u_k) per unit of two draws, by quadrature; only log q has a gradient."""
    nodes, weights = quadrature(64)
    at_shared, of_shared = quadrature(32) if guide.shared is not None else (jnp.zeros(1), jnp.ones(1))
    contexts = guide.encode(batch)

    def given(noise):
        shared = guide.place_shared(noise[None] if guide.shared is not None else jnp.zeros(0), 0)[0]

        def one(noise):
            local, log_q = still(guide.place_locals(jnp.full((3, 1), noise), 0, contexts, shared, batch, joint))
            weight = joint.log_prob(local, shared, batch).unit - log_q
            return still(weight), guide.locals_log_prob(local, contexts, still(shared), batch, joint)

        log_weight, log_q = jax.vmap(one)(nodes)
        first = jax.nn.sigmoid(log_weight[:, None] - log_weight[None])
        lesson = first * log_q[:, None] + (1 - first) * log_q[None]
        return -jnp.mean(jnp.sum(weights[:, None, None] * weights[None, :, None] * lesson, axis=(0, 1)))

    return jnp.sum(of_shared * jax.vmap(given)(at_shared))


@pytest.mark.parametrize(
    ("model", "recipes", "objective"),
    [
        (alone, {}, am.WakeSleep()),
        (grouped, {"head": am.newton(width=4), "move": 0.3}, am.WakeSleep(2, wake_share=0.3)),
    ],
    ids=["alone", "newton-reweighted"],
)
def test_value_and_gradient_are_those_of_the_exact_phases(model, recipes, objective):
    joint, guide, batch = started(model, **recipes)
    params, rest, _ = loss_of(objective, joint, guide, batch)
    share = objective.wake_share

    def exact(params):
        joint, guide = eqx.combine(params, rest)
        fixed = eqx.partition(joint, eqx.is_inexact_array)
        still_joint = eqx.combine(still(fixed[0]), fixed[1])
        arrays, static = eqx.partition(guide, eqx.is_inexact_array)
        given = eqx.combine(still(arrays), static)
        awake = guide if guide.shared is None else eqx.tree_at(lambda g: g.shared, given, guide.shared)
        awake = given if guide.shared is None else awake
        asleep = guide if guide.shared is None else eqx.tree_at(lambda g: g.shared, guide, given.shared)
        wake = -exact_bound(awake, joint, batch, 0.0, objective.num_particles, in_guide=still_joint)
        lesson = share * exact_lesson(asleep, still_joint, batch) if share else 0.0
        sleep = (1 - share) * exact_loss(asleep, still_joint, batch) if share < 1 else 0.0
        return wake + lesson - jax.lax.stop_gradient(lesson) + sleep

    value, gradient = jax.jit(jax.value_and_grad(exact))(params)
    losses, gradients = mean_gradients(objective, joint, guide, batch, 2, 5000)
    scores = worst_score((losses, gradients), (value, gradient))
    print(f"{objective}: scores in standard errors", {n: round(s, 2) for n, s in scores.items()})
    assert max(scores.values()) <= 5
    assert all(np.any(x) for x in jax.tree.leaves(gradients))


def learned(x):
    mean = numpyro.param("mean", jnp.array(0.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [am.WakeSleep(), am.WakeSleep(8, wake_share=0.5)], ids=str)
def test_both_forms_end_at_maximum_likelihood_and_the_exact_posterior(objective):
    rng = np.random.default_rng(0)
    x = (2.0 + np.sqrt(1.25) * rng.standard_normal(300)).astype(np.float32)
    plan = am.amortize(learned, {"x": x}, plate="unit", encoder=am.dense(depth=0))
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(1), objective=objective, num_steps=1500)
    mean, best = float(posterior.joint.params["mean"]), float(x.mean())
    exact = (0.2 * best + 0.8 * x.astype(np.float64))[:, None], np.full((1, 1), 0.2)
    kl = normal_kl(*normals_of(posterior, {"x": x}), *exact)
    evidence = np.mean(-0.5 * (x - best) ** 2 / 1.25 - 0.5 * np.log(2 * np.pi * 1.25))
    print(f"mean {mean:.4f}, exact {best:.4f}; KL {kl.mean():.5f}; evidence - bound", end=" ")
    print(f"{evidence - posterior.record.elbo_per_unit[-1]:.4f}")
    assert abs(mean - best) < 0.02
    assert kl.mean() < 0.01
    assert abs(evidence - posterior.record.elbo_per_unit[-1]) < 0.02


def with_factor(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.factor("pull", -z)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_only_awake_does_it_need_no_simulation():
    plan = am.amortize(with_factor, {"x": X}, plate="unit")
    with pytest.raises(am.ModelError, match="am.WakeSleep needs simulations.*factor 'pull' has no sampler"):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=am.WakeSleep(4, wake_share=0.9))
    am.WakeSleep(4, wake_share=1.0).check(plan.structure)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: am.WakeSleep(0), "am.WakeSleep: num_particles must be a whole number from 1, got 0"),
        (lambda: am.WakeSleep(4, wake_share=1.5), "wake_share must be a number from 0 to 1, got 1.5"),
        (lambda: am.WakeSleep(4, wake_share=float("nan")), "wake_share must be a number from 0 to 1, got nan"),
        (lambda: am.WakeSleep(wake_share=0.5), "one draw has weight 1 whatever it is"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(am.FitError, match=words):
        make()
