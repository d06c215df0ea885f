"""How heavy is the tail of these importance weights? Pareto k-hat, smoothing, effective size, evidence.

The weights w_1, ..., w_S of one unit estimate its evidence and correct its draws only if their distribution has
enough finite moments. The largest M = ceil(min(S/5, 3 sqrt S)) of them, less the cutoff u (the next weight below),
are fitted by a generalised Pareto distribution,

    p(y) = (1 + k y / sigma)^(-1/k - 1) / sigma,      y = w - u > 0,

whose shape k is the diagnostic: moments of order below 1/k exist, and above k = 0.7 no practical S is enough. The fit
is the posterior mean of Zhang and Stephens (2009), drawn towards 0.5 by ten prior observations, as in ArviZ.

All functions take the log weights of ONE unit; `jax.vmap` gives many. They compile once per S.
The arithmetic is float32-safe: in units of y_max, with c_j > 0 on the grid of the fit and y_q the lower quartile of
the tail, 1 - b_j y = (1 - y) + c_j y / y_q is a sum of positive terms, taken in log space, that never overflows.

Reference: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, arXiv 1507.02646;
Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

from ._errors import DataError

MIN_SAMPLES = 21
"""The fewest draws whose tail holds the 5 samples that a fit needs."""

FLAT_K = -1.0
"""What `pareto_k` answers for weights without a tail: below every limit, and finite in reports."""

_MIN_TAIL = 5
_FLAT_EXCESS = 1e-3  # log(max w / mean w) up to which weights are as good as constant
_ROUNDING = 8.0  # units in the last place by which equal log weights may differ


class _Tail(NamedTuple):
    """The largest weights of one unit in ascending order, and the Pareto distribution fitted to them."""

    indices: Int[Array, " tail"]  # where they stand among the weights
    valid: Bool[Array, " tail"]  # above the cutoff, and so in the fit
    log_excess: Float[Array, " tail"]  # log((w - u) / (w_max - u))
    cutoff: Float[Array, ""]  # log(u / w_max)
    k: Float[Array, ""]  # with the prior; NaN, inf or FLAT_K where there is no fit
    log_sigma: Float[Array, ""]  # log(sigma / (w_max - u))
    fitted: Bool[Array, ""]


def tail_length(num_samples: int) -> int:
    """`ceil(min(S/5, 3 sqrt S))`, how many of S weights are taken for the tail."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def k_limit(num_samples: int) -> float:
    """The largest k-hat at which S draws are enough: `min(1 - 1/log10 S, 0.7)`.

    Errors:
        DataError: fewer than `MIN_SAMPLES` draws, whose k-hat is not defined.

    >>> round(k_limit(100), 3), k_limit(10_000)
    (0.5, 0.7)
    """
    if num_samples < MIN_SAMPLES:
        raise DataError(
            f"k_limit: num_samples is {num_samples}; a k-hat needs at least {MIN_SAMPLES} draws per unit "
            f"({_MIN_TAIL} in the tail); draw more, 1000 say"
        )
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7)


def k_error(k: np.ndarray, num_samples: int, repeats: int = 1) -> np.ndarray:
    """Monte-Carlo standard error of the median of `repeats` k-hats, each of `num_samples` draws (0 without fit).

    The shape of a generalised Pareto distribution, fitted to M values, has asymptotic variance (1 + k)² / M (Smith
    1987), of which the prior of the fit leaves the square of M / (M + 10); a median of several that differ by
    Monte Carlo alone has π/2 times the variance of their mean.

    >>> k_error(np.array([0.7]), 1000).round(3)
    array([0.158])
    """
    tail = tail_length(num_samples)
    one = np.maximum(1.0 + np.where(np.isfinite(k), k, -1.0), 0.0) * math.sqrt(tail) / (tail + 10.0)
    return one if repeats < 3 else one * math.sqrt(math.pi / 2 / repeats)


def pareto_k(log_weights: Float[Array, " num_samples"]) -> Float[Array, ""]:
    """Pareto k-hat of one unit's log weights, in nats and up to any constant.

    Besides the fitted k it is
    `FLAT_K` where the weights are constant up to 0.1% or rounding, or the whole tail ties for the largest: bounded
    weights are perfect (ArviZ says inf);
    inf where fewer than 5 weights stand above the cutoff: a few draws carry all (ArviZ says inf too);
    NaN where a log weight is NaN or +inf, all are -inf, or S < `MIN_SAMPLES` (callers refuse that earlier).
    A log weight of -inf, weight zero, is legal.

    >>> import jax.numpy as jnp
    >>> float(pareto_k(jnp.zeros(100)))
    -1.0
    """
    if log_weights.size < MIN_SAMPLES:
        return jnp.full((), jnp.nan, log_weights.dtype)
    return _fit_tail(log_weights).k


