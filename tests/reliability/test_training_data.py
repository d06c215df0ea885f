"""What training reads, when it stops, and what it keeps: groups, blocks of rows, plateaus, held-out units."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from test_training import (  # noqa: F401
    DATA,
    X,
    fit,
    learned,
    numbers,
    plan,
    same,
    small_blocks,
    states,
)

import amortax as am
from amortax import fitting
from amortax._types import Batch
from amortax.intake import as_units, to_batch
from amortax.train import minibatches
from amortax.train import run as engine
from amortax.train.groups import MOST_GROUPS, by_length
from amortax.train.initialise import initialise
from amortax.train.schedule import FACTORS, WINDOW, Schedule, adam, diverges, rises, set_step_size
from amortax.train.step import split_trainable

# Rows


@pytest.mark.parametrize(("resident", "batch_size"), [(True, 3), (False, 3), (False, 7)])
def test_every_unit_is_visited_equally_often(resident, batch_size):
    data = Batch({"row": np.arange(7)}, {}, {})
    source = minibatches.sources(data, batch_size, resident, np.random.default_rng(0))
    blocks = [next(source) for _ in range(7)]  # 7 blocks of 10 steps of 3: 30 epochs of 7
    visits = np.concatenate([np.ravel(b if resident else b.arrays["row"]) for b in blocks])
    epochs = visits.reshape(-1, 7)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(7), (10 * batch_size, 1)))
    assert not np.array_equal(epochs[0], epochs[1])


def test_blocks_of_data_that_stays_on_the_host_are_bounded_in_bytes(monkeypatch):
    data = Batch({"row": np.zeros((7, 100), np.float32)}, {}, {})
    monkeypatch.setattr(minibatches, "BLOCK_BYTES", 5000)
    block = next(minibatches.sources(data, 3, False, np.random.default_rng(0)))
    assert block.arrays["row"].shape == (4, 3, 100)  # 4,800 bytes; a whole block of 10 steps has 12,000
    assert fit(num_steps=25, batch_size=7).record.num_steps == 25
    monkeypatch.setattr(engine, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(minibatches, "BLOCK_BYTES", 300)
    assert fit(num_steps=25, batch_size=7).record.step[:2] == (3, 6)


def test_data_too_large_for_the_device_trains_the_same_way(monkeypatch):
    inside = fit(num_steps=30, batch_size=7)
    monkeypatch.setattr(engine, "RESIDENT_BYTES", 0)
    outside = fit(num_steps=30, batch_size=7)
    for left, right in zip(numbers(inside), numbers(outside), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def ragged(x):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(mu, 2))
        with numpyro.plate("item", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z, 1), obs=x)


def test_groups_by_length_hold_every_unit_once_and_less_padding():
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(0, 6, 30), [60, 58, 20, 200]])
    rows = {"x": [np.full(n, i, np.float32) for i, n in enumerate(lengths)]}
    data = to_batch(am.units(rows))
    groups = by_length(data)
    assert 1 < len(groups) <= MOST_GROUPS
    found = {}
    for group in groups:
        assert group.arrays["x"].shape == group.masks["x"].shape
        for x, mask, length in zip(group.arrays["x"], group.masks["x"], group.lengths["x"], strict=True):
            assert mask.sum() == length
            if length:
                assert x[0] not in found
                found[x[0]] = x[mask]
    for i, n in enumerate(lengths):
        if n:
            np.testing.assert_array_equal(found[i], np.full(n, i))
    assert sum(len(group.lengths["x"]) for group in groups) == len(lengths)
    assert sum(group.arrays["x"].size for group in groups) < 0.5 * data.arrays["x"].size
    assert (
        by_length(Batch({"x": X}, {}, {})) == (Batch({"x": X}, {}, {}),) or len(by_length(Batch({"x": X}, {}, {}))) == 1
    )


def test_grouped_units_have_the_terms_that_they_have_together():
    rng = np.random.default_rng(2)
    data = {"x": [rng.standard_normal(n).astype(np.float32) for n in (1, 2, 2, 3, 1, 40)]}
    ready = am.amortize(ragged, data, plate="unit", encoder=am.deep_set(width=8, depth=1), head=am.concatenate())
    batch = to_batch(as_units(data, ragged, "unit"))
    joint, guide = initialise(ready, batch, jax.random.key(0))
    local, shared = jnp.linspace(-1, 1, 6)[:, None], jnp.asarray([0.3])

    @eqx.filter_jit
    def terms(batch, local):
        log_q = guide.locals_log_prob(local, guide.encode(batch), shared, batch, joint)
        log_p = joint.log_prob(local, shared, batch)
        return log_p.unit - log_q, log_p.shared

    together, prior = terms(jax.tree.map(jnp.asarray, batch), local)
    groups = by_length(batch)
    assert len(groups) > 1
    for group in groups:
        rows = [
            next(i for i in range(6) if len(data["x"][i]) == n and data["x"][i][0] == x[0])
            for n, x in zip(group.lengths["x"], group.arrays["x"], strict=True)
        ]
        unit, again = terms(jax.tree.map(jnp.asarray, group), local[jnp.asarray(rows)])
        np.testing.assert_allclose(unit, together[jnp.asarray(rows)], rtol=1e-5, atol=1e-5)
        assert again == prior


# What is kept


def judged(monkeypatch, values, *, start=(float("-inf"),)):
    """Held-out bounds in the order in which they are asked for, first that of the start; the last repeats."""
    left = [*start, *values]
    monkeypatch.setattr(engine, "_judge", lambda *_: left.pop(0) if len(left) > 1 else left[0])


def test_going_on_never_returns_what_held_out_units_find_worse(monkeypatch):
    first = fit(plan(learned), num_steps=20)
    left = [-1.0, -3.0]  # the start, then every block
    monkeypatch.setattr(engine, "_judge", lambda *_: left.pop(0) if len(left) > 1 else left[0])
    on = fit(first, run=am.Run(num_steps=20, validation=am.units({"x": X[:4]}, name="unit")))
    assert same(numbers(first), numbers(on))


def test_the_best_parameters_by_held_out_units_are_kept(monkeypatch, states):  # noqa: F811
    judged(monkeypatch, [-5.0, -1.0, -2.0, -3.0, -9.0])
    validation = am.units({"x": X[:4]}, name="unit")
    posterior = fit(plan(learned), run=am.Run(num_steps=40, validation=validation))
    assert posterior.record.validation_elbo_per_unit == (-5.0, -1.0, -2.0, -3.0)
    assert same(numbers(posterior), states[1][0])


def test_training_stops_when_held_out_units_get_worse(monkeypatch, states):  # noqa: F811
    judged(monkeypatch, [-1.0, -2.0])
    posterior = fit(plan(learned), run=am.Run(validation=am.units({"x": X[:4]}, name="unit")))
    assert posterior.record.stopped == "validation"
    assert len(posterior.record.step) == 21  # twenty blocks of patience
    assert same(numbers(posterior), states[0][0])


def level(x):
    t = numpyro.sample("t", dist.Normal(0, 5))
    with numpyro.plate("unit", x.shape[0]):
        numpyro.sample("x", dist.Normal(t, 1), obs=x)


def test_held_out_units_neither_choose_q_of_the_globals_nor_weigh_their_prior_more():
    """The bound per held-out unit has a share 1/N of the globals' part, as that of a training unit has."""
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal(2000).astype(np.float32)}
    validation = am.units({"x": rng.standard_normal(3).astype(np.float32)}, name="unit")
    posterior = fit(
        am.amortize(level, data, plate="unit"), data, run=am.Run(num_steps=800, validation=validation, batch_size=500)
    )
    draws = posterior.sample(data, num_samples=2000, key=jax.random.key(1))["t"]
    sd = 1 / np.sqrt(2000 + 1 / 25)
    print(f"sd {float(draws.std()):.4f}, exact {sd:.4f}")
    assert abs(float(draws.std()) / sd - 1) <= 0.15
    held_out = np.asarray(posterior.record.validation_elbo_per_unit)
    assert held_out[-1] > -5  # the mean log density of three standard normals, nothing of 2,000 units' prior


