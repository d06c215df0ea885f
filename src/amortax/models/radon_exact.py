"""What is the exact posterior of the radon model? Quadrature over its two scales, the rest a Gaussian in closed form.

Write b = (mu, w1, w2, w3) ~ N(0, I), x_ck = (1, log_uranium_c, floor_ck, floor_by_county_c), s = county_effect_scale,
e = log_radon_scale. With the county effects integrated out, the n_c houses of county c are

    y_c | b ~ N(X_c b, e^2 I + s^2 11'),    inverse (I - g_c 11') / e^2,    g_c = s^2 / (e^2 + n_c s^2)

so that b | y ~ N(m, L^-1), L = I + sum_c (X'X - g_c X'1 1'X) / e^2, m = L^-1 sum_c (X'y - g_c X'1 1'y) / e^2, and

    effect_c | b, y ~ N(a_c' b + g_c 1'y_c, e^2 g_c),    a_c = (1, 0, 0, 0) - g_c X_c'1.

Only sums over the houses of a county enter. p(s, e | y) is integrated by the trapezoid rule in (z, log e), where
log s = z - exp(z_0 - z) folds the long tail towards s = 0 (Takahasi and Mori 1974; z_0 is 1 below the mode of log s),
on a box that holds everything within 16 nats of the mode. There the rule converges faster than any power of the number
of nodes, and the number is doubled until no moment moves. All float64. The line for effect_c holds for a county that
was not trained on too: its answer is the mixture over p(b, s, e | y_train), which the new county does not update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from amortax._errors import DataError

_COEFFICIENTS = ("county_effect_mean", "weight_uranium", "weight_floor", "weight_floor_by_county")
_DEPTH = 16.0  # nats below the mode that the box holds: about 1e-7 of the mass is outside
_DROPPED = 1e-7  # mass of the lightest nodes, left out of the answer once the moments have converged
_TOLERANCE = 1e-4  # posterior sds (and nats) that a doubling of the nodes may still move


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
    """Moments and 5, 50 and 95% quantiles of the effects of some counties, each of shape (counties,), in log pCi/L."""

    mean: Float[np.ndarray, " county"]
    sd: Float[np.ndarray, " county"]
    q05: Float[np.ndarray, " county"]
    q50: Float[np.ndarray, " county"]
    q95: Float[np.ndarray, " county"]


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """The posterior of the globals as a mixture: at each node the two scales, its weight, and b ~ N(mean, cov)."""

    county_effect_scale: Float[np.ndarray, " node"]
    log_radon_scale: Float[np.ndarray, " node"]
    weight: Float[np.ndarray, " node"]
    coefficient_mean: Float[np.ndarray, "node 4"]
    coefficient_cov: Float[np.ndarray, "node 4 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class ExactPosterior:
    """The answer: (mean, sd) by global, effects of the trained and of the new counties, log p(D_train) in nats.

    `moved` is the largest change by the last doubling of the nodes, in posterior sds or nats.
    """

    globals: dict[str, tuple[float, float]]
    train: Effects
    new: Effects | None
    log_marginal: float
    nodes: Nodes
    moved: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
    """Per county: n, 1'y (both (C,)), X'1 (C, 4). Over all houses: X'X (4, 4), X'y (4,), y'y."""

    count: np.ndarray
    y: np.ndarray
    x: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float


def exact_posterior(train: Mapping[str, Any], *, new: Mapping[str, Any] | None = None) -> ExactPosterior:
    """The exact posterior given the counties of `train`, and its answer for the counties of `new`.

    Args:
        train: `log_uranium` and `floor_by_county`, one number per county; `floor` and `log_radon`, one array of its
            houses per county, or padded (counties, houses) arrays where NaN in `log_radon` says padding.
        new: the same for counties that are not in `train`. Answers ∫ p(effect | d_new, v) p(v | D_train) dv over the
            globals v, which the new counties do not update.

    Returns:
        Moments accurate to 1e-4 posterior sd.

    Raises:
        DataError: where the arguments disagree in length, or the posterior of the scales has no finite box.

    >>> from amortax.models import radon
    >>> answer = exact_posterior(radon.counties())
    >>> round(answer.globals["weight_floor"][0], 2)
    -0.71

    """
    sums = _sums(train)
    nodes, log_marginal, moments, moved = _converged(sums, *_box(sums))
    names = (*_COEFFICIENTS, "county_effect_scale", "log_radon_scale")
    nodes = _heaviest(nodes)
    return ExactPosterior(
        globals={name: (float(mean), float(sd)) for name, mean, sd in zip(names, *moments[:, :6], strict=True)},
        train=_effects(sums, nodes),
        new=None if new is None else _effects(_sums(new), nodes),
        log_marginal=log_marginal,
        nodes=nodes,
        moved=moved,
    )


