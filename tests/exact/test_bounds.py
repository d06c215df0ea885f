"""Are the bounds of several weighted draws, and their gradients, those that quadrature gives?"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from quadrature import (
    X,
    alone,
    exact_bound,
    grouped,
    loss_of,
    mean_gradients,
    quadrature,
    started,
    worst_score,
)

import amortax as am
from amortax.objectives.weighted import power_mean

NEWTON, TOLD = {"head": am.newton(width=4), "move": 0.4}, {"head": am.concatenate()}


@pytest.mark.parametrize(
    ("model", "recipes", "objective", "alpha"),
    [
        (alone, {}, am.Renyi(2.5, 2), 2.5),
        (grouped, NEWTON, am.IWELBO(2), 0.0),
        (grouped, TOLD, am.IWELBO(2), 0.0),
        (grouped, TOLD, am.IWELBO(2, doubly_reparametrised=False), 0.0),
        (grouped, TOLD, am.Renyi(0.4, 2), 0.4),
    ],
    ids=["alone-renyi", "newton", "told", "told-plain", "told-renyi"],
)
def test_value_and_gradient_are_those_of_the_exact_bound(model, recipes, objective, alpha):
    """Encoder, family, head, q of the globals, and the model's own numbers in prior and likelihood."""
    joint, guide, batch = started(model, **recipes)
    params, rest, _ = loss_of(objective, joint, guide, batch)

    def exact(params):
        joint, guide = eqx.combine(params, rest)
        return -exact_bound(guide, joint, batch, alpha, 2)

    value, gradient = jax.jit(jax.value_and_grad(exact))(params)
    losses, gradients = mean_gradients(objective, joint, guide, batch, 2, 10_000)
    scores = worst_score((losses, gradients), (value, gradient))
    print(f"{objective}: scores in standard errors", {n: round(s, 2) for n, s in scores.items()})
    sizes = {jax.tree_util.keystr(w): float(jnp.abs(x).max()) for w, x in jax.tree_util.tree_leaves_with_path(gradient)}
    assert all(any(part in n and size > 1e-3 for n, size in sizes.items()) for part in ("params", "encoder", "family"))
    assert guide.shared is None or any("shared" in n and size > 1e-3 for n, size in sizes.items())
    assert max(scores.values()) <= 5


def numpy_bound(x, mean, sd, alpha, particles):
    """L_α of z ~ N(0, 1), x ~ N(z, 0.5²) under q = N(mean, sd²): for 1 or 2 draws by quadrature, else in the limit."""
    covariance = 1 / (1 + 1 / 0.25)
    center, evidence = covariance * x / 0.25, -0.5 * (x**2 / 1.25 + np.log(2 * np.pi * 1.25))
    if particles is None:  # log p(x) - D_α(q ‖ posterior)
        mixed = alpha * covariance + (1 - alpha) * sd**2
        away = alpha * (mean - center) ** 2 / (2 * mixed)
        return evidence - np.log(np.sqrt(covariance) / sd) - np.log(covariance / mixed) / (2 * (alpha - 1)) - away
    nodes, weights = (np.asarray(x, np.float64) for x in quadrature(1000))
    z = mean + sd * nodes
    log_joint = -0.5 * (z**2 + (x - z) ** 2 / 0.25) - np.log(2 * np.pi * 0.5)
    log_weight = log_joint + 0.5 * nodes**2 + np.log(sd * np.sqrt(2 * np.pi))
    if particles == 1:
        return weights @ log_weight
    both = np.logaddexp((1 - alpha) * log_weight[:, None], (1 - alpha) * log_weight[None]) - np.log(2)
    return weights @ both @ weights / (1 - alpha)


