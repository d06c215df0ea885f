"""Can these answers be trusted? Bounds, k-hat and ESS of every unit given the globals, the globals' own k-hat, verdicts.

Unit i passes if its median k-hat over draws of the globals is under the limit for the number of draws, is a warning if
only its worst is above, and fails otherwise. The globals are judged by their own weights over all training units
(see `importance`); where the Monte-Carlo error of such a weight exceeds 0.5 nats, they are unchecked, not passed.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array

from .._errors import DataError
from ..chunks import chunks
from ..data import Units
from ..guide import Guide
from ..importance import shared_draws, shared_prior, unit_bounds, unit_numbers
from ..joint.joint import Joint
from ..psis import effective_sample_size, k_limit, pareto_k
from .report import Reason, Report

GLOBAL_DRAWS = 8  # at which units are judged
OWN_DRAWS = 500  # for the weights of the globals themselves
LOWEST_DRAWS = 100
LARGEST_ERROR = 0.5  # nats
EVALUATIONS = 50_000_000  # of one unit's density, for the globals' weights
FEW = 8  # draws of a unit per draw of the globals, at first; more only where they are too noisy
FAILING_SHARE = 0.05


def check(
    joint: Joint,
    guide: Guide,
    data: Units,
    training: Units | None,
    *,
    key: Array,
    num_samples: int,
    about: dict[str, str],
) -> Report:
    """The report on checked units `data`; `training` are all training units, None if not at hand."""
    if num_samples < LOWEST_DRAWS:
        raise DataError(f"check: {num_samples} draws per unit are too few to fit a tail; give num_samples={LOWEST_DRAWS} or more")
    unit_key, own_key = jax.random.split(key)
    units, numbers = _judge_units(joint, guide, data, unit_key, num_samples)
    reasons = _unit_reasons(units, data.name, numbers["k_limit"])
    if guide.shared is not None:
        own = None if training is None else _judge_globals(joint, guide, training, own_key)
        numbers |= own or {}
        reasons += _global_reasons(own)
    verdict = max((r.level for r in reasons), key=["PASS", "WARN", "FAIL"].index, default="PASS")
    facts = {**about, "units checked": f"{len(data)}"}
    return Report(verdict, tuple(reasons), units, numbers, joint.structure.plate, facts)


def _judge_units(
    joint: Joint, guide: Guide, data: Units, key: Array, num_samples: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    shared, _ = shared_draws(jax.random.fold_in(key, 0), guide, GLOBAL_DRAWS if guide.shared is not None else 1)
    parts = []
    for chunk in chunks(data, joint.structure, shared.shape[0] * num_samples):
        found = unit_numbers(jax.random.fold_in(key, 1), guide, joint, shared, chunk.batch, chunk.index, num_samples)
        parts.append(jax.tree.map(lambda x, c=chunk: np.asarray(x)[: c.stop - c.start], found))
    each = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    limit = k_limit(num_samples)
    with np.errstate(invalid="ignore"):
        columns = {
            joint.structure.plate: np.asarray(data.labels),
            "pareto_k": np.median(each.pareto_k, axis=1),
            "pareto_k_worst": np.max(each.pareto_k, axis=1),
            "ess": np.median(each.ess, axis=1),
            "ess_worst": np.min(each.ess, axis=1),
            "elbo": np.mean(each.elbo, axis=1),
            "iw_elbo": np.mean(each.iw_elbo, axis=1),
            "log_evidence": np.mean(each.log_evidence, axis=1),
        }
    columns |= _verdicts(columns, limit, num_samples)
    numbers = {"k_limit": limit, "num_samples": float(num_samples), "num_globals_draws": float(shared.shape[0])}
    for name, values in (("elbo", each.elbo), ("iw_elbo", each.iw_elbo)):
        by_draw = values.mean(axis=0)
        numbers[f"{name}_per_unit"] = float(by_draw.mean())
        numbers[f"{name}_per_unit_se"] = _standard_error(values)
    return columns, numbers


def _standard_error(values: np.ndarray) -> float:
    """Of the mean over units and draws of the globals: what other draws of the globals would change, or one draw's own."""
    by_draw = values.mean(axis=0)
    if len(by_draw) > 1:
        return float(by_draw.std(ddof=1) / np.sqrt(len(by_draw)))
    return float("nan")


def _verdicts(columns: dict[str, np.ndarray], limit: float, num_samples: int) -> dict[str, np.ndarray]:
    median, worst, ess = columns["pareto_k"], columns["pareto_k_worst"], columns["ess"]
    broken = ~np.isfinite(worst) | ~np.isfinite(columns["elbo"])
    failing = broken | (median > limit)
    warned = ~failing & (worst > limit)
    thin = ~failing & ~warned & (ess < 0.1 * num_samples)
    verdict = np.select([failing, warned | thin], ["FAIL", "WARN"], "PASS")
    reason = np.select([broken, failing | warned, thin], ["non-finite", "pareto-k", "low-ess"], "")
    next_step = np.select([failing, warned | thin], ["refit", "reweight"], "none")
    return {"verdict": verdict, "reason": reason, "next_step": next_step}