def test_held_out_units_are_judged_in_chunks_each_by_its_number_of_units(monkeypatch):
    monkeypatch.setattr(engine, "HELD_OUT_CHUNK", 2)
    monkeypatch.setattr(engine, "held_out_elbo", lambda setting, params, part, key: float(part.arrays["x"].shape[0]))
    validation = am.units({"x": X[:5]}, name="unit")
    record = fit(plan(learned), run=am.Run(num_steps=10, validation=validation)).record
    assert record.validation_elbo_per_unit == ((2 * 2 + 2 * 2 + 1 * 1) / 5,)


def test_held_out_units_stay_out_of_the_standardisation_and_out_of_later_runs(monkeypatch):
    monkeypatch.setattr(fitting, "HOLD_OUT_FROM", 20)
    seen, real = [], fitting.train

    def spy(pair, data, **options):
        seen.append(data)
        return real(pair, data, **options)

    monkeypatch.setattr(fitting, "train", spy)
    data = {"x": np.concatenate([X[:23], np.full((1, 3), 1e4, np.float32)])}
    first = fit(plan(learned), data, num_steps=10)
    fit(first, data, seed=5, num_steps=10)
    held_out = [run.held_out.arrays["x"] for run in seen]
    np.testing.assert_array_equal(*held_out)
    statistics = first.guide.encoder.features.statistics.value["x"]
    np.testing.assert_allclose(statistics["center"], seen[0].units.arrays["x"].mean(axis=0), rtol=1e-5)