def _sums(data: Mapping[str, Any]) -> _Sums:
    """The sufficient statistics of some counties."""
    sizes = {name: len(data[name]) for name in ("log_uranium", "floor_by_county", "floor", "log_radon")}
    if len(set(sizes.values())) != 1:
        raise DataError(f"the arguments differ in their number of counties: {sizes}; give one entry per county in each")
    designs, outcomes = [], []
    for i, (uranium, by_county) in enumerate(zip(data["log_uranium"], data["floor_by_county"], strict=True)):
        floor, radon = np.asarray(data["floor"][i], np.float64), np.asarray(data["log_radon"][i], np.float64)
        if floor.shape != radon.shape:
            raise DataError(f"county {i}: floor has shape {floor.shape}, log_radon {radon.shape}; give one per house")
        floor, radon = floor[~np.isnan(radon)], radon[~np.isnan(radon)]
        one = np.ones_like(radon)
        designs.append(np.stack([one, one * float(uranium), floor, one * float(by_county)], axis=1))
        outcomes.append(radon)
        if not (np.all(np.isfinite(designs[-1])) and np.all(np.isfinite(radon))):
            raise DataError(f"county {i} holds a covariate or a log_radon that is not finite; leave that house out")
    return _Sums(
        count=np.array([len(y) for y in outcomes], np.float64),
        y=np.array([y.sum() for y in outcomes]),
        x=np.array([x.sum(0) for x in designs]).reshape(-1, 4),
        xx=sum((x.T @ x for x in designs), np.zeros((4, 4))),
        xy=sum((x.T @ y for x, y in zip(designs, outcomes, strict=True)), np.zeros(4)),
        yy=float(sum(y @ y for y in outcomes)),
    )


def _shrinkage(sums: _Sums, s: np.ndarray, e: np.ndarray) -> np.ndarray:
    """The g_c of the module's docstring at each node, (nodes, counties)."""
    return s[:, None] ** 2 / (e[:, None] ** 2 + sums.count * s[:, None] ** 2)


