"""Is the gradient right, and where is it still? Path derivative against the plain estimator, at and off the optimum."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.objectives.estimators import SHARE_UNITS, path_share, seen_through_draws
from amortax.train.initialise import initialise
from amortax.train.step import split_trainable


def linear(x, weight, mean, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T + mean, noise).to_event(1), obs=x)


def hierarchy(x):
    level = numpyro.sample("level", dist.Normal(0, 3))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    bias = numpyro.param("bias", jnp.array([0.3, -0.2]))
    noise = numpyro.param("noise", 0.8, constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 1).expand([2]).to_event(1))
        location = jnp.stack([z[..., 0] + slope * z[..., 1], jnp.sin(z[..., 1])], -1) + bias
        numpyro.sample("x", dist.Normal(location, noise).to_event(1), obs=x)


def started(plan, data, key):
    batch = to_batch(as_units(data, plan.model, "unit"))
    joint, guide = initialise(plan, batch, key)
    return joint, guide, jax.tree.map(jnp.asarray, batch)


def gradients(joint, guide, batch, objective, keys, num_units):
    """Gradient of the loss with respect to all that is trained, at every key."""
    params, rest = split_trainable(joint, guide)

    def loss(params, key):
        joint, guide = eqx.combine(params, rest)
        minibatch = Minibatch((batch,), jnp.asarray(float(num_units)), jnp.zeros((), jnp.int32))
        return objective(key, guide, joint, minibatch).value

    return jax.jit(lambda keys: jax.lax.map(lambda k: jax.grad(loss)(params, k), keys, batch_size=100))(keys)


def exact_guide(exact, x):
    """A linear encoder and a normal set to the posterior: W with orthogonal columns makes it diagonal."""
    model = functools.partial(
        linear, weight=exact.weight.astype(np.float32), mean=exact.mean.astype(np.float32), noise=exact.noise
    )
    plan = am.amortize(model, {"x": x}, plate="unit", encoder=am.dense(depth=0), family=am.diagonal())
    joint, guide, batch = started(plan, {"x": x}, jax.random.key(0))
    statistics = guide.encoder.features.statistics.value["x"]
    frame = guide.local.whitening.value
    _, covariance = exact.posterior(x)
    slope = exact.weight @ covariance / exact.noise**2  # mean = (x - mu) slope
    center, scale = np.asarray(frame["center"], np.float64), np.asarray(frame["scale"], np.float64)
    x_center, x_scale = (np.asarray(statistics[n], np.float64) for n in ("center", "scale"))
    weight = np.zeros((x.shape[1], 6))
    weight[:, :3] = slope * x_scale[:, None] / scale
    offset = ((x_center - exact.mean) @ slope - center) / scale
    log_scale = 0.5 * np.log(np.diagonal(covariance)) - np.log(scale)
    free = 10 * np.arctanh((log_scale + 5) / 10) - 10 * math.atanh(0.5)
    conditioner = guide.local.family.parameters
    conditioner = eqx.tree_at(
        lambda c: (c.offset, c.network.layers[0].weights[0]),
        conditioner,
        (jnp.asarray(np.concatenate([offset, free]), jnp.float32), jnp.asarray(weight, jnp.float32)),
    )
    return joint, eqx.tree_at(lambda g: g.local.family.parameters, guide, conditioner), batch, plan


@pytest.fixture(scope="module")
def at_the_posterior():
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.standard_normal((5, 3)))[0] * [2.0, 1.0, 0.5]
    exact = LinearGaussian(columns, rng.standard_normal(5), 0.7)
    return exact, exact_guide(exact, exact.simulate(rng, 64)[1])


def largest(tree):
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


def test_at_the_exact_posterior_the_path_derivative_vanishes(at_the_posterior):
    exact, (joint, guide, batch, plan) = at_the_posterior
    posterior = am.Posterior(plan, joint, guide, am.Record(64, 0, 64, 0.0, "", 0), None)
    data = {"x": np.asarray(batch.arrays["x"])}
    assert normal_kl(*normals_of(posterior, data), *exact.posterior(data["x"])).max() <= 1e-8
    keys = jax.random.split(jax.random.key(1), 100)
    path = gradients(joint, guide, batch, am.ELBO(), keys, 64)
    plain = gradients(joint, guide, batch, am.ELBO(path_derivative=False), keys, 64)
    print(f"largest gradient at the exact posterior: path {largest(path):.1e}, plain {largest(plain):.2f}")
    assert largest(path) <= 1e-4
    assert largest(plain) > 0.1
    for objective in (am.IWELBO(4), am.Renyi(0.5, 4)):
        weighted = gradients(joint, guide, batch, objective, keys, 64)
        print(f"{objective}: {largest(weighted):.1e}")
        assert largest(weighted) <= 1e-4


def test_at_the_exact_guide_every_log_weight_is_the_evidence(at_the_posterior):
    from amortax.importance import log_weights

    exact, (joint, guide, batch, _) = at_the_posterior
    at = jax.vmap(lambda k, c, u: log_weights(k, guide, joint, c, jnp.zeros(0), u, 100))
    weights = at(jax.random.split(jax.random.key(2), 64), guide.encode(batch), batch)
    worst = np.max(np.abs(weights - exact.log_evidence(batch.arrays["x"])[:, None]))
    print(f"largest error of a log weight {worst:.1e}")
    assert worst <= 1e-4


@pytest.mark.parametrize("head", [am.newton(width=8), am.concatenate()])
def test_both_estimators_have_the_same_mean_off_the_optimum(head):
    rng, count = np.random.default_rng(3), 20_000
    data = {"x": rng.standard_normal((5, 2)).astype(np.float32)}
    small = {"encoder": am.dense(width=6, depth=1), "family": am.full(width=6, depth=1)}
    joint, guide, batch = started(
        am.amortize(hierarchy, data, plate="unit", head=head, **small), data, jax.random.key(4)
    )
    params, rest = split_trainable(joint, guide)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    joint, guide = eqx.combine(jax.tree.unflatten(treedef, moved), rest)
    keys = jax.random.split(jax.random.key(6), count)
    found = [gradients(joint, guide, batch, am.ELBO(path_derivative=path), keys, 50) for path in (True, False)]
    worst = {}
    for (where, path), plain in zip(
        jax.tree_util.tree_leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True
    ):
        difference = np.asarray(path, np.float64) - np.asarray(plain, np.float64)
        error = difference.std(axis=0) / math.sqrt(count)
        score = np.abs(difference.mean(axis=0)) / np.maximum(error, 1e-12 + 1e-6 * np.abs(plain).mean(axis=0))
        worst[jax.tree_util.keystr(where)] = float(score.max())
    print(
        f"{head}: largest difference of the mean gradients in standard errors",
        {n: round(z, 2) for n, z in worst.items()},
    )
    assert any("bias" in name for name in worst)
    assert any("shared" in name for name in worst)
    assert any("encoder" in name for name in worst)
    assert max(worst.values()) <= 5


@pytest.mark.parametrize("narrow", [1.0, 0.3, 0.03])
def test_the_share_of_the_path_derivative_is_the_squared_ratio_of_the_spreads(at_the_posterior, narrow):
    """1 at the posterior; where q is too narrow its score is the smaller noise. Never from a unit's own draw."""
    _, (joint, guide, batch, _) = at_the_posterior
    log_scale = math.log(narrow)
    moved = guide.local.family.parameters.offset[3:]
    scale = 10 * jnp.tanh(moved / 10 + math.atanh(0.5)) - 5 + log_scale
    free = 10 * jnp.arctanh((scale + 5) / 10) - 10 * math.atanh(0.5)
    offset = jnp.concatenate([guide.local.family.parameters.offset[:3], free])
    guide = eqx.tree_at(lambda g: g.local.family.parameters.offset, guide, offset)
    contexts, shared = guide.encode(batch), jnp.zeros(0)
    spacing = 64 // SHARE_UNITS

    def share(other):
        noise = jnp.where(other[:, None], *(guide.local_noise(jax.random.key(k), joint, batch, 64) for k in (8, 7)))
        local, _ = guide.place_locals(noise, 0, contexts, shared, batch, joint)
        _, slope = seen_through_draws(guide, joint, batch, contexts, local, shared)
        return path_share(joint, batch, local, shared, slope)

    turn = (jnp.arange(64) // spacing) % 2
    first, second = jax.jit(share)(jnp.zeros(64, bool)), jax.jit(share)(turn == 0)
    print(f"q {narrow} times as wide: share {first.min():.4f} to {first.max():.4f}, ratio squared {narrow**2:.4f}")
    np.testing.assert_allclose(first, narrow**2, rtol=0.02)
    np.testing.assert_array_equal(first[turn == 0], second[turn == 0])  # a unit's own noise never moves its share
    assert narrow == 1.0 or not np.array_equal(first[turn == 1], second[turn == 1])
