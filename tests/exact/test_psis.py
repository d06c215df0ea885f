"""k-hat and smoothing: equal to ArviZ where ArviZ is right, and right where it isn't."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortax import psis
from amortax._errors import DataError
from amortax.psis import (
    FLAT_K,
    MIN_SAMPLES,
    effective_sample_size,
    k_limit,
    log_evidence,
    pareto_k,
    pareto_smoothed_log_weights,
)

compiled_k = jax.jit(pareto_k)
compiled_smooth = jax.jit(pareto_smoothed_log_weights)
compiled_ess = jax.jit(effective_sample_size)
SIZES = [100, 400, 1000, 4000]


@functools.cache
def arviz_psislw():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("arviz").psislw


def reference(log_weights):
    """ArviZ's (smoothed, k) in float64, of the very float32 numbers that we are given."""
    psislw = arviz_psislw()
    with np.errstate(over="ignore"):
        smoothed, k = psislw(np.asarray(log_weights, np.float64))
    return smoothed, float(k)


def generalised_pareto(k):
    def draw(rng, size):
        uniform = rng.uniform(size=size)
        return np.log1p(np.expm1(-k * np.log(uniform)) / k) if k else np.log1p(-np.log(uniform))

    return draw


def lognormal(scale):
    return lambda rng, size: scale * rng.normal(size=size)


def student_ratio(df, scale):
    """Target Student-t(df), proposal N(0, scale^2): never a finite variance; k grows as the scale falls."""

    def draw(rng, size):
        x = scale * rng.normal(size=size)
        return -(df + 1) / 2 * np.log1p(x**2 / df) + x**2 / (2 * scale**2)

    return draw


DRAWS = {
    **{f"pareto({k})": generalised_pareto(k) for k in (-0.4, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.5, 3.0)},
    **{f"lognormal({s})": lognormal(s) for s in (0.01, 0.1, 0.5, 1.0, 2.0, 5.0)},
    **{f"student({df},{s})": student_ratio(df, s) for df, s in ((3, 1.0), (3, 0.5), (10, 2.0))},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DRAWS)
