"""Units that are visited more often count so much less: is what is trained the same, and are they reached sooner?"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of, shared_normal
from scipy import stats

import amortax as am
from amortax._types import Batch, trainable
from amortax.focus import visits_of
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.train import minibatches
from amortax.train.initialise import initialise
from amortax.train.minibatches import SURE, TrainingData, inclusion, sources

KEY = jax.random.key(0)


def model(x):
    level = numpyro.sample("level", dist.Normal(0, 10))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 3.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def alone(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def steps_of(frequency, batch, count, *, rows=None, seed=0):
    """(count, batch) units of steps, and the weight of each unit."""
    size = len(frequency)
    units = Batch({"x": np.arange(float(size), dtype=np.float32)}, {}, {}, rows)
    data = TrainingData(units, range(size), frequency=np.asarray(frequency, float)).weighed(batch)
    source = sources(data.units, batch, True, np.random.default_rng(seed), data.frequency)
    found = [np.asarray(next(source)) for _ in range(-(-count // 100))]
    return np.concatenate(found)[:count], np.asarray(data.units.weight, np.float64)


# Which units are in a step


def test_a_unit_is_in_a_step_as_often_as_it_should():
    found = inclusion(np.array([1.0, 1.0, 2.0, 4.0]), 2)
    np.testing.assert_allclose(found, [0.25, 0.25, 0.5, SURE], atol=1e-8)
    many = inclusion(np.r_[np.full(5, 1000.0), np.ones(995)], 100)
    np.testing.assert_allclose(many, np.r_[np.full(5, SURE), np.full(995, 95 / 995)], rtol=1e-6)
    rng = np.random.default_rng(0)
    frequency, batch = np.exp(2 * rng.standard_normal(30)), 7
    steps, weight = steps_of(frequency, batch, 20_000)
    assert all(len(set(step)) == batch for step in steps.tolist())
    share, wanted = np.bincount(steps.ravel(), minlength=30) / len(steps), inclusion(frequency, batch)
    assert abs(wanted.sum() - batch) < 1e-9
    assert np.all(np.abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / len(steps)) + 1e-4)
    np.testing.assert_allclose(weight, batch / 30 / wanted, rtol=1e-6)


def test_sums_over_steps_are_those_over_all_units_in_the_mean():
    rng = np.random.default_rng(1)
    frequency, batch, count = np.r_[np.full(20, 30.0), np.ones(180)], 16, 20_000
    values = rng.standard_normal((200, 3)) + np.r_[np.full(20, 5.0), np.zeros(180)][:, None]
    steps, weight = steps_of(frequency, batch, count)
    sums = 200 / batch * np.sum(weight[steps][..., None] * values[steps], axis=1)
    error = sums.std(axis=0, ddof=1) / math.sqrt(count)
    print(f"mean {sums.mean(axis=0)}, exact {values.sum(axis=0)}, standard error {error}")
    assert np.all(np.abs(sums.mean(axis=0) - values.sum(axis=0)) <= 5 * error)
    assert np.all(np.abs(200 / batch * values[steps].sum(axis=1).mean(axis=0) - values.sum(axis=0)) > 50 * error)


def test_units_are_shuffled_anew_and_alike_for_the_same_seed():
    frequency = np.r_[np.full(3, 9.0), np.ones(97)]
    first, again, other = (steps_of(frequency, 10, 200, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({tuple(sorted(step)) for step in first.tolist()}) > 150


def test_data_that_are_sent_block_by_block_bring_their_weights(monkeypatch):
    monkeypatch.setattr(minibatches, "BLOCK", 10)
    frequency = np.r_[np.full(3, 9.0), np.ones(97)]
    units = Batch({"x": np.arange(100, dtype=np.float32)}, {}, {})
    data = TrainingData(units, range(100), frequency=frequency).weighed(8)
    resident, sent = (next(sources(data.units, 8, kept, np.random.default_rng(0), frequency)) for kept in (True, False))
    assert np.array_equal(sent.arrays["x"], resident)
    assert np.array_equal(sent.weight, data.units.weight[resident])


# What is trained


@pytest.mark.parametrize(
    ("program", "objective"),
    [
        (model, am.ELBO()),
        (alone, am.ForwardKL()),
        pytest.param(model, am.WakeSleep(4, wake_share=0.5), marks=pytest.mark.slow),
        pytest.param(model, am.Sum(am.IWELBO(2), am.ForwardKL()), marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_that_of_all_units_in_the_mean(program, objective):
    x = np.r_[np.full(6, 9.0), np.random.default_rng(0).standard_normal(34)].astype(np.float32)
    head = am.concatenate() if program is model else None
    plan = am.amortize(program, {"x": x}, plate="unit", encoder=am.dense(width=2, depth=1), head=head)
    whole = to_batch(as_units({"x": x}, program, "unit"))
    joint, guide = initialise(plan, whole, KEY)
    params, rest = eqx.partition((joint, guide), trainable((joint, guide)))
    frequency, batch, count = np.r_[np.full(6, 12.0), np.ones(34)], 8, 2000
    rows, weight = steps_of(frequency, batch, count)
    weighted = Batch(whole.arrays, whole.masks, whole.lengths, weight=weight.astype(np.float32))

    def loss_of(params, units, key):
        joint, guide = eqx.combine(params, rest)
        step = Minibatch((units,), jnp.asarray(float(len(x))), jnp.zeros((), jnp.int32))
        loss = objective(key, guide, joint, step)
        return loss.value, loss.elbo_per_unit

    @jax.jit
    def gradients(key, rows, units):
        def one(key, rows):
            taken = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], units)
            (value, elbo), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, taken, key)
            return jnp.concatenate([jnp.ravel(leaf) for leaf in [value, elbo, *jax.tree.leaves(gradient)]])

        return jax.vmap(one)(jax.random.split(key, len(rows)), rows)

    def moments(key, rows, units):
        found = np.asarray(gradients(key, jnp.asarray(rows), units), np.float64)
        return found.mean(axis=0), found.var(axis=0, ddof=1) / len(found)

    some, some_square = moments(jax.random.key(1), rows, weighted)
    full, full_square = moments(jax.random.key(2), np.tile(np.arange(len(x)), (count, 1)), whole)
    away = np.abs(some - full) / np.sqrt(some_square + full_square + 1e-30)
    limit = stats.norm.isf(stats.norm.sf(5) / len(away))
    print(f"largest difference {away.max():.2f} standard errors of {len(away)}, limit {limit:.2f}")
    assert np.all(away[some_square + full_square > 0] <= limit)
    unweighted, square = moments(jax.random.key(1), rows, whole)
    assert np.max(np.abs(unweighted - full) / np.sqrt(square + full_square + 1e-30)) > 10  # it could be seen


UNITS, SPREAD = 10_000, 3.0


def test_the_global_keeps_its_posterior():
    """Half of each minibatch are the 300 largest of 10,000 units: without weights their mean would move the level."""
    x = (4.0 + math.hypot(SPREAD, 1.0) * np.random.default_rng(0).standard_normal(UNITS)).astype(np.float32)
    largest = np.argsort(-x)[:300]
    focus = dict.fromkeys(largest.tolist(), UNITS / 300 - 1)
    data = {"x": x}
    run = am.Run(focus=focus, num_steps=2000, batch_size=100)
    posterior = am.fit(am.amortize(model, data, plate="unit"), data, key=KEY, run=run)
    (mean,), covariance = shared_normal(posterior)
    precision = 1 / 100 + UNITS / (SPREAD**2 + 1)
    expected, sd = np.sum(x, dtype=np.float64) / (SPREAD**2 + 1) / precision, 1 / math.sqrt(precision)
    ratio = math.sqrt(covariance[0, 0]) / sd
    print(f"sd ratio {ratio:.4f}, mean off by {(mean - expected) / sd:+.3f} sd")
    assert 0.95 <= ratio <= 1.05
    assert abs(mean - expected) <= 0.5 * sd  # visits of a part of an epoch; without weights it is off by many sd


# What it is for

WEIGHT = np.random.default_rng(3).standard_normal((10, 3))
LINEAR = LinearGaussian(WEIGHT, np.zeros(10), 0.5)


def linear(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ WEIGHT.T.astype(np.float32), LINEAR.noise).to_event(1), obs=x)


@pytest.fixture(scope="module")
def far():
    """(data, which 40 of 4,000 units have latents six times as far out)."""
    rng = np.random.default_rng(3)
    chosen = rng.choice(4000, 40, replace=False)
    z = rng.standard_normal((4000, 3))
    z[chosen] *= 6
    return {"x": (z @ WEIGHT.T + LINEAR.noise * rng.standard_normal((4000, 10))).astype(np.float32)}, chosen


def divergences(posterior, data):
    mean, covariance = normals_of(posterior, data)
    return normal_kl(mean, covariance, *LINEAR.posterior(data["x"]))


@pytest.mark.parametrize(("encoder", "begun"), [(None, 200), (am.free(), 100)])
def test_flagged_units_are_reached_sooner(far, encoder, begun):
    data, chosen = far
    plan = am.amortize(linear, data, plate="unit", family=am.full(), encoder=encoder)
    start = am.fit(plan, data, key=KEY, num_steps=begun, batch_size=64)
    focus = dict.fromkeys(chosen.tolist(), 99.0)
    found = []
    for each in (None, focus):
        run = am.Run(focus=each, num_steps=300, batch_size=64)
        found.append(divergences(am.fit(start, data, key=jax.random.key(1), run=run), data))
    before = divergences(start, data)[chosen].mean()
    flagged = [x[chosen].mean() for x in found]
    others = [np.delete(x, chosen).mean() for x in found]
    print(f"flagged {before:.2f}, without {flagged[0]:.3f}, with {flagged[1]:.3f}; others {others}")
    assert flagged[1] < 0.5 * flagged[0] < flagged[0] < before


# What is asked for


def report_of(verdicts, labels):
    units = {"unit": labels, "verdict": verdicts, "reason": [""] * len(labels), "next_step": ["none"] * len(labels)}
    return am.Report("WARN", (), {name: np.array(column) for name, column in units.items()}, {}, "unit", {})


def units_of(labels):
    return am.units({"x": np.arange(float(len(labels)))}, labels=labels)


def test_flagged_units_of_a_report_are_half_of_each_step():
    labels = [f"u{i}" for i in range(10)]
    data = units_of(labels)
    failing = report_of(["FAIL", "PASS", "WARN", *["PASS"] * 7], labels)
    np.testing.assert_allclose(visits_of(failing, data, data.labels), [9.0, *[1.0] * 9])
    reordered = report_of(["FAIL", "PASS", "WARN", *["PASS"] * 7][::-1], labels[::-1])
    np.testing.assert_allclose(visits_of(reordered, data, data.labels), [9.0, *[1.0] * 9])
    np.testing.assert_allclose(visits_of(failing, data, data.labels[[3, 0]]), [1.0, 9.0])
    warning = report_of(["PASS", "WARN", "WARN", *["PASS"] * 7], labels)
    np.testing.assert_allclose(visits_of(warning, data, data.labels), [1.0, 4.0, 4.0, *[1.0] * 7])
    for verdicts in (["PASS"] * 10, ["FAIL"] * 10, ["FAIL"] * 6 + ["PASS"] * 4):
        assert visits_of(report_of(verdicts, labels), data, data.labels) is None
    again = am.Report.from_json(failing.to_json())
    np.testing.assert_allclose(visits_of(again, data, data.labels), [9.0, *[1.0] * 9])


def test_focus_may_be_given_by_label_or_in_order():
    data = units_of([3, 1, 2])
    np.testing.assert_allclose(visits_of({1: 5}, data, data.labels), [1.0, 5.0, 1.0])
    np.testing.assert_allclose(visits_of([1, 5, 2], data, data.labels), [1.0, 5.0, 2.0])
    assert visits_of(None, data, data.labels) is None
    assert visits_of([2, 2, 2], data, data.labels) is None


@pytest.mark.parametrize(
    ("focus", "match"),
    [
        (
            report_of(["FAIL", "PASS"], ["a", "d"]),
            "report is of 2 units of 'unit' and data has 3; 'd' is in the report",
        ),
        (report_of(["FAIL", "PASS"], ["a", "b"]), "'c' is in data and not in the report, with 0 more"),
        ({"d": 2.0}, r"'d' is no unit of data, whose labels are like \['a', 'b', 'c'\]"),
        ({"b": 0.0}, r"unit 'b' has 0\.0; give finite numbers above 0"),
        ({"b": "much"}, "unit 'b' has nan; give finite numbers above 0"),
        ([1.0, -1.0, 1.0], r"unit 'b' has -1\.0"),
        ([1.0, 2.0], r"has shape \(2,\) of float64; expected a report of check, label -> number, or one"),
        ("all", "expected a report of check"),
    ],
)
def test_another_focus_is_refused(focus, match):
    data = units_of(["a", "b", "c"])
    with pytest.raises(am.FitError, match=match):
        visits_of(focus, data, data.labels)


def test_where_all_units_are_in_every_step_focus_is_refused():
    data = {"x": np.arange(20.0, dtype=np.float32)}
    plan = am.amortize(model, data, plate="unit", encoder=am.dense(width=4, depth=1))
    focus = {0: 5.0}
    assert am.fit(plan, data, key=KEY, run=am.Run(focus=focus, num_steps=3)).record.batch_size == 10
    with pytest.raises(
        am.FitError, match="every step takes all 20 units, and none can be visited more often; give batch_"
    ):
        am.fit(plan, data, key=KEY, run=am.Run(focus=focus, num_steps=3, batch_size=20))
    weighing = am.IWELBO(4, weigh_shared=True)
    with pytest.raises(am.FitError, match="every step takes all 20 units"):
        am.fit(plan, data, key=KEY, objective=weighing, run=am.Run(focus=focus, num_steps=3))


def test_the_same_key_gives_the_same_bits_and_no_focus_those_of_before():
    data = {"x": np.arange(20.0, dtype=np.float32)}
    plan = am.amortize(alone, data, plate="unit", encoder=am.dense(width=4, depth=1))

    def fitted(focus):
        posterior = am.fit(plan, data, key=KEY, run=am.Run(focus=focus, num_steps=20, batch_size=5))
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(eqx.filter(posterior.guide, eqx.is_array))]

    assert fitted({3: 9.0}) == fitted({3: 9.0})
    assert fitted({3: 9.0}) != fitted(None)
    assert fitted(np.full(20, 2.0)) == fitted(None)


def test_a_report_of_a_posterior_goes_back_into_fit():
    """As the whole of it is used: check, then train on the units that it flags."""
    rng = np.random.default_rng(0)
    data = am.units({"x": np.r_[rng.standard_normal(60), 30.0].astype(np.float32)}, labels=[f"u{i}" for i in range(61)])
    plan = am.amortize(alone, data, plate="unit", encoder=am.dense(width=8, depth=1))
    posterior = am.fit(plan, data, key=KEY, num_steps=50)
    checks = am.Checks(simulated_units=0, gap_units=0, predictive_draws=0)
    report = posterior.check(data, key=KEY, checks=checks)
    assert report.counts()["FAIL"] + report.counts()["WARN"] > 0
    on = am.fit(posterior, data, key=KEY, run=am.Run(focus=report, num_steps=50))
    assert on.record.batch_size == 30
    with pytest.raises(am.FitError, match=r"run\.focus: the report is of 61 units of 'unit' and data has 2"):
        am.fit(posterior, data.take([0, 1]), key=KEY, run=am.Run(focus=report))