def pareto_smoothed_log_weights(log_weights: Float[Array, " num_samples"]) -> Float[Array, " num_samples"]:
    """One unit's log weights, normalised to `logsumexp = 0`, with the tail replaced by quantiles of its fit.

    The weight of rank r = 1..n in the tail becomes `u + Q((r - 1/2) / n)`, at most w_max, with the quantile function
    `Q(p) = sigma ((1 - p)^(-k) - 1) / k`. Where there is no fit (see `pareto_k`) they are normalised only; where a
    weight is NaN, all are NaN.
    """
    relative = log_weights - jnp.max(log_weights)
    if log_weights.size < MIN_SAMPLES:
        return relative - logsumexp(relative)
    tail = _fit_tail(log_weights)
    num_tail = jnp.sum(tail.valid)
    rank = jnp.cumsum(tail.valid)
    survival = (num_tail - rank + 0.5) / jnp.maximum(num_tail, 1)  # 1 - p, without cancellation near p = 1
    log_gap = jnp.log(-jnp.expm1(tail.cutoff))
    quantile = _log_quantile(jnp.clip(survival, 0.0, 1.0), tail.k) + tail.log_sigma + log_gap
    smooth = jnp.minimum(jnp.logaddexp(tail.cutoff, quantile), 0.0).astype(relative.dtype)
    replaced = relative.at[tail.indices].set(jnp.where(tail.valid, smooth, relative[tail.indices]))
    out = jnp.where(tail.fitted, replaced, relative)
    return out - logsumexp(out)


def effective_sample_size(log_weights: Float[Array, " num_samples"]) -> Float[Array, ""]:
    """Kish's effective number of draws, `(sum w)^2 / sum w^2`, in [1, S].

    It is NaN where a log weight is NaN or +inf, or all are -inf. It is blind to a mode that no draw has found: two
    modes at +-4 under one Gaussian read S. Read it beside k-hat, never alone.

    >>> import jax.numpy as jnp
    >>> float(effective_sample_size(jnp.full(8, -1e4)))
    8.0
    """
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    return jnp.minimum(jnp.sum(weights) ** 2 / jnp.sum(weights**2), float(log_weights.size))


