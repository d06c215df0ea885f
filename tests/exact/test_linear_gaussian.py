"""Is the posterior of a linear-Gaussian model with a known decoder the exact one, and is its bound the evidence?"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of

import amortax as am


def model(x, weight, mean, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T + mean, noise).to_event(1), obs=x)


def truth(rng, size=10, latents=3):
    return LinearGaussian(rng.standard_normal((size, latents)), rng.standard_normal(size), 0.5)


def bound(exact):
    return functools.partial(
        model, weight=exact.weight.astype(np.float32), mean=exact.mean.astype(np.float32), noise=exact.noise
    )


@pytest.fixture(scope="module")
def exact():
    return truth(np.random.default_rng(0))


@pytest.fixture(scope="module")
def data(exact):
    rng = np.random.default_rng(1)
    return {"x": exact.simulate(rng, 10_000)[1]}, {"x": exact.simulate(rng, 2_000)[1]}


def fitted(exact, data, **recipes):
    plan = am.amortize(bound(exact), data[0], plate="unit", **recipes)
    return am.fit(plan, data[0], key=jax.random.key(0), num_steps=1500)


@pytest.fixture(scope="module")
def full(exact, data):
    return fitted(exact, data)


def test_the_full_guide_is_the_posterior_on_units_it_never_saw(exact, data, full):
    kl = normal_kl(*normals_of(full, data[1]), *exact.posterior(data[1]["x"]))
    print(
        f"full guide: held-out KL mean {kl.mean():.4f}, p99 {np.quantile(kl, 0.99):.4f}, steps {full.record.num_steps}"
    )
    assert kl.mean() <= 0.02
    assert np.quantile(kl, 0.99) <= 0.15


def test_the_diagonal_guide_misses_by_exactly_its_gap(exact, data):
    posterior = fitted(exact, data, family=am.diagonal())
    report = posterior.check(data[1], key=jax.random.key(2))
    gap = exact.log_evidence(data[1]["x"]) - report.units["elbo"]
    error = gap.std() / math.sqrt(len(gap))
    print(f"diagonal gap {gap.mean():.4f} ± {error:.4f}, formula {exact.diagonal_gap:.4f}")
    assert 5 * error < 0.03
    assert abs(gap.mean() - exact.diagonal_gap) <= 0.03


def test_the_bounds_rise_to_the_evidence(exact, data, full):
    from amortax.importance import log_weights

    rows, groups, largest = data[1]["x"][:200], 40, 64
    contexts = full.guide.encode(unit_batch(rows))
    keys = jax.random.split(jax.random.key(3), len(rows))
    at = jax.vmap(lambda k, c, u: log_weights(k, full.guide, full.joint, c, jnp.zeros(0), u, groups * largest))
    weights = np.asarray(jax.jit(at)(keys, contexts, unit_batch(rows)), np.float64)
    evidence = exact.log_evidence(rows)
    means, errors = [], []
    for size in (1, 8, 64):
        parts = weights.reshape(len(rows), -1, size)
        each = np.logaddexp.reduce(parts, axis=2) - math.log(size) - evidence[:, None]
        means.append(each.mean())
        errors.append(each.mean(axis=0).std() / math.sqrt(each.shape[1]))
    print("L_K - log p for K = 1, 8, 64:", [f"{m:.5f} ± {e:.5f}" for m, e in zip(means, errors, strict=True)])
    assert means[0] <= means[1] <= means[2]  # by Jensen exactly, on the same draws
    assert means[2] <= 3 * errors[2] + 1e-5  # float32 of log densities near 20
    assert abs(means[2]) <= 0.02


@pytest.mark.slow
def test_units_unlike_the_training_units_are_flagged_and_those_like_them_hardly_ever(exact, full):
    """Shares of TRUST: 2% of clean units at most, 92% at latents x 10, 98% at inputs x 10, 90% of bad ones at x 6."""
    checks = am.Checks(num_samples=1000, simulated_units=0, gap_units=0, predictive_draws=0)
    rng = np.random.default_rng(8)

    def flagged(latents, inputs):
        z = latents * rng.standard_normal((2000, 3))
        x = z @ exact.weight.T + exact.mean + exact.noise * rng.standard_normal((2000, 10))
        x = (inputs * x).astype(np.float32)
        kl = normal_kl(*normals_of(full, {"x": x}), *exact.posterior(x))
        found = full.check({"x": x}, key=jax.random.key(9), checks=checks).units["verdict"] != "PASS"
        return found, kl

    clean = flagged(1, 1)[0].mean()
    six, kl = flagged(6, 1)
    ten, inputs = flagged(10, 1)[0].mean(), flagged(1, 10)[0].mean()
    print(f"flagged: clean {clean:.4f}, latents x 10 {ten:.3f}, inputs x 10 {inputs:.3f}, ", end="")
    print(f"of latents x 6 with KL > 0.1 {six[kl > 0.1].mean():.3f}")
    assert clean <= 0.02
    assert ten >= 0.92
    assert inputs >= 0.98
    assert six[kl > 0.1].mean() >= 0.9


def unit_batch(rows):
    from amortax._types import Batch

    return Batch({"x": jnp.asarray(rows)}, {}, {})


def hierarchy(y, noise):
    level = numpyro.sample("level", dist.Normal(0, 10))
    slope = numpyro.sample("slope", dist.Normal(0, 2))
    with numpyro.plate("unit", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 3.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z @ jnp.array([[1.0, 0.5, 0.0], [0.2, slope, 1.0]]), noise).to_event(1), obs=y)


def test_at_the_newton_frame_of_a_gaussian_model_every_weight_is_the_evidence():
    """Whatever point an untrained head starts from, one Newton step ends at the exact conditional posterior."""
    import equinox as eqx

    from amortax.importance import log_weights
    from amortax.intake import as_units, to_batch
    from amortax.train.initialise import initialise

    rng, noise = np.random.default_rng(4), 0.7
    data = {"y": (3.0 * rng.standard_normal((20, 3))).astype(np.float32)}
    plan = am.amortize(functools.partial(hierarchy, noise=noise), data, plate="unit")
    assert plan.head == am.newton()
    batch = to_batch(as_units(data, plan.model, "unit"))
    joint, guide = initialise(plan, batch, jax.random.key(5))
    blank = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, guide.local.family)
    guide = eqx.tree_at(lambda g: g.local.family, guide, blank)
    batch = jax.tree.map(jnp.asarray, batch)
    for level, slope in ((0.0, 0.0), (2.0, -1.5), (-6.0, 3.0)):
        shared = jnp.array([level, slope])
        at = jax.vmap(lambda k, c, u, v=shared: log_weights(k, guide, joint, c, v, u, 50))
        weights = at(jax.random.split(jax.random.key(6), 20), guide.encode(batch), batch)
        weight = 3.0 * np.array([[1.0, 0.5, 0.0], [0.2, slope, 1.0]]).T
        exact = LinearGaussian(weight, weight @ np.full(2, level / 3.0), noise).log_evidence(data["y"])
        worst = np.max(np.abs(weights - exact[:, None]) / np.maximum(np.abs(exact[:, None]), 1.0))
        print(f"level {level}, slope {slope}: worst relative error of a log weight {worst:.1e}, ", end="")
        print(f"largest |log p| {np.abs(exact).max():.1f}")
        small = np.abs(exact) < 20  # float32 resolves 1e-4 there
        assert np.max(np.abs(weights - exact[:, None])[small]) <= 1e-4
        assert worst <= 2e-5


def test_bad_guides_are_seen_by_the_exact_kl(exact, data, full):
    """The measure itself can fail: the same guide for another noise is far from exact."""
    other = LinearGaussian(exact.weight, exact.mean, 2 * exact.noise)
    assert normal_kl(*normals_of(full, data[1]), *other.posterior(data[1]["x"])).mean() > 0.1
