"""How far may places of the truth stray from uniform by chance? Exact bands and p-values, in plain NumPy.

Of N places that are uniform on (0, 1), the count up to z is binomial(N, z). With

    tail_k = 2 min(P(C_k <= c_k), P(C_k >= c_k))   at z_k = k/20,   and   γ = min_k tail_k,

a whole curve of counts is unusual where γ is small (Säilynoja, Bürkner and Vehtari 2022). The counts are a chain,

    C_{k+1} - C_k | C_k ~ binomial(N - C_k, 1 / (20 - k)),

so the probability that all tails stay above γ is a product of 19 small matrices: no simulation, and exact far out,
where the limits of many tests together lie. (Kolmogorov and Smirnov's p-values are for numbers without ties, and
false-alarm on ranks.)

The same curve of |2 place - 1| is the coverage of central intervals at all levels at once, as it is 1 - level where
the truth is outside.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

BINS = 20
_SMALLEST, _GRID = 1e-12, 18  # of γ, at which p-values are computed; between these they are interpolated


def bin_counts(places: Float[np.ndarray, " n"]) -> Int[np.ndarray, " bins"]:
    """How many places lie in each of 20 equal bins."""
    return np.bincount(np.minimum((np.asarray(places) * BINS).astype(int), BINS - 1), minlength=BINS)


def folded(places: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How wide a central interval must be to hold the truth: the smallest level that covers it."""
    return np.abs(2.0 * np.asarray(places, np.float64) - 1.0)


def largest_difference(counts: Int[np.ndarray, " bins"]) -> float:
    """The largest |share up to z - z| over z = 1/20, ..., 19/20."""
    share = np.cumsum(counts)[:-1] / max(int(counts.sum()), 1)
    return float(np.max(np.abs(share - np.arange(1, BINS) / BINS)))


def bins_p_value(counts: Int[np.ndarray, " bins"]) -> float:
    """Of Pearson's χ² of the bins; in groups of four where fewer than 20 a bin are expected."""
    from scipy.stats import chi2  # SciPy comes with JAX

    counts = counts if counts.sum() >= 20 * BINS else counts.reshape(-1, 4).sum(axis=1)
    expected = counts.sum() / len(counts)
    return float(chi2.sf(np.sum((counts - expected) ** 2) / expected, len(counts) - 1))


def curve_p_value(counts: Int[np.ndarray, " bins"]) -> float:
    """Probability that the curve of as many uniform places is as unusual at some z."""
    total = int(counts.sum())
    gamma = float(np.min(tails(total)[np.arange(BINS - 1), np.cumsum(counts)[:-1]]))
    if gamma <= _SMALLEST:
        return (BINS - 1) * gamma  # an upper limit
    log_gamma, log_p = _p_values(total)
    return float(np.exp(np.interp(np.log(gamma), log_gamma, log_p)))


def curve_band(total: int, level: float) -> tuple[Int[np.ndarray, " inner"], Int[np.ndarray, " inner"]]:
    """(lowest, highest) counts up to z = 1/20, ..., 19/20, which the curve leaves with probability 1 - `level`."""
    log_gamma, log_p = _p_values(total)
    gamma = np.exp(np.interp(np.log(1.0 - level), log_p, log_gamma))
    inside = tails(total) > gamma
    return np.argmax(inside, axis=1), total - np.argmax(inside[:, ::-1], axis=1)


def bin_band(total: int, level: float) -> tuple[int, int]:
    """(lowest, highest) count of a bin, which any of the 20 leaves with probability below 1 - `level` (Bonferroni)."""
    from scipy.stats import binom

    outside = (1.0 - level) / (2 * BINS)
    return int(binom.ppf(outside, total, 1 / BINS)), int(binom.ppf(1.0 - outside, total, 1 / BINS))


@functools.lru_cache(maxsize=64)
def tails(total: int) -> Float[np.ndarray, "inner counts"]:
    """2 min(P(C_k <= c), P(C_k >= c)) for every k and every count c from 0 to `total`."""
    from scipy.stats import binom

    at, counts = np.arange(1, BINS)[:, None] / BINS, np.arange(total + 1)[None]
    below = binom.cdf(counts, total, at)
    above = binom.sf(counts - 1, total, at)
    return np.minimum(2.0 * np.minimum(below, above), 1.0)


@functools.lru_cache(maxsize=64)
def _p_values(total: int) -> tuple[np.ndarray, np.ndarray]:
    """(log γ, log probability that some tail is at most γ), both rising."""
    gammas = np.geomspace(_SMALLEST, 0.999, _GRID)
    found = np.array([1.0 - stays_above(total, gamma) for gamma in gammas])
    found = np.where(found > 1e-10, found, gammas * (BINS - 1))  # beyond what 1 - x resolves
    return np.log(gammas), np.log(np.minimum(np.maximum.accumulate(found), 1.0))


def stays_above(total: int, gamma: float) -> float:
    """Probability that all tails of the curve of `total` uniform places are above `gamma`."""
    from scipy.special import gammaln

    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    inside = tails(total) > gamma * (1.0 + 1e-9)
    states, probability = np.zeros(1, int), np.ones(1)
    for k in range(BINS - 1):
        new = np.flatnonzero(inside[k])
        share = 1.0 / (BINS - k)
        left, step = total - states[None], new[:, None] - states[None]
        rest = np.maximum(left - step, 0)
        log_mass = log_factorial[left] - log_factorial[np.maximum(step, 0)] - log_factorial[rest]
        log_mass = log_mass + step * np.log(share) + rest * np.log1p(-share)
        mass = np.exp(np.where((step >= 0) & (step <= left), log_mass, -np.inf))
        states, probability = new, mass @ probability
    return float(np.sum(probability))
