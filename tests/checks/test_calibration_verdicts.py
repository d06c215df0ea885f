"""Does a finding need significance and size, and does it say which way q is off?"""

import numpy as np
import pytest
from scipy.stats import norm

from amortax.checks.calibration_verdicts import (
    coverage_reasons,
    distance_reasons,
    judge,
    level_of,
    rank_reasons,
    slice_reasons,
)
from amortax.checks.slices import grouped


def places(*, sd=1.0, moved=0.0, units=2000, seed=0):
    """Of true values N(0, 1) under q = N(moved, sd²)."""
    return norm.cdf((np.random.default_rng(seed).standard_normal(units) - moved) / sd)


def test_both_significance_and_size_are_needed():
    assert level_of(1e-9, 0.01) == "PASS"
    assert level_of(0.01, 0.5) == "PASS"
    assert level_of(1e-9, 0.05) == "WARN"
    assert level_of(2e-4, 0.5) == "WARN"
    assert level_of(1e-9, 0.11) == "FAIL"
    small = judge("z", places(sd=0.98, units=200_000))
    assert small.intervals < 1e-9
    assert coverage_reasons([small], "unit") == []
    few = judge("z", places(sd=0.8, units=100))
    assert coverage_reasons([few], "unit") == []


@pytest.mark.parametrize(
    ("q", "words", "levels"),
    [
        ({"sd": 0.6}, "too narrow", {"sbc": "FAIL", "coverage": "FAIL"}),
        ({"sd": 1.8}, "too wide", {"sbc": "FAIL", "coverage": "FAIL"}),
        ({"moved": 0.3}, "too high", {"sbc": "FAIL"}),
        ({"moved": -0.3}, "too low", {"sbc": "FAIL"}),
        ({"moved": -0.5, "sd": 0.5}, "too narrow and too low", {"sbc": "FAIL", "coverage": "FAIL"}),
        ({"sd": 0.87}, "too narrow", {"sbc": "WARN", "coverage": "WARN"}),
    ],
)
def test_the_way_in_which_q_is_off(q, words, levels):
    judged, good = judge("z", places(**q, units=2500)), judge("log density", places(seed=1))
    reasons = rank_reasons([judged], good, "unit") + coverage_reasons([judged], "unit")
    assert {reason.code: reason.level for reason in reasons} == levels
    assert words in reasons[0].text
    assert "'z'" in reasons[0].text


def test_a_transform_that_falls_turns_the_words():
    good = judge("log density", places(seed=1))
    reasons = rank_reasons([judge("z", places(moved=0.4), flipped=True)], good, "unit")
    assert "too low" in reasons[0].text


def test_more_tests_need_more_evidence():
    one = judge("z", places(sd=0.91))
    assert coverage_reasons([one], "unit")
    others = int(0.002 / 4 / one.intervals)
    assert coverage_reasons([one] + [judge("y", places(seed=1))] * others, "unit") == []


def test_false_alarms_are_as_rare_as_they_are_designed_to_be():
    """2,000 checks of an exact posterior with three numbers: at most 0.2% may warn."""
    alarms, runs = 0, 2000
    rng = np.random.default_rng(0)
    for _ in range(runs):
        first, second, third, density, distance = (judge(str(i), rng.random(2000)) for i in range(5))
        numbers = [first, second, third]
        found = rank_reasons(numbers, density, "unit") + coverage_reasons(numbers, "unit")
        alarms += bool(found + distance_reasons(distance, "unit"))
    print(f"{alarms} alarms in {runs} runs")
    assert alarms <= 0.002 * runs + 5 * np.sqrt(0.002 * runs)


def test_slices_of_few_units_are_shown_and_not_judged():
    few, many = judge("z", places(sd=0.5, units=90)), judge("z", places(sd=0.5, units=400))
    assert slice_reasons([("size", "1", few)]) == []
    (reason,) = slice_reasons([("size", "1", few), ("size", "2", many)])
    assert "size is 2" in reason.text
    assert "too narrow" in reason.text


def test_groups_of_a_slice():
    group, names = grouped(np.arange(100))
    assert names == ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
    assert list(np.bincount(group)) == [25, 25, 25, 25]
    group, names = grouped(np.array(["b", "a", "b"]))
    assert [names[i] for i in group] == ["b", "a", "b"]
    group, names = grouped(np.array([f"k{i % 30}" for i in range(300)] + ["k0"] * 5))
    assert len(names) == 12
    assert names[-1] == "other"
    assert names[0] == "k0"
    group, names = grouped(np.array([1.0, np.nan, 2.0, 2.0]))
    assert [names[i] for i in group] == ["1", "missing", "2", "2"]
    group, names = grouped(np.array([1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6]))
    assert len(np.unique(group)) == len(names)
