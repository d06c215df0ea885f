"""Do recalibrated intervals cover as they say, whatever is wrong with q, and say what they don't?"""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import planted
import pytest
from scipy import stats

import amortax as am
from amortax.checks.levels import levels_of, places_for, units_needed, values_at
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise
from amortax.train.record import Record

KEY = jax.random.key(0)
RECORD = Record(num_units=50, num_steps=0, batch_size=1, seconds=0.0, stopped="num_steps", skipped_steps=0)


def posterior_of(model, case, plate="unit"):
    joint, guide, units = case
    return am.Posterior(am.amortize(model, units, plate=plate), joint, guide, RECORD, None), units


def fresh(rng, count):
    z, x = planted.LINEAR.simulate(rng, count)
    return z, {"x": x}


def within(found, true):
    """Share of true values inside, by number of the site."""
    inside = (found.sel(bound="lower").values <= true) & (true <= found.sel(bound="upper").values)
    return inside.mean(axis=0)


def binomial(level, simulated, fresh):
    """Of a share of `fresh` units, when levels are from `simulated` ones: both are binomial, or nearly."""
    return math.sqrt(level * (1 - level) * (1 / simulated + 1 / fresh))


# The rule, in plain NumPy


def test_the_places_are_those_of_the_formula():
    assert places_for(0.9, 19) == (1, 19)
    assert places_for(0.9, 18) is None
    assert places_for(0.5, 3) == (1, 3)
    assert places_for(0.9, 2000) == (100, 1901)
    assert [units_needed(level) for level in (0.5, 0.9, 0.95, 0.99)] == [3, 19, 39, 199]
    for level in np.linspace(0.01, 0.995, 300):
        needed = units_needed(level)
        assert places_for(level, needed - 1) is None
        for count in range(needed, needed + 60):
            first, last = places_for(level, count)
            assert 1 <= first < last <= count
            assert level - 1e-8 <= (last - first) / (count + 1) < level + 1 / (count + 1)


@pytest.mark.parametrize("count", [19, 25, 60])
def test_coverage_with_few_units_and_few_draws_is_exact(count):
    """Coverage is k / (n + 1) to the last digit, for a q that is far too narrow, moved, and of 20 draws."""
    rng, repeats, draws = np.random.default_rng(0), 20_000, 20
    true = rng.standard_normal((repeats, count + 1))
    drawn = 0.7 + 0.2 * rng.standard_normal((repeats * (count + 1), draws))
    levels = levels_of(true.reshape(-1), drawn, np.zeros(repeats * (count + 1))).reshape(true.shape)
    first, last = places_for(0.9, count)
    ordered = np.sort(levels[:, :count], axis=1)
    lower, upper = (values_at(ordered[:, p - 1], drawn.reshape(repeats, -1, draws)[:, -1]) for p in (first, last))
    covered = np.mean((lower <= true[:, -1]) & (true[:, -1] <= upper))
    exact = (last - first) / (count + 1)
    print(f"{count} units: {covered:.4f}, exact {exact:.4f}")
    assert abs(covered - exact) <= 5 * math.sqrt(exact * (1 - exact) / repeats)


def test_levels_and_values_are_inverse_of_each_other():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((400, 50, 2))
    true = 3 * rng.standard_normal((400, 2))
    levels = levels_of(true, draws, rng.random(true.shape))
    np.testing.assert_allclose(values_at(levels, draws), true, atol=1e-12)
    assert levels.min() < 0 < 1 < levels.max()
    order = np.argsort(true[:, 0])
    one = np.broadcast_to(draws[:1], draws.shape)
    assert np.all(np.diff(levels_of(true, one, rng.random(true.shape))[order, 0]) >= 0)


def test_equal_draws_have_all_of_their_levels():
    draws = np.repeat(np.arange(4.0), 25)[None]
    for uniform in (0.0, 0.5, 1.0):
        level = levels_of(np.array([2.0]), draws, np.array([uniform]))
        assert level == pytest.approx((51 + 24 * uniform) / 101)
        assert values_at(level, draws) == 2.0
    constant = np.full((1, 30), 7.0)
    assert values_at(levels_of(np.array([7.0]), constant, np.array([0.3])), constant) == 7.0