def test_the_average_of_a_short_run_is_judged_by_its_own_blocks(unchecked):
    setting, average = None, {"w": np.float32(4.0)}
    seen = engine._Progression(best="best", best_elbo=-1.0, settled={"w": np.float32(8.0)}, num_settled=2)
    seen.means, seen.errors, seen.settled_blocks = [-900.0, -50.0, -1.02, -1.01, -1.0], [9.0, 1.0, 0.01, 0.01, 0.01], 3
    assert engine._answer(setting, seen, None) == average  # blocks before the last phase say nothing of it
    seen.means[-3:] = [-1.2, -1.2, -1.2]
    assert engine._answer(setting, seen, None) == "best"


def test_units_are_held_out_only_where_parameters_are_learned(monkeypatch):
    monkeypatch.setattr(fitting, "HOLD_OUT_FROM", 20)
    record = fit(plan(learned), num_steps=20).record
    assert record.num_units == 23  # one in twenty
    assert len(record.validation_elbo_per_unit) == 2
    record = fit(num_steps=10).record  # with Bayesian globals all units enter the posterior
    assert (record.num_units, record.validation_elbo_per_unit) == (24, ())
    monkeypatch.setattr(fitting, "HOLD_OUT_FROM", 25)  # too few to give some away
    units = as_units(DATA, learned, "unit")
    joint, _ = initialise(plan(learned), to_batch(units), jax.random.key(0))
    assert fitting._hold_out(plan(learned), units, am.Run(), joint) == (units, None)


def test_held_out_units_without_a_finite_bound_are_an_error():
    odd = am.units({"x": np.full((2, 3), 1e30, np.float32)}, name="unit")
    with pytest.raises(am.FitError, match="bound of the held-out units was never finite"):
        fit(plan(learned), run=am.Run(num_steps=20, validation=odd))


def test_a_record_with_numbers_that_are_not_finite_is_stored_all_the_same(monkeypatch, tmp_path):
    judged(monkeypatch, [float("nan"), -1.0, float("-inf")], start=())
    posterior = fit(run=am.Run(num_steps=30, validation=am.units({"x": X[:4]}, name="unit")))
    posterior.save(tmp_path / "a.amx")
    held_out = am.load(tmp_path / "a.amx", plan().model).record.validation_elbo_per_unit
    assert np.isnan(held_out[0])
    assert held_out[1] == -1.0
    assert not np.isfinite(held_out[2])


# When it slows down and stops


def test_a_bound_rises_only_beyond_its_noise():
    flat, steep = [0.0] * 10, [0.0] * 5 + [1.0] * 5
    assert not rises(flat, [0.1] * 10)
    assert rises(steep, [0.1] * 10)
    assert rises(steep, [0.79] * 10)  # the noise of a difference of two means of five
    assert not rises(steep, [0.80] * 10)
    assert not rises([-x for x in steep], [0.1] * 10)
    assert not rises([9.0] * 20 + flat, [0.1] * 30)  # only the two last windows count
    assert not rises([0.0] * 9 + [float("nan")], [0.1] * 10)


