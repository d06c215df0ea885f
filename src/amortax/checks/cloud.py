"""How far is a point from a cloud of points? A fixed small share of the cloud's own kind is flagged.

With y the coordinates less their centre, over their scale, a cloud knows up to 32 principal directions a_j with
variances l_j, and the mean variance r of what is left. Three numbers are judged, each blind to what others see:

    T = mean_j (a_j . y)^2 / l_j      along the directions of the cloud (all of them, in few dimensions)
    Q = |y - sum_j a_j (a_j . y)|^2 / (r (d - J))      off them: what the cloud never does
    M = max_j y_j^2      one coordinate far away, which the mean over hundreds would hide

Their limits are quantiles of the cloud's own points, each measured against a mean and directions found without it (in
ten or five parts), so that a few points in many dimensions don't seem close to themselves. Beyond the points there
are, a quantile is extrapolated by a power law fitted to the largest (Hill 1975); for lighter tails it errs to the far
side.
With `SHARE` = 0.5% for all three together, a point of the cloud's own kind is flagged at most that often (Bonferroni).

Centre and scale are medians and quartiles, and directions are found from points drawn in to 6 scales: a corrupted
training unit doesn't make the others' corruption look usual.

Reference: Hill (1975), A simple general approach to inference about the tail of a distribution; T and Q are Hotelling's
T² and the squared prediction error of process monitoring (Jackson and Mudholkar 1979).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import ArtifactError

SHARE = 0.005  # of the cloud's own kind that is flagged, by design
FEWEST = 20  # points without which nothing is known of a cloud
MOST = 20_000  # points that are looked at
DIRECTIONS, PER_DIRECTION = 32, 5  # at most; points that each needs
COORDINATES = 512  # more are folded into as many, by fixed signs
FARTHEST, DRAWN_IN = 30.0, 6.0  # scales
QUARTILE = 0.6744897501960817  # of the standard normal
BLOCK = 4096  # points at once
NARROWEST = 1e-3  # variance of a direction, relative to the mean: below is rounding

Points = Float[np.ndarray, "n d"]


class Cloud(eqx.Module):
    """What is stored of a cloud of points in d coordinates; d may be 0."""

    center: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    mean: Float[np.ndarray, " k"]  # of y, after folding
    directions: Float[np.ndarray, "j k"]
    variances: Float[np.ndarray, " j"]
    rest: Float[np.ndarray, ""]  # mean variance off the directions; 0 where there is nothing off them
    limits: Float[np.ndarray, " 3"]  # of T, Q, M; infinite for one that isn't judged
    tails: Float[np.ndarray, " 3"]  # exponent of the power law of each: P(statistic > t) falls like t^(-1/tail)

    def judge(self, points: Points) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(how far, in limits: flagged above 1; of those flagged the share of the cloud's own kind as far, else 1)."""
        ratios = np.concatenate([self._ratios(points[i : i + BLOCK]) for i in range(0, max(len(points), 1), BLOCK)])
        judged = np.isfinite(self.limits)
        if not judged.any():
            return np.zeros(len(points)), np.ones(len(points))
        with np.errstate(divide="ignore", over="ignore"):
            each = SHARE * np.maximum(ratios, 1e-300) ** (-1.0 / self.tails)
        chance = np.min(np.where(ratios > 1.0, each, 1.0)[:, judged], axis=1)
        return np.sqrt(np.max(ratios[:, judged], axis=1)), chance

    def _ratios(self, points: Points) -> Float[np.ndarray, "n 3"]:
        return _statistics(_folded(_standardised(points, self.center, self.scale)), self._shape) / self.limits

    @property
    def _shape(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.mean, self.directions, self.variances, self.rest

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name."""
        return {name: np.asarray(getattr(self, name)) for name in _NAMES}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Cloud:
        """The cloud that `to_arrays` stored; `ArtifactError` for arrays that can't be one."""
        if sorted(arrays) != sorted(_NAMES):
            raise ArtifactError(f"a cloud of training units has the arrays {sorted(arrays)}, expected {sorted(_NAMES)}")
        number, folded, along = arrays["center"].size, arrays["mean"].size, arrays["variances"].size
        want = [(number,), (number,), (min(number, COORDINATES),), (along, folded), (along,), (), (3,), (3,)]
        for name, shape in zip(_NAMES, want, strict=True):
            if arrays[name].shape != shape or arrays[name].dtype != np.float64:
                raise ArtifactError(f"array '{name}' of a cloud is {arrays[name].dtype}{list(arrays[name].shape)}")
        return cls(**arrays)


_NAMES = ("center", "scale", "mean", "directions", "variances", "rest", "limits", "tails")


def cloud_of(points: Points) -> Cloud:
    """The cloud of at least `FEWEST` points (n, d); NaN is a coordinate that a point doesn't have."""
    center, scale = _center_scale(points)
    free = _folded(_standardised(points, center, scale))
    drawn_in = np.clip(free, -DRAWN_IN * _spread(points), DRAWN_IN * _spread(points))
    parts = 10 if len(points) < 200 else 5
    part = np.arange(len(points)) % parts
    whole = _moments(drawn_in)
    found = np.empty((len(points), 3))
    for i in range(parts):
        others = whole - _moments(drawn_in[part == i])
        found[part == i] = _statistics(free[part == i], others.shape())
    shape = whole.shape()
    judged = np.array([len(shape[2]) > 0, shape[3] > 0, points.shape[1] > 0])
    share = SHARE / max(judged.sum(), 1)
    limits, tails = np.transpose([_limit(x, share) for x in found.T])
    limits = np.where(judged, limits, np.inf)
    return Cloud(center, scale, shape[0], shape[1], shape[2], shape[3], limits, tails)


def _spread(points: Points) -> float:
    """The scale of folded coordinates, each a sum of several."""
    return math.sqrt(max(points.shape[1] / COORDINATES, 1.0))


def _center_scale(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Medians and quartile spreads; where half the points agree, a deviation that leaves none beyond `FARTHEST`."""
    known = np.where(np.isnan(points).all(axis=0, keepdims=True), 0.0, points)
    quantile = np.nanquantile if np.isnan(known).any() else np.quantile  # which is faster by far
    low, center, high = quantile(known, [0.25, 0.5, 0.75], axis=0) if points.shape[1] else np.zeros((3, 0))
    away = np.where(np.isnan(known), 0.0, known - center)
    deviation = np.sqrt(np.mean(away**2, axis=0))
    deviation = np.maximum(deviation, np.max(np.abs(away), axis=0, initial=0.0) / FARTHEST)
    scale = (high - low) / (2 * QUARTILE)
    scale = np.where(scale > 1e-6 * deviation, scale, deviation)
    return center, np.where(scale > 1e-6 * np.abs(center) + 1e-12, scale, np.maximum(0.01 * np.abs(center), 0.1))


def _standardised(points: Points, center: np.ndarray, scale: np.ndarray) -> Points:
    return np.nan_to_num((points - center) / scale, nan=0.0, posinf=1e15, neginf=-1e15).clip(-1e15, 1e15)


def _folded(free: Points) -> Float[np.ndarray, "n k"]:
    """More than `COORDINATES` coordinates as as many sums of some, by signs that only their places decide."""
    size = free.shape[1]
    if size <= COORDINATES:
        return free
    place = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    sign = 1.0 - 2.0 * ((place >> np.uint64(40)) & np.uint64(1))
    order = np.argsort(place, kind="stable")
    starts = (np.arange(COORDINATES) * size) // COORDINATES
    return np.add.reduceat((free * sign)[:, order], starts, axis=1)


class _Moments(NamedTuple):
    """Of some points: how many, their sum, the sum of their products."""

    count: float
    total: np.ndarray
    products: np.ndarray

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(self.count - other.count, self.total - other.total, self.products - other.products)

    def shape(self) -> tuple[np.ndarray, ...]:
        """(mean, directions, variances, mean variance of the rest)."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        size = len(mean)
        kept = min(size, DIRECTIONS, int(self.count) // PER_DIRECTION)
        average = max(float(np.mean(values)), 1e-12) if size else 1.0
        values, vectors = values[::-1], vectors[:, ::-1].T
        rest = max(float(np.mean(values[kept:])), NARROWEST * average) if kept < size else 0.0
        return mean, vectors[:kept], np.maximum(values[:kept], NARROWEST * average), np.array(rest)


def _moments(free: Points) -> _Moments:
    return _Moments(float(len(free)), free.sum(axis=0), free.T @ free)


def _statistics(free: Points, shape: tuple[np.ndarray, ...]) -> Float[np.ndarray, "n 3"]:
    """T, Q and M of every point; 0 where there is none."""
    mean, directions, variances, rest = shape
    away = free - mean
    along = away @ directions.T
    mean_square = np.mean(along**2 / variances, axis=1) if len(variances) else np.zeros(len(free))
    off = np.maximum(np.sum(away**2, axis=1) - np.sum(along**2, axis=1), 0.0)
    off = off / (rest * (len(mean) - len(variances))) if rest > 0 else np.zeros(len(free))
    return np.stack([mean_square, off, np.max(away**2, axis=1, initial=0.0)], axis=1)


def _limit(values: Float[np.ndarray, " n"], share: float) -> tuple[float, float]:
    """(the value that `share` of such values exceed, exponent of their tail); at least the quantile that is seen."""
    ordered = np.maximum(np.sort(values)[::-1], 1e-12)
    count = len(ordered)
    tail = max(10, math.ceil(min(count / 5, 3 * math.sqrt(count))))
    exponent = max(float(np.mean(np.log(ordered[:tail] / ordered[tail]))), 0.01)
    limit = ordered[tail] * max(tail / count / share, 1.0) ** exponent
    seen = int(share * count)
    return max(limit, ordered[seen - 1] if seen else 0.0), exponent