# Of guides in closed form


@pytest.fixture(scope="module")
def narrow():
    return posterior_of(planted.linear, planted.linear_case(scale=0.5))


@pytest.fixture(scope="module")
def recalibrated(narrow):
    functionals = {"z": "z", "square": lambda unit: unit["z"][0] ** 2, "sum": lambda unit: unit["z"].sum()}
    return am.recalibrate(*narrow, functionals=functionals, key=KEY)


def test_a_guide_half_as_wide_covers_after_it(narrow, recalibrated):
    """Raw 90% intervals cover P(|Z| < 1.645 / 2) = 0.589."""
    z, data = fresh(np.random.default_rng(1), 4000)
    raw = narrow[0].sample(data, num_samples=2000, key=KEY)["z"].quantile([0.05, 0.95], dim="sample").values
    covered = np.mean((raw[0] <= z) & (z <= raw[1]), axis=0)
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.95) / 2) - 1
    assert expected == pytest.approx(0.589, abs=1e-3)
    assert np.all(np.abs(covered - expected) <= 5 * math.sqrt(0.25 / 4000))
    for level in (0.5, 0.9, 0.99):
        found = recalibrated.intervals(data, level, key=jax.random.key(2))
        tolerance = 5 * binomial(level, 2000, 4000)
        for name, true in (("z", z), ("square", z[:, 0] ** 2), ("sum", z.sum(axis=1))):
            share = within(found[name], true)
            print(f"{name} at {level}: {np.round(share, 4)} ± {tolerance:.4f}")
            assert np.all(np.abs(share - level) <= tolerance)
    widths = (found["z"].sel(bound="upper") - found["z"].sel(bound="lower")).std("unit")
    assert found["z"].dims == ("unit", "bound", "z_dim_0")
    assert np.all(widths < 0.3)


def test_a_guide_that_is_moved_is_moved_back():
    """And not widened: 90% intervals of the exact width."""
    posterior, units = posterior_of(planted.linear, planted.linear_case(moved=1.5))
    z, data = fresh(np.random.default_rng(1), 4000)
    found = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY).intervals(data, key=KEY)["z"]
    assert np.all(np.abs(within(found, z) - 0.9) <= 5 * binomial(0.9, 2000, 4000))
    sd = np.sqrt(np.diagonal(planted.LINEAR.posterior(data["x"])[1]))
    width = np.mean(found.sel(bound="upper") - found.sel(bound="lower"), axis=0) / (2 * stats.norm.ppf(0.95) * sd)
    print(f"width over the exact one {np.round(width.values, 3)}")
    assert np.all(np.abs(width - 1) < 0.1)


def test_an_exact_guide_stays_as_it_is():
    posterior, units = posterior_of(planted.linear, planted.linear_case())
    found = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY)
    levels = found.levels["z"][0]
    for level in (0.05, 0.5, 0.95):
        own = levels[round(level * len(levels))]
        assert np.all(np.abs(own - level) <= 5 * math.sqrt(level * (1 - level) * (1 / 2000 + 1 / 500)))


def sizes(rng, count):
    z = rng.standard_normal(count)
    return z, [(each + 2 * rng.standard_normal(rng.integers(1, 17))).astype(np.float32) for each in z]


