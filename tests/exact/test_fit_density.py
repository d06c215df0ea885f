"""Does maximum likelihood reach the best that there is? The entropy of a Gaussian, two modes, a banana; bad data."""

import math

import jax
import numpy as np
import pytest

import amortax as am
from amortax.families.normal import FullNormal

KEY = jax.random.key(0)
COVARIANCE = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, 0.3], [0.0, 0.3, 0.25]])


@pytest.mark.parametrize("family", [am.full(), am.maf(2, width=16)])
def test_a_correlated_gaussian_is_fitted_to_its_entropy(family):
    rng = np.random.default_rng(0)
    rows = 100 + rng.standard_normal((12_000, 3)) @ np.linalg.cholesky(COVARIANCE).T
    density = am.fit_density(rows[:8_000], family, key=KEY, num_steps=1200)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + 0.5 * np.linalg.slogdet(COVARIANCE)[1]
    away = rows[8_000:] - 100
    truth = -0.5 * np.sum(away * np.linalg.solve(COVARIANCE, away.T).T, axis=1) - entropy + 1.5
    # On the same new rows: mean log p - log q is the divergence, whatever rows were drawn.
    divergence = truth.mean() - np.asarray(density.log_prob(rows[8_000:]), np.float64).mean()
    print(f"{type(family).__name__}: {divergence:.4f} nats")
    assert -0.02 < divergence < 0.02
    assert abs(density.held_out_log_prob + entropy) < 5 * 1.5**0.5 / math.sqrt(800) + 0.02

    draws = np.asarray(density.sample(20_000, key=jax.random.key(1)), np.float64)
    error = 5 * math.sqrt(1 / 7_200 + 1 / 20_000)  # of the rows fitted to, and of the draws
    assert np.all(np.abs(draws.mean(axis=0) - 100) < error * np.sqrt(np.diag(COVARIANCE)))
    scale = np.sqrt(np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)))
    assert np.all(np.abs(np.cov(draws.T) - COVARIANCE) < math.sqrt(2) * error * scale)


def test_a_mixture_finds_both_modes_with_their_shares():
    rng = np.random.default_rng(1)
    first = rng.random(6_000) < 0.3
    rows = np.where(first, -4 + 0.5 * rng.standard_normal(6_000), 4 + rng.standard_normal(6_000))
    density = am.fit_density(rows, am.mixture(am.diagonal(), 2), key=KEY, num_steps=1500)
    grid = np.linspace(-8, 9, 4001)
    found = np.exp(np.asarray(density.log_prob(grid[:, None]), np.float64))
    normal = lambda x, m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))  # noqa: E731
    truth = 0.3 * normal(grid, -4, 0.5) + 0.7 * normal(grid, 4, 1.0)
    assert np.trapezoid(found, grid) == pytest.approx(1.0, abs=1e-3)
    assert np.trapezoid(truth * np.log(truth / found), grid) < 0.005
    draws = np.asarray(density.sample(20_000, key=jax.random.key(1)))
    assert abs((draws < 0).mean() - 0.3) < 5 * math.sqrt(0.21 / 20_000) + 5 * math.sqrt(0.21 / 6_000)


def test_heavy_tails_are_found_heavy():
    rows = np.random.default_rng(2).standard_t(5, 10_000)
    new = np.random.default_rng(3).standard_t(5, 10_000)[:, None]
    heavy, light = (am.fit_density(rows, f, key=KEY, num_steps=800) for f in (am.student_t(5), am.diagonal()))
    gain = np.asarray(heavy.log_prob(new)) - np.asarray(light.log_prob(new))
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


def test_the_same_key_gives_the_same_density_and_other_data_of_equal_shapes_trace_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((300, 2))
    first = am.fit_density(rows, am.full(), key=KEY, num_steps=200)
    first.log_prob(rows[0])
    monkeypatch.setattr(FullNormal, "log_prob", lambda *_: pytest.fail("traced again"))
    again = am.fit_density(rows, am.full(), key=KEY, num_steps=200)
    other = am.fit_density(2 * rows + 5, am.full(), key=KEY, num_steps=200)
    am.fit_density(rows, am.full(), key=KEY, num_steps=50)  # another number of steps
    point = np.array([0.3, -0.2])
    assert first.log_prob(point) == again.log_prob(point)
    # The same fit in other units, up to the Jacobian.
    np.testing.assert_allclose(other.log_prob(2 * point + 5), first.log_prob(point) - 2 * math.log(2), atol=1e-4)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (np.zeros((30, 2, 2)), r"shape \(30, 2, 2\); expected \(rows, d\)"),
        (np.zeros((30, 0)), r"shape \(30, 0\)"),
        (np.ones((5, 2)), "5 rows; a density needs at least 20"),
        (np.where(np.arange(60).reshape(30, 2) == 13, np.nan, 1.0), "1 numbers that are not finite.* row 6, column 1"),
        (np.stack([np.arange(30.0), np.full(30, 7.0)], axis=1), "column 1 of data is constant"),
        (1.7e9 + 1e3 * np.random.default_rng(6).standard_normal((30, 1)), "column 0 .* subtract a constant first"),
        ([["a"]] * 30, "not numbers"),
    ],
)
def test_data_that_have_no_density_are_refused(data, complaint):
    with pytest.raises(am.DataError, match=complaint):
        am.fit_density(data, am.full(), key=KEY)


def test_calls_that_make_no_sense_are_refused():
    rows = np.random.default_rng(5).standard_normal((100, 1))
    with pytest.raises(am.GuideError, match="am.coupling on 1 dimension"):
        am.fit_density(rows, am.coupling(), key=KEY)
    with pytest.raises(am.DataError, match="key must be one typed JAX key"):
        am.fit_density(rows, am.diagonal(), key=jax.random.split(KEY))
    density = am.fit_density(rows, am.diagonal(), key=KEY, num_steps=100)
    with pytest.raises(am.DataError, match=r"shape \(3, 2\); expected \(rows, 1\)"):
        density.log_prob(np.zeros((3, 2)))
    with pytest.raises(am.DataError, match="num must be a whole number"):
        density.sample(0, key=KEY)
