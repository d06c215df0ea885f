"""Units with parameters of their own: exact posteriors, exact gaps, and steps that touch their own rows alone."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of, shared_normal

import amortax as am
from amortax._types import Batch
from amortax.joint.joint import Joint
from amortax.train import minibatches, run
from amortax.train.rows import adam_by_row, gather, scatter

RNG = np.random.default_rng(0)
EXACT = LinearGaussian(RNG.standard_normal((6, 2)).astype(np.float32), RNG.standard_normal(6).astype(np.float32), 1.5)
DATA = {"x": EXACT.simulate(RNG, 200)[1]}


def linear(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ EXACT.weight.T + EXACT.mean, EXACT.noise).to_event(1), obs=x)


@functools.cache
def fitted(num_steps=1000, batch_size=None, **recipes):
    plan = am.amortize(linear, DATA, plate="unit", **{"encoder": am.free(), **recipes})
    return am.fit(plan, DATA, key=jax.random.key(0), num_steps=num_steps, batch_size=batch_size)


def kl_of(posterior):
    return normal_kl(*normals_of(posterior, DATA), *EXACT.posterior(DATA["x"]))


def test_full_normals_are_the_exact_posteriors():
    kl = kl_of(fitted())
    print(f"free, full: KL mean {kl.mean():.1e}, largest {kl.max():.1e}")
    assert kl.mean() < 1e-3
    assert kl.max() < 1e-2


def test_diagonal_normals_are_the_best_there_are():
    posterior = fitted(family=am.diagonal())
    excess = kl_of(posterior) - EXACT.diagonal_gap
    _, covariance = normals_of(posterior, DATA)
    sd, best = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), 1 / np.sqrt(np.diagonal(EXACT.precision))
    print(f"free, diagonal: KL {EXACT.diagonal_gap:.4f} + {excess.mean():.1e}, sd ratio {(sd / best).mean():.4f}")
    assert EXACT.diagonal_gap > 0.05  # there is something to miss
    assert excess.min() > -1e-4
    assert excess.mean() < 3e-3
    assert abs((sd / best).mean() - 1) < 0.01


@pytest.mark.parametrize("resident", [True, False])
def test_a_minibatch_touches_only_the_rows_of_its_units(monkeypatch, resident):
    if not resident:
        monkeypatch.setattr(run, "RESIDENT_BYTES", 0)
    plan = am.amortize(linear, DATA, plate="unit", encoder=am.free())
    posterior = am.fit(plan, DATA, key=jax.random.key(0), num_steps=2, batch_size=60)
    rows, start = posterior.encode(DATA), np.asarray(plan.build(jax.random.key(0)).encoder.own_rows)
    moved = np.any(rows != start, axis=1)
    assert moved.sum() == 2 * 60
    assert np.all(rows[~moved] == start[~moved])


def test_no_unit_is_twice_in_a_step():
    """Passes of 200 in steps of 60 would share steps: of one row written twice, one update is lost."""
    batch = Batch({"x": np.zeros(200)}, {}, {}, rows=np.arange(200))
    steps = np.asarray(next(minibatches.sources(batch, 60, True, np.random.default_rng(0))))
    assert steps.shape == (100, 60)
    assert all(len(np.unique(step)) == 60 for step in steps)
    assert np.bincount(steps.ravel(), minlength=200).min() > 20


def test_minibatches_reach_the_exact_posteriors_too():
    kl = kl_of(fitted(num_steps=1500, batch_size=60))  # of 200: each pass leaves 20 units out
    print(f"free, full, minibatches: KL mean {kl.mean():.1e}, largest {kl.max():.1e}")
    assert kl.mean() < 5e-3


def test_each_row_has_the_adam_of_its_own_visits():
    """A row's path is that of Adam run on the row alone: neither other rows nor the steps that leave it out count."""
    rng, count, steps = np.random.default_rng(1), 6, 12
    chosen = [rng.permutation(count)[:3] for _ in range(steps)]
    gradients = rng.standard_normal((steps, 3, 4)).astype(np.float32)
    optimizer = adam_by_row(0.9)

    class Params(eqx.Module):
        own_rows: jax.Array

    params = Params(jnp.zeros((count, 4)))
    state = optimizer.init(params)
    for rows, gradient in zip(chosen, gradients, strict=True):
        part, part_state = gather((params, state), jnp.asarray(rows))
        updates, part_state = optimizer.update(Params(jnp.asarray(gradient)), part_state, part)
        params, state = scatter((params, state), (optax.apply_updates(part, updates), part_state), jnp.asarray(rows))
    alone = optax.scale_by_adam(b1=0.9, b2=0.9)
    for row in range(count):
        own, own_state = jnp.zeros(4), alone.init(jnp.zeros(4))
        for rows, gradient in zip(chosen, gradients, strict=True):
            for place in np.flatnonzero(rows == row):
                update, own_state = alone.update(jnp.asarray(gradient[place]), own_state)
                own = own + update
        np.testing.assert_allclose(params.own_rows[row], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", [am.dense(), am.dense(width=1, depth=1)], ids=["able", "weak"])
def test_the_amortization_gap_is_the_difference_of_exact_divergences(encoder, capsys):
    free, amortized = fitted(), fitted(encoder=encoder)
    found = am.compare(free, amortized, DATA, key=jax.random.key(3), num_samples=2000)
    assert str(found) in capsys.readouterr().out
    print(found)
    own, shared = found.costs
    assert (own.name, own.num_parameters, own.parameter_bytes) == ("free", 200 * 5, 4 * 200 * 5)
    assert (shared.name, shared.seconds, shared.num_steps) == ("dense", amortized.record.seconds, 1000)
    assert found.units["unit"].tolist() == list(range(200))
    expected = kl_of(amortized) - kl_of(free)
    assert abs(found.gap - expected.mean()) < 5 * found.gap_se + 1e-5  # float32 of log densities near 10
    off = (found.units["gap"] - expected) / (5 * found.units["gap_se"] + 1e-4)
    assert np.abs(off).max() < 1
    if encoder == am.dense():
        assert abs(found.gap) < 0.02
    else:
        assert found.gap > 0.1
        assert found.gap > 20 * found.gap_se


SPREAD, NOISE = 3.0, 1.0


def hierarchy(x):
    theta = numpyro.sample("theta", dist.Normal(0, 10.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(theta, SPREAD))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


@pytest.mark.parametrize(("count", "batch_size"), [(50, None), (5000, 500)])
def test_units_of_their_own_follow_the_globals(count, batch_size):
    """The exact sd of theta and slope of E[z | theta]; weights of the units' own on theta would narrow it tenfold."""
    x = (4.0 + 3.2 * np.random.default_rng(2).standard_normal(count)).astype(np.float32)
    plan = am.amortize(hierarchy, {"x": x}, plate="unit", encoder=am.free())
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), num_steps=1500, batch_size=batch_size)
    precision = 1 / 10.0**2 + len(x) / (SPREAD**2 + NOISE**2)
    expected, sd = x.sum(dtype=np.float64) / (SPREAD**2 + NOISE**2) / precision, precision**-0.5
    mean, covariance = shared_normal(posterior)
    print(f"theta: sd ratio {np.sqrt(covariance[0, 0]) / sd:.4f}, mean off by {(mean[0] - expected) / sd:+.4f} sd")
    assert 0.97 < np.sqrt(covariance[0, 0]) / sd < 1.03
    assert abs(mean[0] - expected) < 0.1 * sd
    local = 1 / (1 / SPREAD**2 + 1 / NOISE**2)
    for theta in (expected - 2 * sd, expected, expected + 2 * sd):
        exact = local * (theta / SPREAD**2 + x[:, None].astype(np.float64) / NOISE**2)
        kl = normal_kl(*normals_of(posterior, {"x": x}, [theta]), exact, np.full((1, 1), local))
        print(f"z given theta = {theta:.2f}: KL mean {kl.mean():.1e}, largest {kl.max():.1e}")
        assert kl.mean() < 1e-3