def test_faults_that_cancel_over_sizes_are_cured_in_every_slice():
    case = planted.lengths_case(lambda n: jnp.where(n > 8, 0.5, 1.5))
    posterior, units = posterior_of(planted.lengths, case)
    z, x = sizes(np.random.default_rng(1), 4000)
    long = np.array([len(each) for each in x]) > 8
    whole = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY).intervals({"x": x}, key=KEY)
    assert within(whole["z"][long], z[long]) < 0.85
    assert within(whole["z"][~long], z[~long]) > 0.94
    found = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY, by="seen", num_simulated=8000)
    intervals = found.intervals({"x": x}, key=KEY)
    assert set(intervals["slice"].values) == set(found.slices.names)
    for name in found.slices.names:
        own = intervals["slice"].values == name
        share = within(intervals["z"][own], z[own])
        print(f"{name}: {share:.4f} of {own.sum()}")
        assert abs(share - 0.9) <= 5 * binomial(0.9, 2000, own.sum())
    values = np.where([n > 8 for n in units.lengths["x"]], "long", "short")
    mine = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY, by=values)
    by = np.where(long, "long", "short")
    intervals = mine.intervals({"x": x}, key=KEY, by=by)
    assert abs(within(intervals["z"][long], z[long]) - 0.9) <= 5 * binomial(0.9, 1000, long.sum())
    with pytest.raises(am.DataError, match="unit '0' has 'medium', of which no unit was simulated; expected one of"):
        mine.intervals({"x": x[:1]}, key=KEY, by=["medium"])
    with pytest.raises(am.DataError, match="by= is missing; expected one value for each unit"):
        mine.intervals({"x": x}, key=KEY)


@pytest.mark.parametrize("follows", [True, False])
def test_with_globals_units_are_those_of_their_own_draws(follows):
    """What is guaranteed: new units whose level is a draw of q(level), answered at other draws of it."""
    posterior, units = posterior_of(planted.groups, planted.groups_case(follows=follows))
    found = am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY)
    keys = jax.random.split(jax.random.key(5), 4000)
    level = np.asarray(jax.vmap(lambda k: posterior.guide.sample_shared(k)[0][0])(keys))
    rng = np.random.default_rng(1)
    z = level + rng.standard_normal(4000)
    data = {"x": (z + rng.standard_normal(4000)).astype(np.float32)}
    share = within(found.intervals(data, key=KEY)["z"], z)
    print(f"{share:.4f}")
    assert abs(share - 0.9) <= 5 * binomial(0.9, 2000, 4000)


def test_discrete_values_are_covered_at_least_so_often():
    posterior, units = posterior_of(planted.counts, planted.counts_case(jacobian=False))
    whole = {"whole": lambda unit: jnp.floor(unit["rate"]), "rate": "rate"}
    found = am.recalibrate(posterior, units, functionals=whole, key=KEY)
    rng = np.random.default_rng(1)
    rate = rng.gamma(planted.SHAPE, 1 / planted.RATE, size=4000)
    data = {"x": rng.poisson(rate[:, None], size=(4000, 5)).astype(np.int32)}
    intervals = found.intervals(data, 0.8, key=KEY)
    assert abs(within(intervals["rate"], rate) - 0.8) <= 5 * binomial(0.8, 2000, 4000)
    share = within(intervals["whole"], np.floor(rate))
    print(f"whole numbers: {share:.4f}")
    assert share >= 0.8 - 5 * binomial(0.8, 2000, 4000)


def measured(x, error):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(z, error), obs=x)


def test_by_a_covariate_of_the_unit_and_of_a_deterministic_site():
    """q is half as wide as it should be where the error is above one."""
    rng = np.random.default_rng(0)

    def draw(key, unit, shared):
        error, noise = unit.arrays["error"], jax.random.normal(key)
        variance = error**2 / (1 + error**2)
        local = unit.arrays["x"] / (1 + error**2) + jnp.where(error > 1, 0.5, 1.0) * jnp.sqrt(variance) * noise
        return local[None], jnp.zeros(())

    errors = rng.uniform(0.3, 2.0, 80).astype(np.float32)
    posterior, units = posterior_of(measured, planted.known(measured, {"x": 0 * errors, "error": errors}, draw))
    found = am.recalibrate(posterior, units, functionals={"twice": "twice"}, key=KEY, by="error")
    assert len(found.slices.names) == 4
    z, error = rng.standard_normal(4000), rng.choice(errors, 4000)
    data = {"x": (z + error * rng.standard_normal(4000)).astype(np.float32), "error": error}
    intervals = found.intervals(data, key=KEY)
    for number, name in enumerate(found.slices.names):
        own = intervals["slice"].values == name
        assert np.array_equal(own, np.searchsorted(found.slices.edges, error) == number)
        assert abs(within(intervals["twice"][own], 2 * z[own]) - 0.9) <= 5 * binomial(0.9, 500, own.sum())
    low, high = (found.levels["twice"][slice_][25] for slice_ in (0, 3))
    assert high < 0 < 0.02 < low < 0.08