def test_k_and_smoothing_equal_arviz(name, size):
    for seed in range(3):
        log_weights = DRAWS[name](np.random.default_rng(seed), size).astype(np.float32)
        smoothed, k = reference(log_weights)
        assert float(compiled_k(log_weights)) == pytest.approx(k, abs=2e-3)
        ours = np.asarray(compiled_smooth(log_weights))
        assert np.abs(ours - smoothed).max() < 1e-3
        assert np.exp(ours.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("scale", [20.0, 50.0])
def test_tails_beyond_the_range_of_float32(scale):
    log_weights = (scale * np.random.default_rng(0).normal(size=1000)).astype(np.float32)
    assert float(compiled_k(log_weights)) == pytest.approx(reference(log_weights)[1], rel=1e-3)


@pytest.mark.parametrize(("x64", "k_error", "smooth_error"), [(True, 1e-10, 1e-10), (False, 1e-5, 3e-5)])
def test_vmap_over_units_is_the_same_as_one_by_one(x64, k_error, smooth_error):
    """In float64 to 1e-10: nothing leaks. In float32 XLA's order of summation is left: 5e-6 and 1.2e-5."""
    rng = np.random.default_rng(1)
    units = (rng.uniform(0.05, 4.0, size=(3000, 1)) * rng.normal(size=(3000, 400))).astype(np.float32)
    with jax.enable_x64(x64):
        units = jnp.asarray(units, jnp.float64 if x64 else jnp.float32)
        together = np.asarray(jax.jit(jax.vmap(pareto_k))(units))
        smoothed = np.asarray(jax.jit(jax.vmap(pareto_smoothed_log_weights))(units))
        for unit in range(0, 3000, 10):
            assert together[unit] == pytest.approx(float(compiled_k(units[unit])), abs=k_error)
            np.testing.assert_allclose(smoothed[unit], compiled_smooth(units[unit]), rtol=0, atol=smooth_error)


def test_one_trace_per_shape():
    traces = []

    @jax.jit
    def counted(log_weights):
        traces.append(None)
        return pareto_k(log_weights)

    counted(jnp.zeros(100)), counted(jnp.arange(100.0))
    assert len(traces) == 1


@pytest.mark.parametrize("variance", [0.25, 0.5, 0.75])
def test_known_k_of_a_narrow_gaussian(variance):
    """Q = N(0, s^2), p = N(0, 1), s < 1: P(w > t) falls like t^(-1/(1 - s^2)), so k = 1 - s^2."""
    x = np.sqrt(variance) * np.random.default_rng(7).normal(size=1_000_000)
    log_weights = (-(x**2) / 2 + x**2 / (2 * variance)).astype(np.float32)
    k = float(compiled_k(log_weights))
    assert abs(k - (1 - variance)) < 0.1
    assert k == pytest.approx(reference(log_weights)[1], abs=2e-3)


def test_a_wide_gaussian_has_negative_k():
    for scale in (1.5, 3.0):
        x = scale * np.random.default_rng(7).normal(size=4000)
        assert float(compiled_k((-(x**2) / 2 + x**2 / (2 * scale**2)).astype(np.float32))) < 0


@pytest.mark.parametrize("level", [0.0, -3e4, 12.3])
def test_constant_weights_are_perfect(level):
    log_weights = jnp.full(1000, level)
    assert float(compiled_k(log_weights)) == FLAT_K < k_limit(MIN_SAMPLES)
    np.testing.assert_allclose(compiled_smooth(log_weights), -np.log(1000), atol=1e-5)


@pytest.mark.parametrize("level", [0.0, -700.0, 1e4])
def test_weights_equal_up_to_rounding_are_perfect(level):
    noise = np.random.default_rng(2).integers(-2, 3, size=400) * np.spacing(np.float32(max(abs(level), 100.0)))
    assert float(compiled_k((level + noise).astype(np.float32))) == FLAT_K


def test_bounded_weights_that_tie_for_the_largest_are_perfect():
    assert float(compiled_k(jnp.where(jnp.arange(400) % 2 == 0, 0.0, -jnp.inf))) == FLAT_K
    assert float(compiled_k(jnp.where(jnp.arange(400) % 3 == 0, 1.0, 0.0))) == FLAT_K


def test_a_nan_or_infinite_weight_is_never_hidden():
    log_weights = np.random.default_rng(3).normal(size=400).astype(np.float32)
    for bad in (np.nan, np.inf):
        for place in (0, 200, 399):
            broken = log_weights.copy()
            broken[place] = bad
            assert np.isnan(compiled_k(broken))
            assert np.isnan(compiled_smooth(broken)).any()
            assert np.isnan(compiled_ess(broken))
    assert np.isnan(compiled_smooth(np.where(np.arange(400) == 5, np.nan, log_weights))).all()
    assert np.isnan(compiled_k(jnp.full(400, -jnp.inf)))


def test_zero_weights_are_legal():
    log_weights = np.random.default_rng(4).normal(size=1000).astype(np.float32)
    log_weights[::3] = -np.inf
    smoothed, k = reference(log_weights)
    assert float(compiled_k(log_weights)) == pytest.approx(k, abs=2e-3)
    ours = np.asarray(compiled_smooth(log_weights))
    assert np.isneginf(ours[::3]).all()
    keep = np.isfinite(ours)
    assert np.abs(ours[keep] - smoothed[keep]).max() < 1e-3
    for count in (9, 15, 50):  # two thirds are above zero: fewer than the tail's length, so the cutoff is -inf
        few = np.where(np.arange(1000) < count, log_weights, -np.inf)
        assert float(compiled_k(few)) == pytest.approx(reference(few)[1], abs=1e-4)


def test_a_shift_changes_nothing_beyond_rounding():
    step = 2.0**-9  # both 8 and 1e4 + 8 hold multiples of it exactly in float32
    log_weights = (np.round(np.random.default_rng(5).normal(size=1000) / step) * step).astype(np.float32)
    shifted = (log_weights + np.float32(1e4)).astype(np.float32)
    assert float(compiled_k(shifted)) == float(compiled_k(log_weights))
    np.testing.assert_array_equal(compiled_smooth(shifted), compiled_smooth(log_weights))
    assert float(compiled_ess(shifted)) == float(compiled_ess(log_weights))
    rough = np.random.default_rng(6).normal(size=1000).astype(np.float32)
    moved = rough + np.float32(1e4)
    error = np.abs((moved - np.float32(1e4)) - rough).max()  # what the caller's own addition lost
    assert abs(float(compiled_k(moved)) - float(compiled_k(rough))) < 10 * error


def test_one_dominating_weight_is_condemned():
    log_weights = np.random.default_rng(8).normal(size=1000).astype(np.float32)
    previous = float(compiled_k(log_weights))
    for height in (10.0, 50.0, 200.0, 1e4):
        log_weights[17] = height
        k = float(compiled_k(log_weights))
        assert k > previous
        previous = k
        if height < 500:  # beyond, ArviZ has lost the rest of the tail and says inf
            assert k == pytest.approx(reference(log_weights)[1], rel=2e-3, abs=2e-3)
        assert float(compiled_ess(log_weights)) < 1.2
    assert previous > 1.0
    assert np.isposinf(compiled_k(jnp.zeros(1000).at[17].set(30.0)))
    assert np.isposinf(compiled_k(jnp.full(1000, -jnp.inf).at[17].set(0.0)))


def test_too_few_draws_have_no_k():
    assert np.isnan(pareto_k(jnp.arange(MIN_SAMPLES - 1.0)))
    assert np.isfinite(pareto_k(jnp.arange(float(MIN_SAMPLES))))
    assert psis.tail_length(MIN_SAMPLES) == 5
    for size in (1, 2, 5):
        assert np.isnan(pareto_k(jnp.arange(float(size))))
        np.testing.assert_allclose(np.exp(pareto_smoothed_log_weights(jnp.arange(float(size)))).sum(), 1.0, rtol=1e-6)


def test_limit():
    assert k_limit(100) == pytest.approx(0.5)
    assert k_limit(1000) == pytest.approx(2 / 3)
    assert k_limit(4000) == k_limit(10**6) == 0.7
    with pytest.raises(DataError, match="num_samples is 20"):
        k_limit(20)


def test_effective_sample_size():
    assert float(compiled_ess(jnp.full(1000, -1e5))) == 1000.0
    assert float(compiled_ess(jnp.full(1000, -1e5).at[3].set(0.0))) == 1.0
    log_weights = np.random.default_rng(9).normal(size=1000)
    weights = np.exp(log_weights)
    expected = weights.sum() ** 2 / (weights**2).sum()
    assert float(compiled_ess(jnp.asarray(log_weights - 500, jnp.float32))) == pytest.approx(expected, rel=1e-3)
    assert float(compiled_ess(jnp.asarray([0.0, 0.0, -jnp.inf]))) == 2.0


def test_log_evidence_and_its_standard_error():
    """LogN(-s^2/2, s) has mean 1: over 4,000 repetitions of 1,000 draws the errors are those that it states."""
    scale, shift = 0.5, -800.0
    log_weights = scale * jax.random.normal(jax.random.key(10), (4000, 1000)) - scale**2 / 2 + shift
    estimate, error = jax.jit(jax.vmap(log_evidence))(log_weights)
    z = (np.asarray(estimate, np.float64) - shift) / np.asarray(error)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * 4000) + 0.02  # the delta method's own bias is of order 1/S
    assert abs(z.mean()) < 5 / np.sqrt(4000)
    weights = np.exp(np.asarray(log_weights[0], np.float64) - shift)
    assert float(error[0]) == pytest.approx(weights.std(ddof=1) / weights.mean() / np.sqrt(1000), rel=1e-3)


def test_log_evidence_at_the_edges():
    estimate, error = log_evidence(jnp.full(10, -1e4))
    assert float(estimate) == pytest.approx(-1e4, rel=1e-6)
    assert float(error) == pytest.approx(0.0, abs=1e-3)
    assert np.isneginf(log_evidence(jnp.full(10, -jnp.inf))[0])
    assert np.isnan(log_evidence(jnp.full(10, -jnp.inf))[1])
    assert np.isnan(log_evidence(jnp.asarray([0.0, jnp.nan]))[0])
    estimate, error = log_evidence(jnp.asarray([2.0]))
    assert float(estimate) == 2.0
    assert np.isnan(error)