def test_fits_in_different_places_are_not_given_as_an_amortization_gap(capsys):
    """Each answers well at its own globals and badly at the other's, which neither bound nor gap may hide."""
    x = (3.2 * np.random.default_rng(2).standard_normal(60)).astype(np.float32)
    here, there = (
        am.fit(
            am.amortize(hierarchy, {"x": values}, plate="unit", head=am.concatenate()),
            {"x": values},
            key=jax.random.key(0),
            num_steps=600,
        )
        for values in (x, x + 25.0)
    )
    found = am.compare(here, there, {"x": x}, key=jax.random.key(1), num_samples=200)
    assert found.apart
    assert "WARN: the globals of the two are apart" in capsys.readouterr().out
    given = dist.Normal(0.0, np.sqrt(SPREAD**2 + NOISE**2))
    evidence = np.asarray(given.log_prob(jnp.asarray(x)))  # at theta = 0
    assert abs(np.mean(found.units["elbo_first"] - evidence)) < 0.1
    assert found.gap_at[0] > 1.0
    same = am.compare(here, here, {"x": x}, key=jax.random.key(1), num_samples=200)
    assert not same.apart
    assert same.gap == 0.0
    assert "WARN" not in capsys.readouterr().out


def counts(y):
    theta = numpyro.sample("theta", dist.Normal(0, 1.0))
    with numpyro.plate("unit", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(theta, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)


def test_the_newton_step_starts_at_the_units_own_point():
    data = {"y": np.array([3, 5])}
    plan = am.amortize(counts, data, plate="unit", encoder=am.free())
    guide, joint = plan.build(jax.random.key(0)), Joint(counts, plan.structure, {})
    theta, unit = 0.4, Batch({"y": jnp.asarray(3)}, {}, {}, rows=jnp.asarray(0))
    row = jnp.zeros_like(guide.encoder.own_rows[0])
    for point in (0.5, 1.0):
        frame, _ = guide.frame_given((row.at[0].set(point),), jnp.array([theta]), unit, joint)
        precision = 1 + np.exp(point)
        step = (theta - point + 3 - np.exp(point)) / precision
        np.testing.assert_allclose(frame.center, [point + step], rtol=1e-5)
        np.testing.assert_allclose(frame.factor, [precision**-0.5], rtol=1e-5)


def ragged(y):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("value", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, 1), obs=y)


def test_units_grouped_by_length_keep_their_rows():
    rng = np.random.default_rng(3)
    counts = rng.permutation(np.repeat([2, 30, 90], 10))
    rows = [(rng.standard_normal() + rng.standard_normal(n)).astype(np.float32) for n in counts]
    units = am.units({"y": rows}, labels=[f"unit {n}" for n in rng.permutation(30)], name="unit")
    plan = am.amortize(ragged, units, plate="unit", encoder=am.free())
    posterior = am.fit(plan, units, key=jax.random.key(0), num_steps=700)
    exact = np.array([[y.sum() / (len(y) + 1)] for y in rows]), 1 / (counts[:, None, None] + 1.0)
    kl = normal_kl(*normals_of(posterior, units), *exact)
    print(f"ragged: KL mean {kl.mean():.1e}, largest {kl.max():.1e}")
    assert kl.max() < 1e-3