def schools(x):
    with numpyro.plate("unit", x.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("pupil", x.shape[1], dim=-1):
            skill = numpyro.sample("skill", dist.Normal(level, 1.0))
            numpyro.sample("x", dist.Normal(skill, 0.7), obs=x)


def test_functions_see_no_padding():
    """A Gaussian tree, of which one Newton step is the posterior; the mean of as many skills as a unit has pupils."""
    rng = np.random.default_rng(0)

    def drawn(count):
        sizes = rng.integers(1, 6, size=count)
        skills = [rng.standard_normal() + rng.standard_normal(n) for n in sizes]
        return skills, {"x": [(s + 0.7 * rng.standard_normal(len(s))).astype(np.float32) for s in skills]}

    plan = am.amortize(schools, drawn(30)[1], plate="unit")
    units = as_units(drawn(30)[1], plan.model, "unit")
    joint, guide = initialise(plan, to_batch(units), KEY)
    still = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, guide.local.family)
    posterior = am.Posterior(plan, joint, eqx.tree_at(lambda g: g.local.family, guide, still), RECORD, None)
    mean = {"mean": lambda unit: jnp.nanmean(unit["skill"])}
    found = am.recalibrate(posterior, units, functionals=mean, key=KEY)
    skills, data = drawn(3000)
    share = within(found.intervals(data, key=KEY)["mean"], np.array([s.mean() for s in skills]))
    print(f"{share:.4f}")
    assert abs(share - 0.9) <= 5 * binomial(0.9, 2000, 3000)
    low, high = found.levels["mean"][0][[100, 1900]]
    assert abs(low - 0.05) < 5 * 0.011
    assert abs(high - 0.95) < 5 * 0.011
    with pytest.raises(am.DataError, match="site 'skill' has as many numbers as a unit has elements of plate 'pupil'"):
        am.recalibrate(posterior, units, functionals={"skill": "skill"}, key=KEY)


# What is kept, said and refused


def test_it_is_kept_as_json(narrow, recalibrated):
    posterior, units = narrow
    text = recalibrated.to_json()
    functions = {name: what for name, what in recalibrated.functionals if callable(what)}
    again = am.Recalibration.from_json(text, posterior, functions)
    first, second = (found.intervals(units, key=KEY) for found in (recalibrated, again))
    assert first.identical(second)
    assert again.to_json() == text
    with pytest.raises(am.DataError, match=r"functions of \['square', 'sum'\] are needed, got \['sum'\]"):
        am.Recalibration.from_json(text, posterior, {"sum": functions["sum"]})
    with pytest.raises(am.ArtifactError, match="is of another posterior"):
        am.Recalibration.from_json(text.replace(json.loads(text)["posterior"], "0" * 64), posterior, functions)


def test_it_says_what_holds_and_what_does_not(recalibrated):
    said = str(recalibrated)
    print(said)
    assert "recalibrated on 2,000 simulated units with 500 draws each" in said
    assert "z has 3 numbers" in said
    assert "90% of sum is from level" in said
    assert "so many standard deviations of the draws outside" in said
    for words in ("with probability from p to", "units simulated from the model", "nothing is said of any one unit"):
        assert words in " ".join(said.split())
    assert "These are intervals only" in said


