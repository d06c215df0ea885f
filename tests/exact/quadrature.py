"""What do objectives come to by quadrature? Small models, guides moved off their start, losses over many keys."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am
from amortax._types import Terms
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


def exact_bound(guide, joint, batch, alpha, particles, in_guide=None):
    """The bound per unit by quadrature over the noise of v and of each of 1 or 2 draws of every unit.

    `in_guide` stands for the joint where q sees it.
    """
    nodes, weights = quadrature(64)
    at_shared, of_shared = quadrature(32) if guide.shared is not None else (jnp.zeros(1), jnp.ones(1))
    contexts = guide.encode(batch)

    def given(noise):
        shared, log_shared = guide.place_shared(noise[None] if guide.shared is not None else jnp.zeros(0), 0)

        def log_weight(noise):
            noise = jnp.full((len(X), 1), noise)
            local, log_q = guide.place_locals(noise, 0, contexts, shared, batch, in_guide or joint)
            log_p = joint.log_prob(local, shared, batch)
            return log_p.unit - log_q, log_p.shared

        each, log_prior = jax.vmap(log_weight, out_axes=(0, None))(nodes)  # (nodes, units)
        first, second = each[:, None], each[None] if particles == 2 else each[:, None]
        if alpha == 1.0:
            value = 0.5 * (first + second)
        else:
            value = (jnp.logaddexp((1 - alpha) * first, (1 - alpha) * second) - math.log(2)) / (1 - alpha)
        mass = weights[:, None] * weights[None] if particles == 2 else weights[:, None]
        unit = jnp.sum(mass[..., None] * value, axis=(0, 1))
        return Terms(unit, log_prior - log_shared).total(NUM_UNITS / len(X)) / NUM_UNITS

    return jnp.sum(of_shared * jax.vmap(given)(at_shared))


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
