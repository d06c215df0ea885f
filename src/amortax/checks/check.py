"""Can these answers be trusted? Bounds, k-hat and ESS of every unit given the globals, and the globals' own weights.

The numbers are computed here, in chunks (see `importance`); what they mean for trust is decided in `verdicts`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import DataError
from ..chunks import chunks
from ..data import Units
from ..guide import Guide
from ..importance import shared_draws, shared_prior, unit_bounds, unit_numbers
from ..joint.joint import Joint
from ..psis import effective_sample_size, k_limit, pareto_k
from .calibration import calibrate
from .options import Checks
from .report import Report
from .verdicts import LARGEST_ERROR, LOWEST_DRAWS, global_reasons, unit_reasons, unit_verdicts

GLOBAL_DRAWS = 8  # at which units are judged
OWN_DRAWS, FEWEST_OWN_DRAWS = 2000, 100  # for the weights of the globals: 500 missed a heavy tail at one key in eight
EVALUATIONS = 50_000_000  # of one unit's density, for the globals' weights
FEW, MOST = 8, 64  # draws of a unit per draw of the globals: few at first, more only where those are too noisy


def check(
    joint: Joint,
    guide: Guide,
    data: Units,
    training: Units | None,
    *,
    key: Array,
    checks: Checks,
    about: dict[str, str],
) -> Report:
    """The report on checked units `data`; `training` are all training units, None if not at hand."""
    num_samples = checks.num_samples
    if num_samples < LOWEST_DRAWS:
        raise DataError(
            f"check: {num_samples} draws per unit are too few to fit a tail; give num_samples={LOWEST_DRAWS} or more"
        )
    unit_key, own_key = jax.random.split(key)
    units, numbers = _judge_units(joint, guide, data, unit_key, num_samples)
    reasons = unit_reasons(units, data.name, numbers["k_limit"])
    if guide.shared is not None:
        own = None if training is None else _judge_globals(joint, guide, training, own_key)
        numbers |= own or {}
        reasons += global_reasons(own)
    found = calibrate(joint, guide, data, key=jax.random.fold_in(unit_key, 2), checks=checks)
    numbers |= found.numbers
    reasons += found.reasons
    verdict = max((r.level for r in reasons), key=["PASS", "WARN", "FAIL"].index, default="PASS")
    facts = {**about, "units checked": f"{len(data)}", "calibration": found.about}
    return Report(verdict, tuple(reasons), units, numbers, joint.structure.plate, facts, found.tables)


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
    size = len(training)
    own = max(FEWEST_OWN_DRAWS, min(OWN_DRAWS, EVALUATIONS // (FEW * size)))
    most = 1 if guide.local is None else int(np.clip(EVALUATIONS // (own * size), FEW, MOST))
    shared, log_q = shared_draws(jax.random.fold_in(key, 0), guide, own)
    evidence, bound, variance = _sums(joint, guide, training, shared, key, min(FEW, most))
    if most > FEW and np.sqrt(np.median(variance)) > 0.2 * LARGEST_ERROR:
        evidence, bound, variance = _sums(joint, guide, training, shared, key, most)
    first = jax.tree.map(lambda x: x[0], next(iter(chunks(training, joint.structure, 1))).batch)
    prior = np.asarray(shared_prior(joint, shared, first), np.float64)
    weight = evidence + prior - np.asarray(log_q, np.float64)
    total = bound + prior - np.asarray(log_q, np.float64)
    centred = jnp.asarray(weight - weight.max(), jnp.float32)
    return {
        "globals_pareto_k": float(pareto_k(centred)),
        "globals_ess": float(effective_sample_size(centred)),
        "globals_error_nats": float(np.sqrt(np.median(variance))),
        "globals_k_limit": k_limit(own),
        "globals_draws": float(own),
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
