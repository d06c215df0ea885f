"""When is a unit good enough, and is one answer better than another? The limits, on numbers of many units at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._types import AnyArray
from ..importance import FLAT_K_LIMIT, UnitNumbers
from ..psis import k_limit
from .judge import OwnNumbers

LARGEST_GAP = 0.05  # nats from the bound to the evidence, up to which q is left as it is
EXACT_GAP = 0.005  # the same, where exact answers are asked for
KEPT = 0.05  # share of draws that reweighting must keep
SAME = 0.15  # sds, and e-folds of sd, by which draws may differ between two times
FORGOTTEN = 0.35  # correlation of chains with where they started
EVIDENCE_APART, MEANS_APART = 0.3, 0.3  # nats, and sds, between two sets of particles
ARRIVED = 0.99  # of sets
LEAST_ACCEPTED = 0.4  # of proposals of HMC


class Standing(NamedTuple):
    """Of every unit: median k-hat and its limit, share of draws kept, bound, its error, gap to the evidence."""

    k: np.ndarray
    limit: np.ndarray
    kept: np.ndarray
    elbo: np.ndarray
    error: np.ndarray
    gap: np.ndarray


def standing(numbers: UnitNumbers, own: OwnNumbers, count: int) -> Standing:
    """What (units, R) numbers of `count` draws each, of the defended q and of q's `own`, say for the decisions below.

    The gap is what q's own draws say, or more where those of the defended q surely show more.
    """
    elbo = np.asarray(own.elbo, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = np.nan_to_num(np.asarray(numbers.ess, np.float64) / count)
        noise = np.sqrt(np.mean((1.0 / kept - 1.0) / count, axis=1) / elbo.shape[1])
        wide = np.mean(np.asarray(numbers.log_evidence, np.float64) - elbo, axis=1)
        near = np.mean(np.asarray(own.log_evidence, np.float64) - elbo, axis=1)
        k = np.median(numbers.pareto_k, axis=1)
        return Standing(
            k=np.where(np.isnan(numbers.pareto_k).any(axis=1), np.inf, k),
            limit=np.full(len(elbo), k_limit(count)),
            kept=np.median(kept, axis=1),
            elbo=elbo.mean(axis=1),
            error=np.sqrt(np.mean(np.asarray(own.variance, np.float64), axis=1) / elbo.shape[1]),
            gap=np.where(np.isnan(wide), np.inf, np.fmax(near, wide - 3.0 * noise)),
        )


def mended(stands: Standing, *, exact: bool) -> np.ndarray:
    """Whether q of a unit needs nothing: its gap to the evidence is small, and weights say so reliably."""
    limit = EXACT_GAP if exact else LARGEST_GAP
    flat = (stands.gap <= EXACT_GAP) & (stands.k <= FLAT_K_LIMIT)  # a tail of weights that hardly differ says nothing
    return (stands.gap <= limit) & ((stands.k <= stands.limit) | flat)


def settled(stands: Standing) -> np.ndarray:
    """Whether q's weights can be trusted to correct it."""
    return (stands.k <= stands.limit) & (stands.kept >= KEPT)


def better(after: Standing, before: Standing) -> np.ndarray:
    """Whether a unit's bound rose by more than the errors of both; any bound is above none."""
    finite = np.isfinite(after.elbo) & np.isfinite(after.k)
    with np.errstate(invalid="ignore"):
        rose = after.elbo - before.elbo > 2.0 * np.hypot(after.error, before.error)
    return finite & (rose | ~np.isfinite(before.elbo))


def agreed(log_evidence: AnyArray, local: AnyArray, there: AnyArray, *, pooled: bool) -> np.ndarray:
    """Whether SMC can be trusted: its sets arrived, and where two are of one target, they agree on evidence and means.

    **Arguments**: `local` (units, s, d) and `there`, the share of sets that arrived; `pooled` where two sets are of
    one target, of which the first half of the draws is from the first.
    """
    evidence, found = np.asarray(log_evidence), np.asarray(there) >= ARRIVED
    if not pooled:
        return found
    first, second = np.array_split(np.asarray(local), 2, axis=1)
    with np.errstate(all="ignore"):
        apart = np.abs(first.mean(axis=1) - second.mean(axis=1)) / np.asarray(local).std(axis=1)
    same = np.all(np.nan_to_num(apart, nan=np.inf) <= MEANS_APART, axis=1)
    return found & same & (np.abs(np.diff(evidence, axis=1))[:, 0] <= EVIDENCE_APART)


def arrived(start: AnyArray, end: AnyArray, accepted: AnyArray, trusted: np.ndarray) -> np.ndarray:
    """Whether chains (units, s, d) are at rest: they moved, it changed no mean and sd, and they forgot their start.

    Where the start itself is `trusted` to be of the posterior, it need not be forgotten (modes, between which no chain
    moves).
    """
    before, after = np.asarray(start), np.asarray(end)
    known = trusted | _forgotten(before, after)
    return (np.asarray(accepted) > LEAST_ACCEPTED) & _unmoved(before, after) & known


def _unmoved(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether draws have the same means and sds, in every number."""
    with np.errstate(all="ignore"):
        sd = end.std(axis=1)
        mean = np.abs(end.mean(axis=1) - start.mean(axis=1)) / sd
        spread = np.abs(np.log(sd / start.std(axis=1)))
    allowed = SAME + 4.0 / np.sqrt(start.shape[1])
    return np.all(np.nan_to_num(np.maximum(mean, spread), nan=np.inf) <= allowed, axis=1)


def _forgotten(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether chains are about independent of where they started, in every number."""
    with np.errstate(all="ignore"):
        a, b = (x - x.mean(axis=1, keepdims=True) for x in (start, end))
        correlation = np.mean(a * b, axis=1) / (a.std(axis=1) * b.std(axis=1))
    return np.all(np.nan_to_num(correlation, nan=1.0) <= FORGOTTEN, axis=1)