def _at(sums: _Sums, log_s: np.ndarray, log_e: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At nodes (log s, log e): log p(y, log s, log e) in nats, and mean (nodes, 4) and covariance of b given them."""
    s, e = np.exp(log_s), np.exp(log_e)
    g, e2 = _shrinkage(sums, s, e), e**2
    outer = (sums.x[:, :, None] * sums.x[:, None, :]).reshape(-1, 16)
    precision = np.eye(4) + (sums.xx - (g @ outer).reshape(-1, 4, 4)) / e2[:, None, None]
    linear = (sums.xy - g @ (sums.x * sums.y[:, None])) / e2[:, None]
    covariance = np.linalg.inv(precision)
    mean = np.einsum("gij,gj->gi", covariance, linear)
    quadratic = (sums.yy - g @ sums.y**2) / e2 - np.sum(linear * mean, -1)
    log_det = sums.count.sum() * 2 * log_e + np.sum(np.log1p(sums.count * (s / e)[:, None] ** 2), -1)
    log_det = log_det + np.linalg.slogdet(precision)[1]
    likelihood = -0.5 * (sums.count.sum() * np.log(2 * np.pi) + log_det + quadratic)
    prior = np.log(2 / np.pi) - 0.5 * (s**2 + e**2) + log_s + log_e  # two HalfNormal(1), and the Jacobian of the logs
    return likelihood + prior, mean, covariance


def _box(sums: _Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In (log s, log e): low and high corner of a box outside of which the density is `_DEPTH` nats lower; the mode."""
    low, high = np.array([-8.0, -5.0]), np.array([2.0, 2.0])
    for _ in range(60):
        axes = np.linspace(low, high, 41).T
        points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        value = _at(sums, *points)[0]
        inside = points[:, value > value.max() - _DEPTH]
        cell, width = (high - low) / 40, high - low
        first, last = inside.min(1), inside.max(1)
        touches = np.stack([first < low + 0.5 * cell, last > high - 0.5 * cell])
        if not touches.any() and np.all(last - first > 0.7 * width):
            return low, high, points[:, value.argmax()]
        low = np.where(touches[0], low - 0.5 * width, first - 1.5 * cell)
        high = np.where(touches[1], high + 0.5 * width, last + 1.5 * cell)
        if low.min() < -200.0:
            break
    raise DataError(
        f"the posterior of the two scales has no mode within ({low.round(1)}, {high.round(1)}) in logs; "
        "give more than one house in some counties, and outcomes that are not all equal"
    )


def _converged(
    sums: _Sums, low: np.ndarray, high: np.ndarray, mode: np.ndarray
) -> tuple[Nodes, float, Float[np.ndarray, "2 moments"], float]:
    """Nodes, log p(y), (mean, sd) of the six globals and all effects, and what the last doubling moved."""
    fold = mode[0] - 1.0
    fine = np.linspace(fold - 6.0, high[0] + 2.0, 4001)
    ends = np.interp([low[0], high[0]], fine - np.exp(fold - fine), fine)
    before, moved = None, np.inf
    for size in (16, 32, 64, 128, 256):
        axes = np.linspace(ends[0], ends[1], size + 1), np.linspace(low[1], high[1], size + 1)
        z, log_e = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        log_s = z - np.exp(fold - z)
        log_density, mean, covariance = _at(sums, log_s, log_e)
        log_density = log_density + np.log1p(np.exp(fold - z))
        top, cell = log_density.max(), np.prod([axis[1] - axis[0] for axis in axes])
        mass = np.exp(log_density - top)
        log_marginal = float(top + np.log(mass.sum() * cell))
        nodes = Nodes(np.exp(log_s), np.exp(log_e), mass / mass.sum(), mean, covariance)
        moments = _moments(sums, nodes)
        if before is not None:
            change = np.abs(moments - before[0]) / moments[1]
            moved = float(max(change.max(), abs(log_marginal - before[1])))
            if moved <= _TOLERANCE:
                return nodes, log_marginal, moments, moved
        before = moments, log_marginal
    raise DataError(f"the quadrature still moves by {moved:.1e} sd at {z.size} nodes; use NUTS for this data")


def _heaviest(nodes: Nodes) -> Nodes:
    """All nodes but the lightest ones that hold `_DROPPED` of the mass together."""
    order = np.argsort(nodes.weight)
    kept = np.sort(order[np.cumsum(nodes.weight[order]) > _DROPPED])
    fewer = Nodes(**{field.name: getattr(nodes, field.name)[kept] for field in dataclasses.fields(Nodes)})
    return dataclasses.replace(fewer, weight=fewer.weight / fewer.weight.sum())


def _moments(sums: _Sums, nodes: Nodes) -> Float[np.ndarray, "2 moments"]:
    """Mean and sd over the mixture of b, s, e, and the effects of the counties in `sums`."""
    effect_mean, effect_var = _effect_at(sums, nodes)
    zero = np.zeros_like(nodes.weight)
    own = [*nodes.coefficient_mean.T, nodes.county_effect_scale, nodes.log_radon_scale, *effect_mean.T]
    var = [*np.einsum("gii->ig", nodes.coefficient_cov), zero, zero, *effect_var.T]
    mean = np.array(own) @ nodes.weight
    spread = (np.array(own) - mean[:, None]) ** 2 + np.array(var)
    return np.stack([mean, np.sqrt(spread @ nodes.weight)])


def _effect_at(sums: _Sums, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (nodes, counties) of the effects at each node, b integrated out."""
    g = _shrinkage(sums, nodes.county_effect_scale, nodes.log_radon_scale)
    a = np.array([1.0, 0.0, 0.0, 0.0]) - g[:, :, None] * sums.x
    mean = np.einsum("gci,gi->gc", a, nodes.coefficient_mean) + g * sums.y
    variance = np.sum((a @ nodes.coefficient_cov) * a, -1) + nodes.log_radon_scale[:, None] ** 2 * g
    return mean, variance


def _effects(sums: _Sums, nodes: Nodes) -> Effects:
    """Moments and quantiles of the effects; a quantile by bisection of the mixture's distribution function."""
    from scipy.special import ndtr  # SciPy comes with JAX

    at, var = _effect_at(sums, nodes)
    at, sd_at, weight = at.T, np.sqrt(var.T), nodes.weight
    mean = at @ weight
    sd = np.sqrt(((at - mean[:, None]) ** 2 + var.T) @ weight)
    quantiles = []
    for level in (0.05, 0.5, 0.95):
        low, high = mean - 5 * sd, mean + 5 * sd  # by Cantelli 96% of any distribution is on either side of these
        for _ in range(36):
            middle = 0.5 * (low + high)
            below = ndtr((middle[:, None] - at) / sd_at) @ weight < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        quantiles.append(0.5 * (low + high))
    return Effects(mean, sd, *quantiles)
