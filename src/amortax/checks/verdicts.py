"""What do the numbers of a check say? Verdicts of units and globals, with the reason and what to do.

Unit i passes if its median k-hat over draws of the globals is under the limit for the number of draws, is a warning if
only its worst is above, or if the median is above by less than its own Monte-Carlo error, and fails otherwise. (Below
the limit the error changes nothing: the limit is one for k-hats that have it.) What to do: units that pass need
nothing; draws under the limit that are worth few can be reweighted; above it they must be refined; where nothing is
finite no draw helps. One exception: k-hat measures the shape of the weights' tail, not its
size, and reads above 0.7 on weights that hardly differ. With χ² = S/ESS - 1, the relative variance of the weights, no
posterior mean that the draws can show is off by more than sqrt(χ²) standard deviations (Cauchy-Schwarz). Weights with
χ² ≤ 0.01 (0.1 sd) are called flat, and pass unless their k-hat is above 2 (a mode that the guide never enters reads 3
to 4); with χ² ≤ 0.1 (0.3 sd) a k-hat above the limit is a warning, not yet a failure.

The globals are judged by their own weights over all training units; where the Monte-Carlo error of such a weight
exceeds 0.5 nats, they are unchecked, not passed.
"""

from __future__ import annotations

import numpy as np

from ..importance import FLAT, FLAT_K_LIMIT, LARGEST_ERROR
from .report import Reason

LOWEST_DRAWS = 100  # below, no tail can be fitted
UNEVEN = 0.1  # of χ²
LOWEST_SHARE = 0.3  # of the globals' draws that reweighting must keep
FAILING_SHARE = 0.05  # of units: more of them failing is a failure of the posterior

MEANING = {
    "non-finite": "have log weights that are not finite",
    "out-of-support": "have probability zero under the model at every draw",
    "pareto-k": "have a Pareto k above {limit:.2f}{where}",
    "low-ess": "keep less than a tenth of their draws when reweighted",
}
NEXT = {
    "non-finite": "look for impossible values and overflowing scales in these units' data, then train again",
    "out-of-support": "look for values that the model can't produce in these units' data",
    "pareto-k": "posterior.refine(units, key=key); for all units train longer, or choose a richer family",
    "low-ess": "posterior.refine(units, key=key) reweights; for all units train longer, or choose a richer family",
}


def unit_verdicts(columns: dict[str, np.ndarray], limit: float, num_samples: int) -> dict[str, np.ndarray]:
    """Columns `verdict`, `reason` and `next_step` from the columns of numbers."""
    median, worst, ess = columns["pareto_k"], columns["pareto_k_worst"], columns["ess"]
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2, chi2_worst = (num_samples / columns[name] - 1.0 for name in ("ess", "ess_worst"))
    broken = np.isnan(worst) | ~np.isfinite(columns["elbo"])
    outside = broken & np.isneginf(columns["log_evidence"])
    error = columns.get("pareto_k_se", np.zeros(len(median)))
    failing = broken | ((median - error > limit) & ~(chi2 <= UNEVEN))
    tail = ~failing & (worst > np.where(chi2_worst <= FLAT, FLAT_K_LIMIT, limit))
    thin = ~failing & ~tail & (ess < 0.1 * num_samples)
    verdict = np.select([failing, tail | thin], ["FAIL", "WARN"], "PASS")
    codes = ["out-of-support", "non-finite", "pareto-k", "low-ess"]
    reason = np.select([outside, broken, failing | tail, thin], codes, "")
    next_step = np.select([broken, failing | tail, thin], ["refit", "refine", "reweight"], "none")
    return {"verdict": verdict, "reason": reason, "next_step": next_step}


def unit_reasons(units: dict[str, np.ndarray], name: str, limit: float) -> list[Reason]:
    """One reason per verdict and code that any unit has."""
    total, found = len(units["verdict"]), []
    for verdict, where in (
        ("FAIL", ""),
        ("WARN", ", by less than its Monte-Carlo error or at some draw of the globals only"),
    ):
        for code, what in MEANING.items():
            count = int(np.sum((units["verdict"] == verdict) & (units["reason"] == code)))
            if count:
                level = "FAIL" if verdict == "FAIL" and count > FAILING_SHARE * total else "WARN"
                text = f"{count} of {total} units ({name}) {what.format(limit=limit, where=where)}."
                found.append(Reason(code, level, text, NEXT[code]))
    if total and np.all(units["verdict"] == "FAIL"):
        text = f"All {total} units ({name}) fail: no answer here can be relied on."
        step = "check data and model first (other units of measurement, another model?); then train again"
        found.insert(0, Reason("all-fail", "FAIL", text, step))
    return found


def global_reasons(own: dict[str, float] | None) -> list[Reason]:
    """What the weights of the globals say; None where they could not be computed."""
    if own is None:
        text = "The globals were not checked: their weights need all training units."
        step = "posterior.check(new_units, training=training_units, key=key)"
        return [Reason("globals-unchecked", "WARN", text, step)]
    error, k, limit = own["globals_error_nats"], own["globals_pareto_k"], own["globals_k_limit"]
    if np.isnan(k):
        text = "The weights of the globals are not finite."
        return [Reason("globals-non-finite", "FAIL", text, "look for impossible values and overflowing scales")]
    if error > LARGEST_ERROR:
        text = (
            f"The globals are unchecked: a log weight of theirs has a Monte-Carlo error of {error:.2f} nats "
            f"(limit {LARGEST_ERROR})."
        )
        step = "a better local family lowers this error; until then compare with NUTS on a subset"
        return [Reason("globals-unchecked", "WARN", text, step)]
    flat = own["globals_draws"] / own["globals_ess"] - 1.0 <= FLAT
    if k <= (FLAT_K_LIMIT if flat else limit):
        return _thin_globals(own)
    text = f"The globals have a Pareto k of {k:.2f} (limit {limit:.2f}): their family misses part of their posterior."
    step = "train longer (num_steps=), use a richer shared_family, or read the globals' intervals with care"
    return [Reason("globals-pareto-k", "FAIL" if k > 1.0 else "WARN", text, step)]


def _thin_globals(own: dict[str, float]) -> list[Reason]:
    share = own["globals_ess"] / own["globals_draws"]
    if share >= LOWEST_SHARE:
        return []
    text = (
        f"Reweighted, the draws of the globals are worth {share:.0%} of their number (limit {LOWEST_SHARE:.0%}): their "
        "family is too narrow, too wide or off somewhere, though its tails are not too light."
    )
    return [Reason("globals-low-ess", "WARN", text, "train longer (num_steps=), or use a richer shared_family")]
