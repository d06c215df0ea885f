"""New units of which nothing was observed: every way of saying so is the same, and the answer the prior's."""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.models import mixed_effects

RNG = np.random.default_rng(0)


def counties(floor, log_radon=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("county", floor.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(1.0, tau))
        with numpyro.plate("house", floor.shape[1], dim=-1):
            numpyro.sample("log_radon", dist.Normal(level - floor, 0.7), obs=log_radon)


def counts(y):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("item", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(rate), obs=y)


def schools(y):
    with numpyro.plate("school", y.shape[0], dim=-3):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("class", y.shape[1], dim=-2):
            own = numpyro.sample("own", dist.Normal(level, 0.5))
            with numpyro.plate("pupil", y.shape[2], dim=-1):
                numpyro.sample("y", dist.Normal(own, 1.0), obs=y)


def fit(model, data, plate, **options):
    plan = am.amortize(model, data, plate=plate)
    return am.fit(plan, data, key=jax.random.key(0), run=am.Run(num_steps=20, progress=False), **options)


@functools.cache
def radon():
    data = {name: [RNG.normal(size=n).round(1) for n in (2, 3, 1, 4, 2, 3)] for name in ("floor", "log_radon")}
    return fit(counties, data, "county")


NOTHING = {
    "none": {"floor": [[0, 1]], "log_radon": [[None, None]]},
    "left out": {"floor": [[0, 1]]},
    "nan": {"floor": np.array([[0.0, 1.0]]), "log_radon": np.full((1, 2), np.nan)},
    "no houses": {"floor": [[]], "log_radon": [[]]},
    "no houses, left out": {"floor": [[]]},
}


@pytest.mark.parametrize("case", NOTHING)
def test_levels_without_a_response_have_the_sd_of_the_prior_given_tau(case):
    """The model's own Newton step places q: whatever the encoder says, its factor is that of the prior."""
    draws = radon().sample(NOTHING[case], num_samples=2000, key=jax.random.key(1))
    standard = (draws["level"].isel(county=0) - 1.0) / draws["tau"]
    assert np.isfinite(standard).all()
    assert abs(float(standard.std()) - 1.0) < 0.3  # q has hardly been trained
    predicted = radon().predict(NOTHING[case], num_samples=3, key=jax.random.key(2))["log_radon"]
    assert np.isfinite(predicted).sum() == 3 * np.size(NOTHING[case]["floor"])


def test_ways_of_saying_so_agree_to_the_bit():
    same = [radon().sample(NOTHING[case], num_samples=5, key=jax.random.key(1)) for case in ("none", "left out", "nan")]
    assert all(np.array_equal(same[0]["level"], other["level"]) for other in same[1:])


def test_counts_and_elements_of_elements():
    y = RNG.poisson(2.0, size=(8, 3)).astype(float)
    y[0, 1] = np.nan
    drawn = fit(counts, {"y": y}, "unit").sample({"y": np.full((2, 3), np.nan)}, num_samples=3, key=jax.random.key(1))
    assert np.isfinite(drawn["rate"]).all()
    nested = fit(schools, {"y": [[[0.1, 0.2], [0.5]], [[1.0]], [[0.3], [0.1, 0.4, 0.2]]]}, "school")
    drawn = nested.sample({"y": [[[], []]]}, num_samples=3, key=jax.random.key(1))
    assert drawn["own"].shape == (3, 1, 2)
    assert np.isfinite(drawn["own"]).all()


def test_a_design_without_a_response_is_answered_and_predicted():
    table = {"rat": list("aabbccdd"), "age": [1.0, 2.0] * 4, "weight": RNG.normal(size=8)}
    rows = mixed_effects.design(table, group="rat", response="weight", fixed=["age"])
    trained = fit(mixed_effects.gaussian, rows.units, "group")
    new = {"rat": ["e", "e", "f"], "age": [0.0, 3.0, 1.0]}
    units = mixed_effects.design(new, group="rat", response=None, fixed=["age"]).units
    assert trained.predict(units, num_samples=2, key=jax.random.key(1))["y"].shape == (2, 2, 2)


def test_where_nothing_was_ever_missing_it_is_an_error_that_says_so():
    data = {"floor": RNG.normal(size=(6, 2)), "log_radon": RNG.normal(size=(6, 2))}
    dense = fit(counties, data, "county")
    with pytest.raises(am.DataError, match=r"no \['log_radon'\]; expected exactly .*nothing of it was missing"):
        dense.sample({"floor": np.zeros((1, 2))}, num_samples=2, key=jax.random.key(1))
    with pytest.raises(am.DataError, match="nothing was missing there in training"):
        dense.sample(
            {"floor": np.zeros((1, 2)), "log_radon": np.full((1, 2), np.nan)}, num_samples=2, key=jax.random.key(1)
        )
    with pytest.raises(am.DataError, match="all 12 values are missing"):
        am.amortize(counties, data | {"log_radon": np.full((6, 2), np.nan)}, plate="county")
