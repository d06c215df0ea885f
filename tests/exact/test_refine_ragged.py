"""Are units with fewer elements repaired as others are, whatever stands in their padding? What when time is up?"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.chunks import chunks
from amortax.intake import as_units, to_batch
from amortax.refine import judge, reweight
from amortax.refine.ladder import Group, Ladder, _located
from amortax.refine.own import encoded
from amortax.refine.rungs import standing
from amortax.refine.target import Target
from amortax.train.initialise import initialise

DRAWS = 2000


def school(y):
    with numpyro.plate("school", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("class", y.shape[1], dim=-1):
            own = numpyro.sample("own", dist.Normal(level, 1.0))
            numpyro.sample("y", dist.Normal(own, 1.0), obs=y)


def exact(y):
    """Means and sds of (level, own) given one school's y."""
    n = len(y)
    precision = np.diag([1.0 + n, *[2.0] * n])
    precision[0, 1:] = precision[1:, 0] = -1.0
    covariance = np.linalg.inv(precision)
    return covariance @ np.r_[0.0, y], np.sqrt(np.diag(covariance))


@pytest.fixture(scope="module")
def judged():
    """(target, batch, units judged); the Newton frame makes q exact before any training."""
    y = [np.random.default_rng(n).normal(1.0, 1.5, n).astype(np.float32) for n in (1, 2, 4, 8)]
    plan = am.amortize(school, {"y": y}, plate="school")
    units = as_units({"y": y}, plan.model, "school")
    target = Target(*initialise(plan, to_batch(units), jax.random.key(0)))
    (chunk,) = chunks(units, target.joint.structure, DRAWS)
    own, at = encoded(target, chunk.batch), jnp.zeros((1, 0))
    found = judge.judged(jax.random.key(1), target, own, at, chunk.batch, chunk.index, DRAWS)
    group = Group(np.arange(4), _located(own, found), found, standing(found.numbers, found.own, DRAWS))
    return target, chunk, units, group


def test_draws_of_padding_are_of_the_density_that_they_have(judged):
    target, chunk, _, group = judged
    unit, own = (jax.tree.map(lambda x: x[0], tree) for tree in (chunk.batch, group.own))
    keys = jax.random.split(jax.random.key(2), DRAWS)
    local, log_q = jax.vmap(lambda k: target.draw(k, own.context, jnp.zeros(0), unit))(keys)
    again = jax.vmap(lambda u: target.guide_log_prob(u, own.context, jnp.zeros(0), unit))(local)
    np.testing.assert_allclose(log_q, again, rtol=1e-5, atol=1e-4)
    free = np.asarray(jax.vmap(target.prior_frame(unit).take)(local))[:, np.asarray(target.padding(unit))]
    assert free.shape[1] == 7
    assert np.all(np.abs(free.mean(axis=0)) < 5 / np.sqrt(DRAWS))
    assert np.all(np.abs(free.std(axis=0) - 1.0) < 5 / np.sqrt(2 * DRAWS))


def test_reweighted_units_of_any_size_have_their_exact_posterior(judged):
    target, chunk, units, group = judged
    at = jnp.zeros((1, 0))
    draws = reweight.resampled(jax.random.key(3), target, group.own, at, chunk.batch, chunk.index, DRAWS, 16)
    for length, values, local in zip(units.lengths["y"], units.arrays["y"], np.asarray(draws), strict=False):
        mean, sd = exact(values[:length])
        found = local[:, : len(mean)]  # the level, then its classes
        assert np.all(np.abs(found.mean(axis=0) - mean) < 5 * sd / np.sqrt(DRAWS))
        assert np.all(np.abs(found.std(axis=0) / sd - 1.0) < 5 / np.sqrt(2 * DRAWS))


def test_a_unit_that_passes_has_its_draws_though_the_time_is_up(judged):
    """The time ends between the judgement of a unit's own q and its draws: PASS is not said of the encoder's."""
    target, _, units, group = judged
    ladder = Ladder(target, units, jnp.zeros((1, 0)), num_samples=20, key=jax.random.key(4), exact=False)
    ladder.until = 0.0
    thin = group.stands._replace(gap=np.array([0.0, 0.0, 1.0, 1.0]))  # the last two would be reweighted
    ladder._finish(Group(group.units, group.own, group.judgement, thin), "own")
    assert list(ladder.verdict) == ["PASS", "PASS", "FAIL", "FAIL"]
    assert list(ladder.rung) == ["own"] * 4
    assert sorted(ladder.draws) == [0, 1, 2, 3]