def _unit_reasons(units: dict[str, np.ndarray], name: str, limit: float) -> list[Reason]:
    total, found = len(units["verdict"]), []
    for verdict in ("FAIL", "WARN"):
        for code, what in (
            ("non-finite", "have log weights that are not finite"),
            ("pareto-k", f"have a Pareto k above {limit:.2f}" + (" at the median draw of the globals" if verdict == "FAIL" else " at some draw of the globals")),
            ("low-ess", "keep less than a tenth of their draws when reweighted"),
        ):
            count = int(np.sum((units["verdict"] == verdict) & (units["reason"] == code)))
            if count == 0:
                continue
            level = "FAIL" if verdict == "FAIL" and count > FAILING_SHARE * total else "WARN"
            step = (
                "train longer, give the encoder more width, or choose a richer family; sample single units by NUTS"
                if verdict == "FAIL"
                else "reweight these units' draws by their importance weights before relying on tails"
            )
            found.append(Reason(code, level, f"{count} of {total} units ({name}) {what}.", step))
    return found


def _judge_globals(joint: Joint, guide: Guide, training: Units, key: Array) -> dict[str, float]:
    """k-hat, ESS and Monte-Carlo error of the weights of the globals, and the bound of everything together."""
    size = len(training)
    own = max(LOWEST_DRAWS, min(OWN_DRAWS, EVALUATIONS // (FEW * size)))
    most = 1 if guide.local is None else int(np.clip(EVALUATIONS // (own * size), FEW, 64))
    shared, log_q = shared_draws(jax.random.fold_in(key, 0), guide, own)
    evidence, bound, variance = _sums(joint, guide, training, shared, key, min(FEW, most))
    if most > FEW and np.sqrt(np.median(variance)) > 0.2 * LARGEST_ERROR:
        evidence, bound, variance = _sums(joint, guide, training, shared, key, most)
    first = jax.tree.map(lambda x: x[0], next(iter(chunks(training, joint.structure, 1))).batch)
    prior = np.asarray(shared_prior(joint, shared, first), np.float64)
    weight = evidence + prior - np.asarray(log_q, np.float64)
    total = bound + prior - np.asarray(log_q, np.float64)
    centred = np.asarray(weight - weight.max(), np.float32)
    return {
        "globals_pareto_k": float(pareto_k(centred)),
        "globals_ess": float(effective_sample_size(centred)),
        "globals_error_nats": float(np.sqrt(np.median(variance))),
        "globals_k_limit": k_limit(own),
        "elbo": float(total.mean()),
        "elbo_se": float(total.std(ddof=1) / np.sqrt(own)),
        "iw_elbo": float(weight.mean()),
        "iw_elbo_se": float(weight.std(ddof=1) / np.sqrt(own)),
    }


def _sums(
    joint: Joint, guide: Guide, training: Units, shared: Array, key: Array, per_unit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed over units, for every draw of the globals: log evidence, mean log weight, variance of the first."""
    sums = tuple(np.zeros(shared.shape[0]) for _ in range(3))
    for chunk in chunks(training, joint.structure, shared.shape[0] * per_unit):
        found = unit_bounds(jax.random.fold_in(key, 1), guide, joint, shared, chunk.batch, chunk.index, per_unit)
        for total, part in zip(sums, found, strict=True):
            total += np.asarray(part, np.float64)[: chunk.stop - chunk.start].sum(axis=0)
    return sums[0], sums[1], sums[2]


def _global_reasons(own: dict[str, float] | None) -> list[Reason]:
    if own is None:
        text = "The globals were not checked: their weights need all training units."
        return [Reason("globals-unchecked", "WARN", text, "posterior.check(new_units, training=training_units, key=key)")]
    error, k, limit = own["globals_error_nats"], own["globals_pareto_k"], own["globals_k_limit"]
    if not np.isfinite(k):
        return [Reason("globals-non-finite", "FAIL", "The weights of the globals are not finite.", "look for impossible values")]
    if error > LARGEST_ERROR:
        text = f"The globals are unchecked: one of their log weights has a Monte-Carlo error of {error:.2f} nats (limit {LARGEST_ERROR})."
        return [Reason("globals-unchecked", "WARN", text, "a better local family lowers this error; until then compare with NUTS on a subset")]
    if k <= limit:
        return []
    level = "FAIL" if k > 1.0 else "WARN"
    text = f"The globals have a Pareto k of {k:.2f} (limit {limit:.2f}): their family does not fit their posterior's tails."
    return [Reason("globals-pareto-k", level, text, "use a richer shared_family, or read means and intervals of the globals with care")]
