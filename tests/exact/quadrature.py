"""What do objectives come to by quadrature? Small models, guides moved off their start, losses over many keys."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.train.initialise import initialise
from amortax.train.step import split_trainable

SPREAD, NOISE, NUM_UNITS = 1.5, 0.6, 6
X = np.array([-1.2, 0.4, 2.1], np.float32)


def alone(x):
    """No globals; decoder, prior and noise learned."""
    mean = numpyro.param("mean", jnp.array(0.3))
    spread = numpyro.param("spread", SPREAD, constraint=dist.constraints.positive)
    slope = numpyro.param("slope", jnp.array(0.8))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, spread))
        numpyro.sample("x", dist.Normal(slope * z, NOISE), obs=x)


def grouped(x):
    """One global, on which prior and likelihood depend, and learned numbers in both."""
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    spread = numpyro.param("spread", SPREAD, constraint=dist.constraints.positive)
    slope = numpyro.param("slope", jnp.array(0.8))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, spread))
        numpyro.sample("x", dist.Normal(slope * z + 0.5 * level, NOISE), obs=x)


def started(model, *, move=0.1, **recipes):
    """(joint, guide, batch) with every number of it moved off its start, so that none of its gradients is 0."""
    data = {"x": X}
    small = {"encoder": am.dense(width=4, depth=1), "family": am.diagonal(width=4, depth=1), **recipes}
    plan = am.amortize(model, data, plate="unit", **small)
    batch = to_batch(as_units(data, plan.model, "unit"))
    params, rest = split_trainable(*initialise(plan, batch, jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + move * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return *eqx.combine(jax.tree.unflatten(treedef, moved), rest), jax.tree.map(jnp.asarray, batch)


def quadrature(count):
    """Evenly spaced nodes of a standard normal: the bounds are not smooth enough for Gauss-Hermite."""
    nodes = np.linspace(-5.5, 5.5, count)
    weights = np.exp(-0.5 * nodes**2)
    return jnp.asarray(nodes, jnp.float32), jnp.asarray(weights / weights.sum(), jnp.float32)


def loss_of(objective, joint, guide, batch):
    params, rest = split_trainable(joint, guide)
    minibatch = Minibatch((batch,), jnp.asarray(float(NUM_UNITS)), jnp.zeros((), jnp.int32))

    def loss(params, key):
        joint, guide = eqx.combine(params, rest)
        return objective(key, guide, joint, minibatch).value

    return params, rest, loss


def mean_gradients(objective, joint, guide, batch, seed, count):
    """(losses, gradients), each with a leading axis of `count` keys."""
    params, _, loss = loss_of(objective, joint, guide, batch)
    keys = jax.random.split(jax.random.key(seed), count)
    step = jax.value_and_grad(loss)
    return jax.jit(lambda keys: jax.lax.map(lambda k: step(params, k), keys, batch_size=500))(keys)


def worst_score(found, expected):
    """Largest distance of a mean from what is expected, in standard errors (of float32 rounding where that is more)."""
    scores = {}
    for (where, each), exact in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        each, exact = np.asarray(each, np.float64), np.asarray(exact, np.float64)
        error = each.std(axis=0) / math.sqrt(len(each)) + 2e-5 * np.maximum(np.abs(each).mean(axis=0), 1e-2)
        scores[jax.tree_util.keystr(where)] = float(np.max(np.abs(each.mean(axis=0) - exact) / error))
    return scores