def log_evidence(log_weights: Float[Array, " num_samples"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`log (1/S) sum w`, an estimate of one unit's log evidence in nats, and its standard error.

    By the delta method the error is `sd(w) / (sqrt(S) mean(w))`, with the sample standard deviation. It means nothing
    where k-hat is above `k_limit`, and is NaN for a single draw, or where all weights are zero (the estimate is -inf).
    """
    num_samples = log_weights.size
    log_mean = logsumexp(log_weights) - math.log(num_samples)
    if num_samples < 2:
        return log_mean, jnp.full_like(log_mean, jnp.nan)
    excess = jnp.expm1(log_weights - log_mean)
    variance = jnp.sum((excess - jnp.mean(excess)) ** 2) / (num_samples - 1)
    return log_mean, jnp.sqrt(variance / num_samples)


def _fit_tail(log_weights: Float[Array, " num_samples"]) -> _Tail:
    """The tail of one unit's weights and its fit; every case that has none is told apart in `k`."""
    largest = jnp.max(log_weights)
    values, indices = jax.lax.top_k(log_weights - largest, tail_length(log_weights.size) + 1)
    values, indices = jax.lax.optimization_barrier((values, indices))  # or XLA sorts all weights: 4 times as slow
    cutoff, tail, indices = values[-1], values[:-1][::-1], indices[:-1][::-1]
    valid = tail > cutoff
    log_excess = tail + jnp.log(-jnp.expm1(jnp.where(valid, cutoff - tail, -1.0))) - jnp.log(-jnp.expm1(cutoff))
    log_excess = jnp.where(valid, log_excess, 0.0)
    k, log_sigma = _fit_pareto(log_excess, valid)

    rounding = _ROUNDING * jnp.finfo(log_weights.dtype).eps * jnp.maximum(jnp.abs(largest), 1.0)
    above_mean = math.log(log_weights.size) - logsumexp(log_weights - largest)
    flat = (-cutoff <= rounding) | (above_mean <= _FLAT_EXCESS)
    broken = ~jnp.isfinite(largest)
    few = jnp.sum(valid) < _MIN_TAIL
    k = jnp.where(broken, jnp.nan, jnp.where(flat, FLAT_K, jnp.where(few, jnp.inf, k)))
    fitted = ~(broken | flat | few) & jnp.isfinite(k) & jnp.isfinite(log_sigma)
    return _Tail(indices, valid, log_excess, cutoff, k, log_sigma, fitted)


def _fit_pareto(log_y: Float[Array, " tail"], valid: Bool[Array, " tail"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Zhang and Stephens' k (with the prior of PSIS) and log sigma, in units of the largest y; `log_y` ascends.

    The profile likelihood `n (log(-b / k(b)) - k(b) - 1)`, `k(b) = mean log(1 - b y)`, is averaged over
    b_j = 1 - c_j / y_q, c_j = (sqrt(m / (j - 1/2)) - 1) / 3, j = 1..m, m = 30 + floor(sqrt n).
    """
    length = log_y.size
    grid = np.arange(1, 31 + math.isqrt(length))
    n = jnp.sum(valid)
    count = jnp.maximum(n, 1).astype(log_y.dtype)
    m = 30 + jnp.floor(jnp.sqrt(count))
    quartile = length - n + jnp.floor(count / 4 + 0.5).astype(n.dtype) - 1
    log_quartile = log_y[jnp.clip(quartile, 0, length - 1)]
    used = jnp.asarray(grid) <= m
    c = jnp.where(used, (jnp.sqrt(m / jnp.asarray(grid - 0.5, log_y.dtype)) - 1) / 3, 1.0)

    log_ratio = jnp.log(c) - log_quartile
    k = jax.vmap(_mean_log, (0, None, None, None))(log_ratio, log_y, valid, count)
    profile = count * (_log_abs_b(log_ratio) - jnp.log(jnp.abs(k)) - k - 1)
    weights = jax.nn.softmax(jnp.where(used, profile, -jnp.inf))

    log_ratio = jnp.log(jnp.sum(weights * c)) - log_quartile
    k = _mean_log(log_ratio, log_y, valid, count)
    log_sigma = jnp.log(jnp.abs(k)) - _log_abs_b(log_ratio)
    return (count * k + 5.0) / (count + 10.0), log_sigma


def _away_from_zero(log_ratio: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """Moves `log_ratio` off the removable singularity b = 0, where log(-b / k) would be log(0 / 0)."""
    tiny = jnp.finfo(log_ratio.dtype).eps
    return jnp.where(jnp.abs(log_ratio) < tiny, tiny, log_ratio)


def _log_abs_b(log_ratio: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """`log|b|` of b = 1 - exp(log_ratio), for ratios beyond the range of floats too."""
    log_ratio = _away_from_zero(log_ratio)
    return jnp.maximum(log_ratio, 0.0) + jnp.log(-jnp.expm1(-jnp.abs(log_ratio)))


def _mean_log(
    log_ratio: Float[Array, ""],
    log_y: Float[Array, " tail"],
    valid: Bool[Array, " tail"],
    count: Float[Array, ""],
) -> Float[Array, ""]:
    """`mean log(1 - b y)` over the valid y, b = 1 - exp(log_ratio): accurate at b y near 0, finite at any b."""
    log_ratio = _away_from_zero(log_ratio)
    y = jnp.exp(log_y)
    product = -jnp.expm1(log_ratio) * y
    near = jnp.abs(product) < 0.5
    terms = jnp.where(near, jnp.log1p(-jnp.where(near, product, 0.0)), jnp.logaddexp(jnp.log1p(-y), log_ratio + log_y))
    return jnp.sum(jnp.where(valid, terms, 0.0)) / count


def _log_quantile(survival: Float[Array, " tail"], k: Float[Array, ""]) -> Float[Array, " tail"]:
    """`log((s^(-k) - 1) / k)`, the log quantile at survival s of the Pareto distribution with sigma = 1."""
    exponential = -jnp.log(survival)
    power = k * exponential
    small = jnp.abs(k) < 1e-6
    safe_k = jnp.where(small, 1.0, jnp.abs(k))
    general = jnp.maximum(power, 0.0) + jnp.log(-jnp.expm1(-jnp.abs(power))) - jnp.log(safe_k)
    return jnp.where(small, jnp.log(exponential), general)