def test_levels_that_few_units_can_not_support_are_refused(narrow):
    few = am.recalibrate(*narrow, functionals={"z": "z"}, key=KEY, num_simulated=100)
    few.intervals(narrow[1], 0.98, key=KEY)
    with pytest.raises(
        am.DataError, match=r"level 0\.99 needs 199 simulated units .* has 100; give recalibrate\(num_s"
    ):
        few.intervals(narrow[1], 0.99, key=KEY)
    for level in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(am.DataError, match="level must be a number between 0 and 1"):
            few.intervals(narrow[1], level, key=KEY)
    with pytest.raises(am.DataError, match="num_simulated=10 gives 10 units for each of 1 slices"):
        am.recalibrate(*narrow, functionals={"z": "z"}, key=KEY, num_simulated=10)


@pytest.mark.parametrize(
    ("functionals", "match"),
    [
        ({}, "no functionals"),
        ({"a": "y"}, r"functional 'a' is 'y'; give a function of one unit's values, or one of the sites \['z'\]"),
        ({"a": "x"}, "functional 'a' is 'x'"),
        ({"a": lambda unit: unit["z"]}, r"functional 'a' has shape \(3,\) for one unit; expected one number"),
        ({"a": lambda unit: unit["w"]}, "functional 'a' raised KeyError: 'w'; it is given one unit's values"),
        ({"a": lambda unit: float(unit["z"][0])}, "functional 'a' raised ConcretizationTypeError"),
        ({"a": lambda unit: jnp.log(unit["z"][0])}, r"'a' is not finite in \d+ of 2000 simulated units"),
    ],
)
def test_impossible_functionals_are_refused(narrow, functionals, match):
    with pytest.raises(am.DataError, match=match):
        am.recalibrate(*narrow, functionals=functionals, key=KEY)


def test_what_can_not_be_simulated_is_refused():
    def model(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.factor("more", -0.1 * z**2)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = {"x": np.zeros(8, np.float32)}
    posterior, units = posterior_of(model, planted.known(model, data, planted.normal_draw([[0.5]], [[0.7]])))
    with pytest.raises(am.ModelError, match=r"model 'model' can't be simulated: .*; nobody knows then"):
        am.recalibrate(posterior, units, functionals={"z": "z"}, key=KEY)
    plan = am.amortize(planted.groups, data, plate="unit", encoder=am.free())
    joint, guide = initialise(plan, to_batch(as_units(data, planted.groups, "unit")), KEY)
    free = am.Posterior(plan, joint, guide, RECORD, None)
    with pytest.raises(am.GuideError, match=r"am\.free\(\) has no q for simulated units"):
        am.recalibrate(free, data, functionals={"z": "z"}, key=KEY)
    groups, units = posterior_of(planted.groups, planted.groups_case())
    with pytest.raises(am.DataError, match=r"functional 'level' is 'level'; .*sites \['z'\] of plate 'unit'"):
        am.recalibrate(groups, units, functionals={"level": "level"}, key=KEY)


def test_draws_that_are_not_finite_are_refused():
    joint, guide, units = planted.linear_case()

    def broken(key, unit, shared):
        local, log_q = guide.draw(key, unit, shared)
        return jnp.where(unit.arrays["x"][0] > 1.5, jnp.nan, 1.0) * local, log_q

    case = joint, planted.Known(None, guide.local, None, None, draw=broken), units
    with pytest.raises(am.DataError, match=r"'z' is not finite in \d+ of 2000 simulated units; check the functional"):
        am.recalibrate(*posterior_of(planted.linear, case), functionals={"z": "z"}, key=KEY)


def test_impossible_slices_are_refused(narrow):
    with pytest.raises(am.DataError, match=r"by='x' is no ragged plate and no covariate .*; expected one of \[\]"):
        am.recalibrate(*narrow, functionals={"z": "z"}, key=KEY, by="x")
    with pytest.raises(am.DataError, match=r"by= has shape \(3,\) but there are 50 units"):
        am.recalibrate(*narrow, functionals={"z": "z"}, key=KEY, by=[1, 2, 3])
    with pytest.raises(am.DataError, match="unit '0' has no value to slice by"):
        am.recalibrate(*narrow, functionals={"z": "z"}, key=KEY, by=np.full(50, np.nan))
