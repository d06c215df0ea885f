"""Does calibration pass exact guides, and name each fault that is planted in one, by the part that can see it?"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import planted
import pytest

import amortax as am
from amortax._errors import DataError
from amortax.checks.bands import bin_counts, bins_p_value, folded
from amortax.checks.calibration import calibrate
from amortax.checks.simulated import among
from amortax.intake import as_units, to_batch
from amortax.joint.joint import Joint
from amortax.train.initialise import initialise

CHECKS = am.Checks()


def found(case, *, seed=1, checks=CHECKS):
    joint, guide, units = case
    result = calibrate(joint, guide, units, key=jax.random.key(seed), checks=checks)
    levels = {reason.code: reason.level for reason in result.reasons}
    print(levels, {n: round(v, 3) for n, v in result.numbers.items() if n.startswith(("coverage_", "tarp_", "sbc"))})
    return result, levels


@pytest.mark.parametrize("case", [planted.linear_case, planted.counts_case, planted.sides_case, planted.groups_case])
def test_exact_guides_raise_nothing(case):
    result, levels = found(case())
    assert levels == {}
    assert result.numbers["simulated_units"] == 2000
    assert result.numbers["sbc_p_smallest"] > 0.002


def test_twenty_keys_raise_no_alarm():
    """By design a WARN comes in at most 0.2% of runs; and p-values are what they say."""
    case = planted.lengths_case()
    results = [found(case, seed=seed, checks=am.Checks(simulated_units=1000)) for seed in range(20)]
    assert all(levels == {} for _, levels in results)
    coverage = np.array([result.numbers["coverage_90"] for result, _ in results])
    error = np.sqrt(0.09 / 1000)
    assert abs(coverage.mean() - 0.9) <= 5 * error / np.sqrt(20)
    assert 0.4 <= coverage.std(ddof=1) / error <= 1.9  # 5 standard errors of its logarithm with 19 degrees of freedom


def test_a_guide_far_too_wide():
    result, levels = found(planted.linear_case(scale=2.85))
    assert levels["coverage"] == "FAIL"
    assert result.numbers["coverage_90"] > 0.99
    assert "too wide" in next(r.text for r in result.reasons if r.code == "sbc")


def test_a_missing_jacobian_is_seen_by_ranks_and_not_by_coverage():
    result, levels = found(planted.counts_case(jacobian=False))
    assert levels == {"sbc": "FAIL"}
    assert result.numbers["sbc_p_smallest"] < 1e-20
    assert result.numbers["coverage_90"] > 0.87
    assert "too low" in result.reasons[0].text


def test_half_of_the_posterior_lost():
    result, levels = found(planted.sides_case(lost=True))
    assert {code: levels[code] for code in ("sbc", "coverage", "tarp")} == dict.fromkeys(
        ("sbc", "coverage", "tarp"), "FAIL"
    )
    assert abs(result.numbers["coverage_90"] - 0.45) < 0.05


def test_a_diagonal_guide_of_a_correlated_posterior():
    result, levels = found(planted.linear_case(diagonal=True))
    assert levels["coverage"] == "FAIL"
    assert 0.65 < result.numbers["coverage_90"] < 0.82
    assert "too narrow" in next(r.text for r in result.reasons if r.code == "sbc")


def test_lost_correlations_are_seen_by_the_log_density():
    """Every number is right by itself, so that its ranks and intervals are; TARP sees as little with 2,000 units."""
    _, levels = found(planted.linear_case(independent=True))
    assert {"coverage", "sbc"}.isdisjoint(levels)
    assert levels["sbc-density"] == "FAIL"


def test_the_weight_of_kl_left_at_a_half():
    result, levels = found(planted.linear_case(kl_weight=0.5))
    assert levels["coverage"] in ("WARN", "FAIL")
    assert levels["sbc-density"] == "FAIL"
    assert result.numbers["coverage_90"] < 0.88


def test_the_true_latents_are_ranked_at_their_own_globals():
    """q(level) here is its wide start and no posterior, and q of the locals is certified all the same."""
    _, levels = found(planted.groups_case(follows=False))
    assert levels["sbc"] == "FAIL"


def test_faults_that_cancel_over_sizes_are_seen_by_slice():
    result, levels = found(planted.lengths_case(lambda n: jnp.where(n > 8, 0.75, 1.35)))
    slices = result.tables["slices"]
    for name in ("slice", "value", "of", "units", "found", "low", "high"):
        assert len(slices[name]) == 4
    assert list(slices["slice"]) == ["size of seen"] * 4
    assert slices["found"][0] > slices["high"][0]
    assert slices["found"][-1] < slices["low"][-1]
    assert levels["coverage-slice"] in ("WARN", "FAIL")


def test_slices_that_the_user_names():
    joint, guide, units = planted.lengths_case(lambda n: jnp.where(n > 8, 0.6, 1.0))
    long = np.where(units.lengths["x"] > 8, "long", "short")
    result, levels = found((joint, guide, units), checks=am.Checks(slices={"kind": long}))
    rows = result.tables["slices"]
    mine = rows["slice"] == "kind"
    assert sorted(rows["value"][mine]) == ["long", "short"]
    by_value = dict(zip(rows["value"][mine], rows["found"][mine], strict=True))
    assert by_value["long"] < 0.8 < 0.87 < by_value["short"]
    with pytest.raises(DataError, match="'kind' has shape \\(3,\\) but there are 60 units"):
        found((joint, guide, units), checks=am.Checks(slices={"kind": [1, 2, 3]}))


def test_ties_are_broken_at_random():
    """A correct Poisson posterior: places are uniform; strict ranks, which count no tie, are not at all."""
    count, key = 2000, jax.random.key(0)
    keys = jax.random.split(key, 4)
    rate = jax.random.gamma(keys[0], 2.0, (count,))
    true, draws = jax.random.poisson(keys[1], rate), jax.random.poisson(keys[2], rate, (99, count))
    places = np.asarray(among(jax.random.uniform(keys[3], (count,)), true, draws))
    strict = np.asarray(jnp.sum(draws < true, axis=0) / 100)
    fair, unfair = bins_p_value(bin_counts(places)), bins_p_value(bin_counts(strict))
    print(f"p with random ties {fair:.2f}, of strict ranks {unfair:.1g}")
    assert fair > 1e-3
    assert unfair < 1e-30


def test_nineteen_draws_cover_nine_tenths_exactly():
    """The truth in each of the 20 gaps as often as in every other: it is in the 90% interval in 18 of them."""
    draws = jnp.arange(19.0)
    true, uniform = jnp.arange(20) - 0.5, (jnp.arange(10) + 0.5) / 10
    places = jax.vmap(lambda t: jax.vmap(lambda u: among(u, t, draws))(uniform))(true)
    assert np.mean(folded(np.asarray(places).ravel()) <= 0.9) == 0.9


def mixture(y):
    with numpyro.plate("unit", y.shape[0]):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.sample("y", dist.Normal(jnp.array([-1.0, 0.5, 2.0])[c], 0.6), obs=y)


def another_mixture(y):
    mixture(y)


def discrete_case(model):
    data = {"y": np.random.default_rng(0).standard_normal(40).astype(np.float32)}
    plan = am.amortize(model, data, plate="unit")
    units = as_units(data, plan.model, "unit")
    return *initialise(plan, to_batch(units), jax.random.key(0)), units


def test_discrete_sites_are_ranked_too(monkeypatch):
    result, levels = found(discrete_case(mixture))
    assert levels == {}
    assert "c" in result.tables["ranks"]

    def careless(self, key, local, shared, unit):  # the prior, whatever was seen
        return {"c": jax.random.categorical(key, jnp.log(jnp.array([0.2, 0.5, 0.3])), shape=(1,))}

    monkeypatch.setattr(Joint, "choose", careless)
    _, levels = found(discrete_case(another_mixture))
    assert levels["sbc-density"] == "FAIL"


def schools(x):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("pupil", x.shape[1], dim=-1):
            skill = numpyro.sample("skill", dist.Normal(level, 1.0))
            numpyro.sample("x", dist.Normal(skill, 0.7), obs=x)


@pytest.fixture(scope="module")
def nested():
    """A Gaussian tree, of which one Newton step is the posterior, in units of unequal length."""
    import equinox as eqx

    rng = np.random.default_rng(0)
    data = {"x": [rng.standard_normal(n).astype(np.float32) for n in rng.integers(1, 6, size=30)]}
    plan = am.amortize(schools, data, plate="unit")
    units = as_units(data, plan.model, "unit")
    joint, guide = initialise(plan, to_batch(units), jax.random.key(0))
    still = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, guide.local.family)
    return joint, eqx.tree_at(lambda g: g.local.family, guide, still), units


def test_elements_of_ragged_plates_without_their_padding(nested):
    result, levels = found(nested, seed=2)
    assert levels == {}
    assert {"level", "skill"} <= set(result.tables["ranks"])
    assert np.sum(result.tables["ranks"]["skill"]) == 2000
    assert set(result.tables["slices"]["of"]) == {"level", "skill"}


def test_a_chunk_changes_no_place(nested, monkeypatch):
    checks = am.Checks(simulated_units=300)
    whole, _ = found(nested, checks=checks)
    monkeypatch.setattr("amortax.chunks.UNIT_BUCKETS", (1, 4, 16))
    cut, _ = found(nested, checks=checks)
    differing = np.abs(whole.tables["ranks"]["skill"] - cut.tables["ranks"]["skill"])
    assert differing.sum() <= 6  # a draw as near as rounding to the truth


def test_what_is_left_out_is_said():
    joint, guide, units = planted.groups_case()
    none, _ = found((joint, guide, units), checks=am.Checks(simulated_units=0))
    assert none.reasons == []
    assert "simulated_units=0" in none.about
    for few in ({"simulated_units": 50}, {"rank_draws": 10}):
        with pytest.raises(DataError, match="too few to judge coverage"):
            found((joint, guide, units), checks=am.Checks(**few))


def test_a_model_that_cannot_be_simulated_is_a_warning_with_the_reason():
    def model(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.factor("more", -0.1 * z**2)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    joint, guide, units = planted.known(model, {"x": np.zeros(8, np.float32)}, planted.normal_draw([[0.5]], [[0.7]]))
    result, levels = found((joint, guide, units))
    assert levels == {"calibration-unchecked": "WARN"}
    assert joint.structure.cannot_simulate in result.reasons[0].text
    assert joint.structure.cannot_simulate in result.about


def test_draws_that_are_not_finite_are_a_failure():
    joint, guide, units = planted.linear_case()
    draw = guide.draw

    def broken(key, unit, shared):
        local, log_q = draw(key, unit, shared)
        return jnp.where(unit.arrays["x"][0] > 1.5, jnp.nan, 1.0) * local, log_q

    result, levels = found((joint, planted.Known(None, guide.local, None, None, draw=broken), units))
    assert levels["calibration-non-finite"] == "FAIL"
    assert 100 < result.numbers["simulated_units"] < 2000


def test_the_report_has_it_all():
    joint, guide, units = planted.lengths_case(lambda n: 0.6 + 0 * n)
    plan = am.amortize(planted.lengths, units, plate="unit")
    record = am.Record(len(units), 0, len(units), 0.0, "", 0)
    report = am.Posterior(plan, joint, guide, record, None).check(
        units, key=jax.random.key(0), checks=am.Checks(num_samples=100, simulated_units=400, gap_units=0)
    )
    assert {"sbc", "coverage"} <= {reason.code for reason in report.reasons}
    assert report.verdict == "FAIL"
    assert {"ranks", "coverage", "slices"} <= set(report.tables)
    assert "certifies q of the locals given the globals" in report.about["calibration"]
    again = type(report).from_json(report.to_json())
    np.testing.assert_array_equal(again.tables["ranks"]["z"], report.tables["ranks"]["z"])
    assert "coverage" in str(report)
    assert "Coverage of 90% intervals" in report.to_html()
