"""Is every number drawn anew? Across steps, units, sites, particles and draws: a fault that no other check sees."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.objectives.base import AbstractObjective, Loss, Minibatch
from amortax.objectives.estimators import local_draws, mean_bound
from amortax.train.initialise import initialise


def model(x):
    level = numpyro.sample("level", dist.Normal(0, 1))
    with numpyro.plate("unit", x.shape[0]):
        first = numpyro.sample("first", dist.Normal(level, 1))
        second = numpyro.sample("second", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(first + 0.1 * second, 1.0), obs=x)


@pytest.fixture(scope="module")
def built():
    data = {"x": np.zeros(6, np.float32)}  # equal units: equal noise would give equal draws
    plan = am.amortize(model, data, plate="unit")
    batch = to_batch(as_units(data, plan.model, "unit"))
    return (*initialise(plan, batch, jax.random.key(0)), jax.tree.map(jnp.asarray, batch), plan, data)


def uncorrelated(columns):
    """Every pair of columns (draws, variables): |r| within 5 standard errors; hardly a value twice."""
    count = len(columns)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.max(np.abs(correlation)) <= 5 / math.sqrt(count)
    assert len(np.unique(columns)) >= 0.98 * columns.size


def test_units_sites_and_globals_draw_apart(built):
    """Those that training draws, for one particle; locals are placed at the same globals, which they would follow."""
    joint, guide, batch, *_ = built
    minibatch = Minibatch((batch,), jnp.asarray(6.0), jnp.zeros((), jnp.int32))

    def draw(key):
        seen = []

        def units(key, batch, context, shared):
            draws = local_draws(key, guide, joint, batch, context, jnp.zeros(1))
            seen.append(jnp.concatenate([shared, jnp.ravel(draws.local)]))
            return draws.elbo, draws.log_prior

        mean_bound(key, guide, minibatch, units, count=1, path_derivative=False)
        return seen[0]

    columns = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000)), np.float64)
    frame = columns.mean(axis=0), columns.std(axis=0)
    uncorrelated_sites = (columns - frame[0]) / frame[1]
    local = uncorrelated_sites[:, 1:].reshape(4000, 6, 2)
    root = np.linalg.cholesky(np.cov(local[:, 0].T))  # the two sites of a unit are correlated by the posterior itself
    apart = np.linalg.solve(root, local.reshape(-1, 2).T).T.reshape(4000, 12)
    uncorrelated(np.concatenate([uncorrelated_sites[:, :1], apart], axis=1))


def test_particles_draw_apart_but_for_mirrored_globals(built):
    """Pairs of particles share the size of the globals' noise, on opposite sides; nothing else is shared."""
    joint, guide, batch, *_ = built
    seen, minibatch = [], Minibatch((batch,), jnp.asarray(6.0), jnp.zeros((), jnp.int32))

    def spy(key, guide, joint, batch, context, shared, **options):
        jax.debug.callback(
            lambda key, v: seen.append((*np.ravel(key).tolist(), float(v[0]))), jax.random.key_data(key), shared
        )
        return local_draws(key, guide, joint, batch, context, shared, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amortax.objectives.elbo.local_draws", spy)
        for step in (2, 3):
            am.ELBO(num_particles=4)(jax.random.key(step), guide, joint, minibatch)
        jax.effects_barrier()
    assert len(seen) == 8
    assert len({key for *key, _ in map(tuple, seen) for key in [tuple(key)]}) == 8
    middle = float(guide.place_shared(jnp.zeros(1), 0)[0][0])
    away = sorted((v - middle for *_, v in seen), key=abs)
    np.testing.assert_allclose(away[::2], [-x for x in away[1::2]], rtol=1e-4)
    assert np.all(np.diff(np.abs(away[::2])) > 1e-3)


class Noise(AbstractObjective):
    """Reports its own key as a number."""

    num_particles: int = 1

    trains_all: ClassVar[bool] = True
    teaches_labels: ClassVar[bool] = False
    needs_all_units: ClassVar[bool] = False
    bias: ClassVar[str] = ""

    def check(self, structure):
        """Any model."""

    def is_settled(self, step):
        return True

    def __call__(self, key, guide, joint, minibatch):
        still = sum(0.0 * jnp.sum(x) for x in jax.tree.leaves(joint.params)) + 0.0 * jnp.sum(
            guide.shared.family.parameters.offset
        )
        number = jax.random.normal(key)
        return Loss(still + number, number)


def test_steps_draw_apart(built):
    from amortax.train.schedule import adam
    from amortax.train.step import Setting, State, run_block, split_trainable

    joint, guide, batch, *_ = built
    params, rest = split_trainable(joint, guide)
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    setting = Setting(rest, Noise(), adam(), (batch,), jnp.asarray(6.0))
    state = State(params, adam().init(params), jax.random.key(3), jnp.zeros((), jnp.int32))
    found = []
    for _ in range(2):
        state, result = run_block((setting, jnp.zeros((100, 0), jnp.int32), jnp.asarray(100)), state)
        found.append(np.asarray(result.elbo_per_unit))
    steps = np.concatenate(found)
    assert len(np.unique(steps)) == 200
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) <= 5 / math.sqrt(199)
    assert abs(steps.mean()) <= 5 / math.sqrt(200)


def test_the_draws_of_a_posterior_draw_apart(built):
    joint, guide, _, plan, data = built
    posterior = am.Posterior(plan, joint, guide, am.Record(6, 0, 6, 0.0, "", 0), None)
    draws = posterior.sample(data, num_samples=3000, key=jax.random.key(4))
    level = np.asarray(draws["level"], np.float64)
    uncorrelated(np.stack([level, np.random.default_rng(5).standard_normal(3000)], axis=1))
    second = np.asarray(draws["second"], np.float64)
    assert len(np.unique(second)) >= 0.98 * second.size
    correlation = np.corrcoef(second.T) - np.eye(6)
    assert np.max(np.abs(correlation)) <= 5 / math.sqrt(3000) + 0.3  # the globals' own share; equal noise would give 1
