"""Do posterior-predictive checks ring for data that the model can't draw, name the statistic, and else stay silent?"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.checks.predictive import judge, nominal_share, p_values, predictive, reasons, share_limit, two_sided
from amortax.checks.statistics import following, largest, mean, smallest, spread, zeros
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise

UNITS, ELEMENTS, NOISE = 150, 8, 0.5
SILENT = {"num_samples": 100, "simulated_units": 0, "gap_units": 0, "latent_units": 0}


def counts(y):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        rate = numpyro.sample("rate", dist.Gamma(4.0, 2.0))
        with numpyro.plate("element", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(rate), obs=y)


def normals(y):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0, 2))
        with numpyro.plate("element", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level, NOISE), obs=y)


@pytest.fixture(scope="module")
def normal_posterior():
    """Trained a little on data of the model itself."""
    rng = np.random.default_rng(0)
    y = (2 * rng.standard_normal((UNITS, 1)) + NOISE * rng.standard_normal((UNITS, ELEMENTS))).astype(np.float32)
    run = am.Run(num_steps=600, progress=False)
    return am.fit(am.amortize(normals, {"y": y}, plate="unit"), {"y": y}, key=jax.random.key(0), run=run), y


def check(posterior, data, key=1, **checks):
    return posterior.check(data, key=jax.random.key(key), checks=am.Checks(**{**SILENT, **checks}))


def codes(report):
    return [r.code for r in report.reasons]


def test_data_of_the_model_pass(normal_posterior):
    posterior, y = normal_posterior
    report = check(posterior, {"y": y})
    table = report.tables["predictive"]
    print(table)
    assert "predictive" not in codes(report)
    assert list(table["statistic"]) == [f"{name} of y" for name in ("mean", "sd", "smallest", "largest")]
    assert report.units["predictive_p"].shape == (UNITS,)
    assert np.all(table["share_extreme"] <= 0.1)


def single(y):
    with numpyro.plate("unit", y.shape[0]):
        numpyro.sample("y", dist.Normal(numpyro.sample("level", dist.Normal(0, 2)), NOISE), obs=y)


def test_a_unit_without_data_has_no_p_value():
    y = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    y[3] = np.nan
    plan = am.amortize(single, {"y": y}, plate="unit")
    units = as_units({"y": y}, plan.model, "unit")
    pair = initialise(plan, to_batch(units), jax.random.key(0))
    found = predictive(*pair, units, key=jax.random.key(1), draws=40, statistics={})
    np.testing.assert_array_equal(np.isnan(found.columns["predictive_p"]), np.isnan(y))


def test_noise_of_another_size_is_named(normal_posterior):
    posterior, y = normal_posterior
    rng = np.random.default_rng(1)
    wide = (y.mean(axis=1, keepdims=True) + 2 * NOISE * rng.standard_normal(y.shape)).astype(np.float32)
    report = check(posterior, {"y": wide})
    found = [r for r in report.reasons if r.code == "predictive"]
    print(found)
    assert len(found) == 1
    assert found[0].level == "WARN"
    assert "'sd of y'" in found[0].text
    assert "'mean of y'" not in found[0].text


def test_the_users_statistic_sees_what_the_built_in_ones_cannot(normal_posterior):
    """Sorted within each unit: mean, sd and extremes are the same."""
    posterior, y = normal_posterior
    falling = {"fall": lambda unit: np.mean(np.diff(unit["y"]) > 0)}
    report = check(posterior, {"y": np.sort(y, axis=1)}, statistics=falling, predictive_draws=60)
    found = [r.text for r in report.reasons if r.code == "predictive"]
    print(found)
    assert len(found) == 1
    assert found[0].count("'") == 2
    assert "'fall'" in found[0]
    assert codes(check(posterior, {"y": y}, statistics=falling, predictive_draws=60)).count("predictive") == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda unit: unit["y"], r"'t' gave an array of shape \(8,\) on unit '0'; give one number"),
        (lambda unit: unit["z"], r"'t' failed on unit '0': KeyError: 'z'; it is given a dict with the arrays \['y'\]"),
        (lambda unit: "high", r"'t' gave <U4 on unit '0'"),
    ],
)
def test_a_wrong_statistic_is_named_with_the_unit(normal_posterior, function, message):
    posterior, y = normal_posterior
    with pytest.raises(am.DataError, match=message):
        check(posterior, {"y": y}, statistics={"t": function}, predictive_draws=40)


def test_a_statistic_is_given_the_units_own_elements_and_nan_where_missing():
    seen = []
    y = [np.arange(3.0), np.array([1.0, np.nan, 2.0, 5.0, 3.0]), np.array([0.5])]
    plan = am.amortize(normals, {"y": y}, plate="unit")
    run = am.Run(num_steps=5, progress=False)
    posterior = am.fit(plan, {"y": y}, key=jax.random.key(0), run=run)

    def keep(unit):
        seen.append(np.array(unit["y"]))
        return float(np.nanmax(unit["y"]))

    check(posterior, {"y": y}, statistics={"keep": keep}, predictive_draws=40)
    by_size = {n: [x for x in seen if len(x) == n] for n in (3, 5, 1)}
    assert [len(x) for x in by_size.values()] == [41, 41, 41]
    assert all(np.isnan(x[1]) and np.isfinite(np.delete(x, 1)).all() for x in by_size[5])
    np.testing.assert_array_equal(by_size[3][0], y[0])
    assert not np.array_equal(by_size[3][1], y[0])


def test_missing_and_padded_values_count_nothing():
    """Zero inflation is found; what fills gaps and padding is in no statistic."""
    rng = np.random.default_rng(2)
    rate = rng.gamma(4.0, 0.5, UNITS)
    lengths = rng.integers(6, 13, UNITS)
    plain = [rng.poisson(r, n).astype(np.float32) for r, n in zip(rate, lengths, strict=True)]
    inflated = [np.where(rng.random(len(x)) < 0.3, 0, x).astype(np.float32) for x in plain]
    for unit in (plain, inflated):
        for x in unit:
            x[1] = np.nan
    run = am.Run(num_steps=400, progress=False)
    posterior = am.fit(am.amortize(counts, {"y": plain}, plate="unit"), {"y": plain}, key=jax.random.key(0), run=run)
    report = check(posterior, {"y": plain})
    seen = dict(zip(report.tables["predictive"]["statistic"], report.tables["predictive"]["observed"], strict=True))
    assert abs(seen["mean of y"] - np.mean([np.nanmean(x) for x in plain])) < 1e-6
    assert abs(seen["sd of y"] - np.mean([np.nanstd(x, ddof=1) for x in plain])) < 1e-6
    assert "predictive" not in codes(report)
    [found] = [r.text for r in check(posterior, {"y": inflated}).reasons if r.code == "predictive"]
    print(found)
    assert "'sd of y'" in found


def test_what_is_skipped_is_said_with_the_reason(normal_posterior):
    posterior, y = normal_posterior
    report = check(posterior, {"y": y}, predictive_draws=0)
    assert "predictive" not in report.tables
    assert report.about["predictive checks"] == "not done: not asked for (Checks(predictive_draws=0))"
    assert "too few" in check(posterior, {"y": y}, predictive_draws=20).about["predictive checks"]


def factor(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.factor("x", -0.5 * (x - z) ** 2)


def test_a_model_that_draws_no_data_is_skipped_aloud():
    x = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    plan = am.amortize(factor, {"x": x}, plate="unit")
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), run=am.Run(num_steps=5, progress=False))
    said = check(posterior, {"x": x}).about["predictive checks"]
    print(said)
    assert said.startswith("not done: the model draws no data: ")


def test_statistics_by_hand():
    values = np.array([[[3.0, 0.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0]]])
    own = np.array([[True, True, True, False], [True, False, False, False]])
    np.testing.assert_allclose(mean(values, own), [[10 / 3, 1.0]])
    np.testing.assert_allclose(spread(values, own), [[np.std([3, 0, 7], ddof=1), np.nan]])
    np.testing.assert_allclose(smallest(values, own), [[0.0, 1.0]])
    np.testing.assert_allclose(largest(values, own), [[7.0, 1.0]])
    np.testing.assert_allclose(zeros(values, own), [[1 / 3, 0.0]])
    away = np.array([3.0, 0.0, 7.0]) - 10 / 3
    expected = (away[0] * away[1] + away[1] * away[2]) / np.sum(away**2)
    np.testing.assert_allclose(following(values[:, :, None], own[:, None]), [[expected, np.nan]])


def test_ties_count_half():
    replicated = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(p_values(np.array([1.0, 1.0]), replicated), [0.5, 0.5])
    np.testing.assert_allclose(p_values(np.array([1.5, np.nan]), replicated), [0.75, np.nan])
    np.testing.assert_allclose(two_sided(np.array([0.25, 0.9])), [0.5, 0.2])


def test_uniform_p_values_alarm_no_more_often_than_designed():
    """Exact draws given the latents, the hardest case: 2,000 runs of 200 units, one alarm in a thousand by design."""
    rng, draws, alarms = np.random.default_rng(0), 100, 0
    for _ in range(2000):
        values = rng.standard_normal((draws + 1, 200))
        row = judge("t", values[0], values[1:])
        alarms += bool(reasons({name: np.array([x]) for name, x in row.items()}, draws))
    print("alarms", alarms)
    assert alarms <= 2 + 5 * np.sqrt(2)
    assert nominal_share(200) == pytest.approx(10 / 201)
    assert share_limit(200, 200, 1) < 0.12
    assert share_limit(10**5, 200, 1) == pytest.approx(1.5 * 10 / 201)
