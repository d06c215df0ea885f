"""Is a wrong q(v) made right, and are locals drawn with it? Weights and joint HMC against closed forms."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.families.base import free_log_scale
from amortax.intake import conform, to_batch
from amortax.refine import globals as rungs
from amortax.refine import whole
from amortax.refine.chains import ACCEPTANCE, BLOCK
from amortax.refine.coordinates import coordinates_of, reshaped
from amortax.refine.whole import CHAINS, LEAST_ESS, judged, next_blocks, refusal, shortcoming, whole_draws
from amortax.train.initialise import initialise

PRIOR, SPREAD, NOISE = 10.0, 3.0, 1.0


def centred(x):
    theta = numpyro.sample("theta", dist.Normal(0, PRIOR))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(theta, SPREAD))
        with numpyro.plate("part", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def funnel(x):
    """The spread is a global: frames are as wide as it says."""
    spread = numpyro.sample("spread", dist.HalfNormal(SPREAD))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(4.0, spread))
        with numpyro.plate("part", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def schools(x):
    spread = numpyro.sample("spread", dist.HalfNormal(SPREAD))
    with numpyro.plate("unit", x.shape[0], dim=-3):
        level = numpyro.sample("level", dist.Normal(0.0, spread))
        with numpyro.plate("class", x.shape[1], dim=-2):
            own = numpyro.sample("own", dist.Normal(level, spread))
            with numpyro.plate("pupil", x.shape[2], dim=-1):
                numpyro.sample("x", dist.Normal(own, NOISE), obs=x)


def parts(x):
    """Every part of a unit has a number of its own."""
    spread = numpyro.sample("spread", dist.HalfNormal(SPREAD))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, spread))
        with numpyro.plate("part", x.shape[1], dim=-1):
            own = numpyro.sample("own", dist.Normal(level, spread))
            numpyro.sample("x", dist.Normal(own, NOISE), obs=x)


def simulated():
    """Twenty units of one to thirty measurements, long ones among short ones."""
    rng = np.random.default_rng(0)
    levels, sizes = 4.0 + SPREAD * rng.standard_normal(20), rng.permutation([*range(1, 5)] * 4 + [30, 25, 20, 10])
    return [level + NOISE * rng.standard_normal(n) for level, n in zip(levels, sizes, strict=True)]


def exact(x):
    """(mean, sd) of theta and of every z."""
    count, mean_of = np.array([len(a) for a in x]), np.array([np.mean(a) for a in x])
    precision = 1 / PRIOR**2 + np.sum(1 / (SPREAD**2 + NOISE**2 / count))
    mean, variance = np.sum(mean_of / (SPREAD**2 + NOISE**2 / count)) / precision, 1 / precision
    own = 1 / (1 / SPREAD**2 + count / NOISE**2)
    pull = own / SPREAD**2
    return (mean, math.sqrt(variance)), (
        pull * mean + own * count * mean_of / NOISE**2,
        np.sqrt(own + pull**2 * variance),
    )


def placed(x, shift, scale, head=None):
    """(joint, guide, units): never trained; q(theta) is `shift` exact sds off and `scale` times as wide."""
    plan = am.amortize(centred, {"x": x}, plate="unit", head=head)
    joint, guide = initialise(plan, to_batch(am.units({"x": x}, name="unit")), jax.random.key(0))
    frame = guide.shared.whitening.value
    (mean, sd), _ = exact(x)
    offset = jnp.array([(mean + shift * sd - frame["center"][0]) / frame["scale"][0], 0.0])
    offset = offset.at[1].set(free_log_scale(jnp.log(scale * sd / frame["scale"][0])))
    return joint, eqx.tree_at(lambda g: g.shared.family.parameters.offset, guide, offset), conform({"x": x}, joint)


def agrees(draws, mean, sd, ess):
    """Means and sds within five of their Monte-Carlo standard errors."""
    draws = np.asarray(draws, np.float64)
    off = np.abs(draws.mean(axis=0) - mean) / (sd / math.sqrt(ess))
    spread = np.abs(draws.std(axis=0) / sd - 1) * math.sqrt(2 * ess)
    print(f"worst mean {np.max(off):.1f}, worst sd {np.max(spread):.1f} standard errors, of {ess:.0f} draws")
    return np.max(off) <= 5 and np.max(spread) <= 5


@pytest.mark.parametrize("head", [None, am.concatenate()])
def test_a_wrong_guide_is_made_right(head):
    """Narrow and shifted, with locals that nobody trained; units are in their order though grouped by length."""
    x = simulated()
    joint, guide, units = placed(x, shift=1.0, scale=0.3, head=head)
    found = rungs.repaired_globals(joint, guide, units, num_samples=2000, key=jax.random.key(1))
    print(found.numbers)
    assert found.rung == "hmc"
    assert found.whole.accepted
    ess = min(found.numbers["whole_ess"], 2000)
    of_theta, of_z = exact(x)
    assert agrees(found.shared[:, 0], *of_theta, ess)
    assert agrees(found.whole.local[:, :, 0], *of_z, ess)


def test_a_wide_guide_is_reweighted_and_a_right_one_left():
    x = simulated()
    for scale, rung in ((1.6, "reweight"), (1.0, "encoder")):
        joint, guide, units = placed(x, shift=0.3 * (scale - 1), scale=scale)
        found = rungs.repaired_globals(joint, guide, units, num_samples=2000, key=jax.random.key(1))
        assert found.rung == rung, found.numbers
        assert found.whole is None
        assert agrees(found.shared[:, 0], *exact(x)[0], min(2000, found.numbers["globals_ess"]))


def test_the_density_has_its_jacobian():
    """Of w: log p at the place of w, and the log determinant of the map, up to one constant."""
    rng = np.random.default_rng(0)
    ragged, classes = [rng.normal(size=n) for n in (1, 2, 2)], rng.normal(size=(3, 2, 2))
    for model, x, recipes in (
        (funnel, ragged, {}),
        (funnel, ragged, {"head": am.concatenate()}),
        (schools, classes, {"family": am.nested()}),
    ):
        plan = am.amortize(model, {"x": x}, plate="unit", **recipes)
        joint, guide = initialise(plan, to_batch(am.units({"x": x}, name="unit")), jax.random.key(0))
        units = conform({"x": x}, joint)
        assert_same_density(*coordinates_of(joint, guide, units, 2, jax.random.key(0)), to_batch(units))


def assert_same_density(problem, order, batch):
    def flat(free):
        shared, local = problem.place(free)
        return jnp.concatenate([shared, *map(jnp.ravel, local)])

    @jax.jit
    def by_hand(free):
        shared, local = problem.place(free)
        log_prob = problem.joint.log_prob(jnp.concatenate(local)[order], shared, batch).total()
        return log_prob + jnp.linalg.slogdet(jax.jacobian(flat)(free))[1]

    free = jax.random.normal(jax.random.key(1), (5, problem.size))
    ours, theirs = jax.vmap(jax.jit(lambda w: problem.log_density(w)))(free), jax.vmap(by_hand)(free)
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=2e-3)


def test_padding_that_stands_still_is_not_judged():
    """Schools of one to three classes: numbers of classes that a school does not have never move."""
    x = [np.random.default_rng(n).normal(size=n) for n in (1, 3, 2)]
    plan = am.amortize(parts, {"x": x}, plate="unit")
    joint, guide = initialise(plan, to_batch(am.units({"x": x}, name="unit")), jax.random.key(0))
    problem, _ = coordinates_of(joint, guide, conform({"x": x}, joint), 2, jax.random.key(0))
    shared, local = jax.vmap(problem.place)(jax.random.normal(jax.random.key(1), (20, problem.size)))
    moves = np.ptp(np.concatenate([shared, *(p.reshape(20, -1) for p in local)], axis=1), axis=0) > 0
    assert problem.own().sum() == 1 + (1 + 1) + (1 + 3) + (1 + 2)
    np.testing.assert_array_equal(problem.own(), moves)


def test_pieces_change_nothing():
    x = simulated()
    joint, guide, units = placed(x, shift=0.0, scale=1.0)
    problem, _ = coordinates_of(joint, guide, units, 2, jax.random.key(0))
    free = jax.random.normal(jax.random.key(1), (problem.size,))
    both = [dataclasses.replace(problem, pieces=n) for n in (1, 3)]
    whole, parts = (eqx.filter_jit(lambda p, w: jax.value_and_grad(p.log_density)(w))(p, free) for p in both)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-4, atol=1e-4)


def test_what_is_not_good_enough_says_so():
    assert shortcoming(1.001, 1000.0, 0.0) == ""
    assert "not finite" in shortcoming(math.nan, 1000.0, 0.0)
    assert "R-hat 1.200" in shortcoming(1.2, 1000.0, 0.0)
    assert "effective size is 399" in shortcoming(1.001, LEAST_ESS - 1, 0.0)
    assert "2.0% of trajectories diverged" in shortcoming(1.001, 1000.0, 0.02)
    assert next_blocks(4, 500.0, 1000.0, 1.0) == 10
    assert next_blocks(4, 3000.0, 1000.0, 1.1) == 6
    assert next_blocks(4, 0.0, 1000.0, 1.0) == 8


def test_chains_that_disagree_or_stand_are_seen():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4 * BLOCK, CHAINS, 3)).astype(np.float32)
    rhat, ess = judged(draws)
    assert rhat < 1.01
    assert ess > 2000
    apart = draws.copy()
    apart[:, 0, 1] += 3.0
    assert judged(apart)[0] > 1.02
    still = draws.copy()
    still[:, :, 2] = 1.0
    rhat, ess = judged(still)
    assert "not finite" in shortcoming(rhat, ess, 0.0)


def test_no_time_and_too_many_numbers_are_told():
    x = simulated()
    joint, guide, units = placed(x, shift=1.0, scale=0.3)
    found = rungs.repaired_globals(joint, guide, units, num_samples=50, key=jax.random.key(1), seconds=0.0)
    assert found.rung == "fail"
    assert "0 s ended" in found.reason or "s ended while" in found.reason
    assert found.shared.shape == (50, 1)
    many = units.take(np.zeros(10_000, int))
    assert "10001 numbers together" in refusal(joint, guide, many)
    assert whole_draws(joint, guide, many, key=jax.random.key(0)).local.shape == (0, 10_000, 1)


def test_a_second_attempt_is_made_where_the_first_is_too_short(monkeypatch):
    """And is exact; draws of the first place the globals."""
    monkeypatch.setattr(whole, "FIRST_BLOCKS", 1)
    shapes = []

    def seen(problem, shared):
        shapes.append(shared.shape)
        return reshaped(problem, shared)

    monkeypatch.setattr(whole, "reshaped", seen)
    x = simulated()
    joint, guide, units = placed(x, shift=1.0, scale=0.3)
    found = whole_draws(joint, guide, units, key=jax.random.key(1))
    assert shapes == [(BLOCK * CHAINS, 1)]
    assert found.accepted
    assert found.acceptance > ACCEPTANCE
    of_theta, of_z = exact(x)
    ess = min(found.ess_min, len(found.shared))
    assert agrees(found.shared[:, 0], *of_theta, ess)
    assert agrees(found.local[:, :, 0], *of_z, ess)


def test_what_places_globals_changes_no_density():
    x = simulated()
    joint, guide, units = placed(x, shift=1.0, scale=0.3)
    problem, order = coordinates_of(joint, guide, units, 2, jax.random.key(0))
    draws = 3.0 + 2.0 * np.random.default_rng(0).standard_normal((500, 1))
    again = reshaped(problem, draws)
    np.testing.assert_allclose(again.factor[0, 0], draws.std(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(again.center, draws.mean(axis=0), rtol=1e-5)
    assert_same_density(again, order, to_batch(units))
    assert reshaped(problem, draws[:2]) is problem


@pytest.mark.parametrize(
    ("k", "ess", "draws", "error", "rung", "rounds", "fallback"),
    [
        (0.1, 1995.0, 2000.0, 0.0, "encoder", 1, "reweight"),
        (0.2, 1500.0, 2000.0, 0.0, "reweight", 4, "reweight"),
        (0.2, 200.0, 2000.0, 0.0, "hmc", 6, "fail"),
        (0.4, 1500.0, 2000.0, 0.0, "hmc", 1, "reweight"),  # a tail: sds would be short
        (0.9, 1500.0, 2000.0, 0.0, "hmc", 1, "fail"),
        (0.2, 1500.0, 2000.0, 0.7, "hmc", 1, "fail"),
        (math.nan, math.nan, 2000.0, 0.0, "hmc", 1, "fail"),
    ],
)
def test_weights_with_a_tail_are_the_last_resort(k, ess, draws, error, rung, rounds, fallback):
    names = ("pareto_k", "ess", "draws", "error_nats", "k_limit")
    numbers = {f"globals_{n}": x for n, x in zip(names, (k, ess, draws, error, 0.7), strict=True)}
    assert rungs.weighted_rung(numbers) == rung
    assert rungs.rounds_needed(numbers) == rounds
    assert rungs.fallback_rung(numbers) == fallback
