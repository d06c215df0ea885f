"""Are bands and p-values of uniform places exact? By enumeration where that can be done, by simulation elsewhere."""

import itertools

import numpy as np
import pytest

from amortax.checks.bands import (
    BINS,
    bin_band,
    bin_counts,
    bins_p_value,
    curve_band,
    curve_p_value,
    folded,
    largest_difference,
    stays_above,
    tails,
)


def test_the_probability_of_a_curve_is_that_of_all_its_outcomes():
    """Two places: 400 equally probable pairs of bins."""
    gammas = []
    for pair in itertools.product(range(BINS), repeat=2):
        counts = np.bincount(pair, minlength=BINS)
        gammas.append(tails(2)[np.arange(BINS - 1), np.cumsum(counts)[:-1]].min())
    gammas = np.array(gammas)
    for gamma in np.unique(gammas):
        assert stays_above(2, gamma) == pytest.approx(np.mean(gammas > gamma * (1 + 1e-6)), abs=1e-9)


@pytest.mark.parametrize("total", [150, 2000])
def test_p_values_have_the_rate_that_they_say(total):
    rng, count = np.random.default_rng(0), 4000
    places = rng.random((count, total))
    found = np.array([[f(bin_counts(x)), f(bin_counts(folded(x)))] for x in places for f in [curve_p_value]])
    bins = np.array([bins_p_value(bin_counts(x)) for x in places])
    for rate in (0.5, 0.1, 0.01):
        error = 5 * np.sqrt(rate / count)
        assert np.all(np.mean(found <= rate, axis=0) <= rate + error + 0.06 * rate)  # interpolated, and discrete
        assert np.all(np.mean(found <= rate, axis=0) >= 0.8 * rate - error)
        assert abs(np.mean(bins <= rate) - rate) <= error


def test_bands_hold_as_often_as_they_say():
    rng, total, count = np.random.default_rng(1), 500, 4000
    low, high = curve_band(total, 0.9)
    counts = np.array([bin_counts(x) for x in rng.random((count, total))])
    curves = np.cumsum(counts, axis=1)[:, :-1]
    inside = np.mean(np.all((curves >= low) & (curves <= high), axis=1))
    assert abs(inside - 0.9) <= 5 * np.sqrt(0.09 / count) + 0.01
    lowest, highest = bin_band(total, 0.9)
    assert np.mean(np.all((counts >= lowest) & (counts <= highest), axis=1)) >= 0.9


def test_p_values_are_small_far_out_and_never_zero_before():
    counts = np.full(BINS, 100)
    assert curve_p_value(counts) == pytest.approx(1.0, abs=0.01)
    last = 1.0
    for moved in (20, 40, 60, 80, 100):
        pushed = counts.copy()
        pushed[:5] += moved
        pushed[-5:] -= moved
        assert 0 < curve_p_value(pushed) < last
        last = curve_p_value(pushed)
    assert last < 1e-30


@pytest.mark.parametrize("draws", [19, 99])
def test_coverage_by_ranks_is_not_off_by_one(draws):
    """Every rank as often as every other: 90% intervals hold exactly 0.9, with 19 draws too."""
    ranks = np.arange(draws + 1)
    places = ((ranks[:, None] + (np.arange(40) + 0.5) / 40) / (draws + 1)).ravel()
    for level in (0.5, 0.8, 0.9, 0.95):
        assert np.mean(folded(places) <= level) == pytest.approx(level, abs=1e-12)
    assert largest_difference(bin_counts(places)) == 0.0
