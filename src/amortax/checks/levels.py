"""What levels must quantiles of q have for its intervals to cover? Split conformal calibration on simulated units.

For every simulated unit, with the covariates, lengths and masks of a real one,

    v* ~ q(v),   (u*, d*) ~ p( . | v*),   u_l ~ q(u | d*, v_l),   v_l ~ q(v),   l = 1, ..., L,

which is what a new unit gets: nobody knows its v. The level of a number f* = f(u*) among the ordered f(u_l) is what the
quantile function of the draws takes to f*,

    level = (r + (f* - f_r) / (f_{r+1} - f_r)) / (L + 1)    between the r-th and the next draw, from 1/(L+1) to L/(L+1);

beyond all draws it goes on by one for each standard deviation of the draws, so that a q that is far too narrow has an
answer too. Among equal draws it is one of theirs at random.

The level of a new unit simulated in the same way is one more of n + 1 that are exchangeable (Vovk, Gammerman and Shafer
2005; Lei et al. 2018). With k = ceil((n + 1) p) and i = floor((n + 1 - k) / 2), it lies between the i-th and the
(i + k)-th of the n with probability k / (n + 1), which is at least p and below p + 1/(n + 1). So the interval between
the quantiles at these two levels covers so often, whatever q is. Both tails are cut alike, so that a q that is too high
or too low is moved, not widened. By slice the same holds in every slice (Mondrian, Vovk et al. 2003), as the slice of a
unit is known without its responses.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

_ROUNDING = 1e-9


def levels_of(
    true: Float[np.ndarray, "n ..."], draws: Float[np.ndarray, "n draws ..."], uniform: Float[np.ndarray, "n ..."]
) -> Float[np.ndarray, "n ..."]:
    """The level of every true number among its draws; `uniform` numbers say which of equal draws it is."""
    true, ordered = np.asarray(true, np.float64), np.sort(np.asarray(draws, np.float64), axis=1)
    count, spread = ordered.shape[1], _spread(ordered)
    lower = np.sum(ordered < true[:, None], axis=1)
    equal = np.sum(ordered == true[:, None], axis=1)
    before, after = (_at(ordered, np.clip(lower + step, 0, count - 1)) for step in (-1, 0))
    gap = np.where(after > before, after - before, 1.0)
    inside = lower + np.clip((true - before) / gap, 0.0, 1.0)
    found = np.where(equal > 0, lower + 1 + uniform * np.maximum(equal - 1, 0), inside) / (count + 1)
    found = np.where((lower == 0) & (equal == 0), 1 / (count + 1) - (after - true) / spread, found)
    return np.where(lower == count, count / (count + 1) + (true - before) / spread, found)


def values_at(
    levels: Float[np.ndarray, "n ..."], draws: Float[np.ndarray, "n draws ..."]
) -> Float[np.ndarray, "n ..."]:
    """What has these levels among the draws: the other way round."""
    ordered = np.sort(np.asarray(draws, np.float64), axis=1)
    count, spread = ordered.shape[1], _spread(ordered)
    place = np.clip(levels * (count + 1) - 1, 0, count - 1)
    first = np.minimum(np.floor(place).astype(int), count - 2)
    low, high = _at(ordered, first), _at(ordered, first + 1)
    beyond = np.minimum(levels - 1 / (count + 1), 0.0) + np.maximum(levels - count / (count + 1), 0.0)
    return low + (place - first) * (high - low) + beyond * spread


def _at(ordered: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(ordered, index[:, None], axis=1)[:, 0]


def _spread(ordered: np.ndarray) -> np.ndarray:
    spread = ordered.std(axis=1)
    return np.where(spread > 0, spread, 1.0)


def places_for(level: float, count: int) -> tuple[int, int] | None:
    """(i, i + k), from 1, of the levels of `count` simulated units between which a new one's is; None if too few."""
    inside = math.ceil((count + 1) * level - _ROUNDING)
    first = (count + 1 - inside) // 2
    return (first, first + inside) if first >= 1 and first + inside <= count else None


def units_needed(level: float) -> int:
    """The least number of simulated units for intervals of this level."""
    count = max(2, math.floor(2 / (1 - level)) - 3)
    while places_for(level, count) is None:
        count += 1
    return count