def simple(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.fixture(scope="module")
def misset():
    """(joint, guide, batch, means, sds): a guide moved off the posterior, and the normals that it stands for."""
    joint, guide, batch = started(simple, move=0.15)
    mean, sd = jax.vmap(guide.local.family.mean_and_sd)(guide.encode(batch))
    frame = {n: float(v[0]) for n, v in guide.local.whitening.value.items()}
    return joint, guide, batch, frame["center"] + frame["scale"] * mean[:, 0], frame["scale"] * sd[:, 0]


@pytest.mark.parametrize(
    ("objective", "alpha", "particles"),
    [
        (am.IWELBO(1), 0.0, 1),
        (am.IWELBO(2), 0.0, 2),
        (am.Renyi(0.5, 2), 0.5, 2),
        (am.Renyi(1.0, 2), 1.0, 1),
        (am.Renyi(0.5, 400), 0.5, None),
        (am.IWELBO(400), 0.0, None),
    ],
    ids=str,
)
def test_a_misset_normal_has_the_bound_of_the_formula(misset, objective, alpha, particles):
    joint, guide, batch, means, sds = misset
    normals = zip(X.tolist(), means.tolist(), sds.tolist(), strict=True)
    exact = np.array([numpy_bound(x, mean, sd, alpha, particles) for x, mean, sd in normals])
    params, _, loss = loss_of(objective, joint, guide, batch)
    keys = jax.random.split(jax.random.key(3), 8000 if particles else 400)
    found = -np.asarray(jax.jit(lambda keys: jax.lax.map(lambda k: loss(params, k), keys, batch_size=100))(keys))
    error = found.std() / math.sqrt(len(found))
    few = (
        0.0 if particles else 1 / 400
    )  # what many draws still lack of infinitely many: about the weights' variance / 2K
    print(f"{objective}: {found.mean():.5f} ± {error:.5f}, exact {exact.mean():.5f}")
    assert abs(found.mean() - exact.mean()) <= 5 * error + few


def test_draws_of_every_component_of_a_mixture_reach_the_evidence():
    joint, guide, batch = started(simple, move=0.15, family=am.mixture(am.diagonal(width=4, depth=1), 3, 4))
    params, _, loss = loss_of(am.IWELBO(300), joint, guide, batch)
    keys = jax.random.split(jax.random.key(7), 200)
    found = -np.asarray(jax.jit(lambda keys: jax.lax.map(lambda k: loss(params, k), keys, batch_size=50))(keys))
    error, evidence = found.std() / math.sqrt(len(found)), np.mean(-0.5 * (X**2 / 1.25 + np.log(2 * np.pi * 1.25)))
    print(f"bound of 3 components of 300 {found.mean():.5f} ± {error:.5f}, evidence {evidence:.5f}")
    assert -0.02 - 5 * error < found.mean() - evidence < 5 * error + 1e-5


def test_the_power_mean_keeps_its_digits_at_every_order():
    rng = np.random.default_rng(4)
    log_weight = rng.normal(-700.0, 2.0, (16, 5))
    share = np.full((16, 5), -math.log(16))
    found = jax.jit(power_mean, static_argnums=2)
    for alpha in (0.0, 0.5, 0.99999, 1.0, 1.00001, 3.0, 60.0):
        t = (1 - alpha) * (log_weight + 700)
        exact = np.logaddexp.reduce(t - math.log(16), axis=0) / (1 - alpha) if alpha != 1 else log_weight.mean(0) + 700
        got = found(jnp.asarray(log_weight + 700, jnp.float32), jnp.asarray(share, jnp.float32), alpha)
        np.testing.assert_allclose(got, exact, atol=2e-5 if abs(alpha - 1) > 1e-3 or alpha == 1 else 1e-4)
        np.testing.assert_allclose(
            found(jnp.asarray(log_weight, jnp.float32), jnp.asarray(share, jnp.float32), alpha), exact - 700, atol=1e-3
        )
    extreme = jnp.asarray([[0.0], [-1e4]])
    assert np.isfinite(jax.grad(lambda x: found(x, jnp.full((2, 1), -math.log(2.0)), 0.0)[0])(extreme)).all()


def test_training_on_the_weighted_bound_reaches_the_evidence():
    from conjugate import LinearGaussian

    rng = np.random.default_rng(5)
    exact = LinearGaussian(rng.standard_normal((4, 2)), np.zeros(4), 0.7)
    weight = jnp.asarray(exact.weight, jnp.float32)

    def model(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
            numpyro.sample("x", dist.Normal(z @ weight.T, 0.7).to_event(1), obs=x)

    data = {"x": exact.simulate(rng, 1000)[1]}
    plan = am.amortize(model, data, plate="unit", family=am.diagonal())
    posterior = am.fit(plan, data, key=jax.random.key(6), num_steps=600, objective=am.IWELBO(16))
    gap = float(exact.log_evidence(data["x"]).mean()) - np.mean(posterior.record.elbo_per_unit[-2:])
    print(f"evidence - bound of 16 {gap:.4f}, best ELBO of a diagonal normal lacks {exact.diagonal_gap:.4f}")
    assert -0.01 < gap < 0.5 * exact.diagonal_gap


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: am.IWELBO(0), "am.IWELBO: num_particles must be a whole number from 1, got 0"),
        (lambda: am.IWELBO(2, num_shared_draws=0), "num_shared_draws must be a whole number from 1, got 0"),
        (lambda: am.IWELBO(8, path_derivative=True), "biased with several weighted particles"),
        (lambda: am.Renyi(float("nan")), "alpha must be a finite number from 0, got nan"),
        (lambda: am.Renyi(-0.5), "alpha must be a finite number from 0, got -0.5"),
        (lambda: am.Renyi(0.5, 0), "am.Renyi: num_particles must be a whole number from 1, got 0"),
        (lambda: am.ELBO(0), "am.ELBO: num_particles must be a whole number from 1, got 0"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(am.FitError, match=words):
        make()


def test_a_model_without_locals_has_nothing_to_weigh():
    def model(x):
        level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("unit", x.shape[0]):
            numpyro.sample("x", dist.Normal(level, 1.0), obs=x)

    plan = am.amortize(model, {"x": X}, plate="unit")
    with pytest.raises(am.ModelError, match="has none inside plate 'unit'; use am.ELBO"):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=am.IWELBO(4))
