"""Can these answers be trusted? Bounds, k-hat and ESS of every unit given the globals, and the globals' own weights.

The numbers are computed here, in chunks (see `importance`); what they mean for trust is decided in `verdicts`.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array

from .._errors import DataError
from ..chunks import chunks
from ..data import Units
from ..guide import Guide
from ..importance import shared_draws, shared_weights, unit_numbers
from ..joint.joint import Joint
from ..psis import k_error, k_limit
from ..refine.globals import weight_numbers
from .calibration import calibrate
from .gaps import gaps
from .model_side import model_side
from .options import Checks
from .report import Report
from .shift import Reference, shifts
from .shift_verdicts import shift_fact, shift_reasons, with_shifts
from .verdicts import LOWEST_DRAWS, global_reasons, unit_reasons, unit_verdicts

GLOBAL_DRAWS = 8  # at which units are judged


def check(
    joint: Joint,
    guide: Guide,
    data: Units,
    training: Units | None,
    *,
    key: Array,
    checks: Checks,
    about: dict[str, str],
    reference: Reference | None,
) -> Report:
    """The report on checked units `data`; `training` all training units, `reference` what they were like, or None."""
    num_samples = checks.num_samples
    if num_samples < LOWEST_DRAWS:
        raise DataError(
            f"check: {num_samples} draws per unit are too few to fit a tail; give num_samples={LOWEST_DRAWS} or more"
        )
    unit_key, own_key = jax.random.split(key)
    units, numbers = _judge_units(joint, guide, data, unit_key, num_samples)
    reasons = unit_reasons(units, data.name, numbers["k_limit"])
    units = with_shifts(units, shifts(joint, guide, data, reference))
    reasons += shift_reasons(units, data.name)
    if guide.shared is not None:
        own = None if training is None else _judge_globals(joint, guide, training, own_key)
        numbers |= own or {}
        reasons += global_reasons(own)
    found = calibrate(joint, guide, data, key=jax.random.fold_in(unit_key, 2), checks=checks)
    beside = model_side(joint, guide, data, key=jax.random.fold_in(key, 2), checks=checks)
    lost = gaps(joint, guide, data, training, key=jax.random.fold_in(key, 3), most=checks.gap_units)
    numbers |= found.numbers | beside.numbers | lost.numbers
    reasons += found.reasons + beside.reasons + lost.reasons
    verdict = max((r.level for r in reasons), key=["PASS", "WARN", "FAIL"].index, default="PASS")
    facts = {"units checked": f"{len(data)}", "calibration": found.about, **shift_fact(reference), **beside.about}
    units, plate, tables = units | beside.columns, joint.structure.plate, found.tables | beside.tables | lost.tables
    return Report(verdict, tuple(reasons), units, numbers, plate, about | facts, tables)


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
            "pareto_k_se": k_error(np.median(each.pareto_k, axis=1), num_samples, shared.shape[0]),
            "ess": np.median(each.ess, axis=1),
            "ess_worst": np.min(each.ess, axis=1),
            "elbo": np.mean(each.elbo, axis=1),
            "iw_elbo": np.mean(each.iw_elbo, axis=1),
            "log_evidence": np.mean(each.log_evidence, axis=1),
        }
    columns |= unit_verdicts(columns, limit, num_samples)
    numbers = {"k_limit": limit, "num_samples": float(num_samples), "num_globals_draws": float(shared.shape[0])}
    for name, values, variance in (
        ("elbo", each.elbo, each.elbo_variance),
        ("iw_elbo", each.iw_elbo, each.iw_elbo_variance),
    ):
        numbers[f"{name}_per_unit"] = float(values.mean())
        numbers[f"{name}_per_unit_se"] = _standard_error(values, variance)
    return columns, numbers


def _standard_error(values: np.ndarray, variance: np.ndarray) -> float:
    """Of the mean over units: from its spread over draws of the globals or, without globals, from each unit's own."""
    by_draw = values.mean(axis=0)
    if len(by_draw) > 1:
        return float(by_draw.std(ddof=1) / np.sqrt(len(by_draw)))
    return float(np.sqrt(variance.sum()) / len(variance))


def _judge_globals(joint: Joint, guide: Guide, training: Units, key: Array) -> dict[str, float]:
    """k-hat, ESS and Monte-Carlo error of the weights of the globals, and the bound of everything together."""
    found = shared_weights(key, guide, joint, training)
    weight, total = found.log_weight, found.log_ratio
    return weight_numbers(found) | {
        "elbo": float(total.mean()),
        "elbo_se": float(total.std(ddof=1) / np.sqrt(len(weight))),
        "iw_elbo": float(weight.mean()),
        "iw_elbo_se": float(weight.std(ddof=1) / np.sqrt(len(weight))),
    }