def test_every_plateau_slows_down_and_the_last_one_stops():
    schedule, means, errors, factors = Schedule(None, 10**9), [], [], []
    for block in range(1000):
        factors.append(schedule.factor(100 * block))
        means.append(min(float(block), 30.0))
        errors.append(0.01)
        if schedule.finished(100 * (block + 1), means, errors):
            break
    assert list(dict.fromkeys(factors)) == list(dict.fromkeys(FACTORS))
    assert factors[:31] == [FACTORS[0]] * 31  # no plateau while it rises
    assert 30 + 2 * WINDOW * (len(FACTORS) - 1) < len(means) <= 31 + 2 * WINDOW * len(FACTORS)
    assert Schedule(None, 500).finished(500, [0.0], [0.1])


def test_a_given_number_of_steps_follows_a_cosine():
    schedule = Schedule(1000, 10**9)
    factors = [schedule.factor(step) for step in range(0, 1001, 100)]
    np.testing.assert_allclose(factors[0], 1.0)
    np.testing.assert_allclose(factors[5], (factors[0] + factors[-1]) / 2)
    np.testing.assert_allclose(factors[2] + factors[8], factors[0] + factors[-1])
    assert 0 < factors[-1] < 0.2
    assert np.all(np.diff(factors) < 0)
    assert not schedule.finished(999, [0.0] * 99, [0.0] * 99)
    assert schedule.finished(1000, [0.0], [0.0])


def test_the_step_size_acts_on_every_update():
    joint, guide = initialise(plan(), to_batch(as_units(DATA, plan().model, "unit")), jax.random.key(0))
    params, _ = split_trainable(joint, guide)
    gradient = jax.tree.map(jnp.ones_like, params)
    state = adam().init(params)
    whole, _ = adam().update(gradient, state, params)
    tenth, _ = adam().update(gradient, set_step_size(state, 0.1), params)
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(tenth), strict=True):
        assert np.all(left < 0)
        np.testing.assert_allclose(0.1 * left, right, rtol=1e-5)


def test_a_bound_that_stays_far_below_its_best_diverges():
    calm, noise = [-3.0, -2.6, -2.6, -2.6, -2.6, -2.6, -2.6], [0.01] * 7
    assert not diverges(calm, noise)
    assert diverges([-3.0, -2.6, -9.0, -20.0, -50.0, -9.0, -8.0], noise)
    assert not diverges([-3.0, -2.6, -9.0, -20.0, -50.0, -9.0, -2.6], noise)  # it came back by itself
    assert not diverges([-3.0, -2.6, -2.65, -2.65, -2.65, -2.65, -2.65], noise)  # within the noise
    assert not diverges([-9.0] * 5, noise[:5])  # nothing before them to compare with


def test_training_that_diverges_goes_back_to_its_best_and_takes_smaller_steps(monkeypatch, states):  # noqa: F811
    factors, real = [], engine.set_step_size
    monkeypatch.setattr(engine, "set_step_size", lambda o, f: factors.append(f) or real(o, f))
    note, bounds = engine._Progression.note, iter([-3.0, -1.0, *[-99.0] * 5, *[-1.0] * 99])

    def scripted(self, step, elbos):
        note(self, step, elbos)
        self.means[-1], self.errors[-1] = next(bounds), 0.01

    monkeypatch.setattr(engine._Progression, "note", scripted)
    posterior = fit(num_steps=90)
    assert factors[7] == pytest.approx(Schedule(90, 0).factor(70) / 3)
    assert factors[6] == pytest.approx(Schedule(90, 0).factor(60))
    start = [np.asarray(x) for x in states[1][0]]  # the best block, from which the eighth starts
    moved = max(np.abs(a - b).max() for a, b in zip(start, states[7][0], strict=True))
    away = max(np.abs(a - b).max() for a, b in zip(states[6][0], states[7][0], strict=True))
    assert moved < away
    assert posterior.record.num_steps == 90


def test_the_average_starts_anew_where_the_bound_still_rises():
    seen = engine._Progression(best=None)
    block = engine.BlockResult(jnp.zeros(1), jnp.zeros(1), {"w": jnp.ones(())}, jnp.ones((), jnp.int32))
    for i in range(30):
        seen.means.append(-100.0 + 5.0 * min(i, 12))
        seen.errors.append(0.1)
        seen.settle(block)
    assert seen.num_settled == seen.settled_blocks < 15  # nothing from before the bound was level
    assert float(seen.settled["w"]) == seen.num_settled
