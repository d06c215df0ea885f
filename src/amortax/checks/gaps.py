"""What does q lose, and to what? Three gaps to log p(d | v), in nats per unit, measured on a few units.

    approximation     log p(d | v) - ELBO of the unit's best q in the family
    amortization      ELBO of that q - ELBO of the encoder's q
    generalisation    amortization gap of these units - that of as many training units

The family's best q is the guide's own at a context of the unit's, climbed by Adam from the encoder's. The evidence is
by importance draws from the best q that a unit can have (see `refine`), whose k-hat says whether it is one.

References: Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders; Zhang, Hayes and Barber
(2022), Generalization gap in amortized inference.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Batch
from ..chunks import chunks, evenly
from ..data import Units
from ..guide import Guide
from ..importance import shared_draws
from ..joint.joint import Joint
from ..refine import optimise
from ..refine.judge import judged
from ..refine.own import LARGEST_DENSE, encoded
from ..refine.target import Target
from .report import Reason, Tables

SHARED, DRAWS = 8, 1000  # draws of the globals, and of a unit at each
STEPS = 500  # of Adam, on each unit's context
LARGEST, SURE = 0.1, 3.0  # nats per unit, and standard errors above zero, from which a gap is a warning
GAPS = {
    "approximation": (
        "the family can't hold the posterior of a unit",
        "a richer family (am.full() for am.diagonal(), am.coupling(4) for am.full()), or posterior.refine",
    ),
    "amortization": (
        "the encoder finds a worse q than the family has",
        "posterior.refine(data, key=key); or more width, more steps",
    ),
    "generalisation": (
        "the encoder does worse on these units than on those of the training",
        "more training units, or units simulated from the model (am.ForwardKL)",
    ),
}


class Measured(NamedTuple):
    """Per unit, in nats; `k` is of the weights behind the evidence."""

    approximation: np.ndarray
    amortization: np.ndarray
    k: np.ndarray


class Gaps(NamedTuple):
    """Parts of a report."""

    numbers: dict[str, float]
    reasons: list[Reason]
    tables: Tables


def gaps(joint: Joint, guide: Guide, data: Units, training: Units | None, *, key: Array, most: int) -> Gaps:
    """Measures the gaps on at most `most` of the units, and of the training units where these are others."""
    if not most or guide.local is None:
        return Gaps({}, [], {})
    found = measured(joint, guide, data, key, most)
    means = {name: _mean(getattr(found, name)) for name in ("approximation", "amortization")}
    if training is not None and training.fingerprint() != data.fingerprint():
        (new, new_se), (old, old_se) = means["amortization"], _mean(measured(joint, guide, training, key, most)[1])
        means["generalisation"] = new - old, float(np.hypot(new_se, old_se))
    numbers = {f"{name}_gap": value for name, (value, _) in means.items()}
    numbers |= {f"{name}_gap_se": error for name, (_, error) in means.items()}
    table = {
        "gap": np.array(list(means)),
        "nats": np.array([value for value, _ in means.values()]),
        "se": np.array([error for _, error in means.values()]),
    }
    return Gaps(numbers | {"gap_units": float(len(found.k))}, gap_reasons(means), {"gaps": table})


def gap_reasons(means: dict[str, tuple[float, float]]) -> list[Reason]:
    """A warning for each gap, (nats, standard error), that is large and surely above zero."""
    found = []
    for name, (value, error) in means.items():
        if not np.isfinite(value) or (value > LARGEST and value > SURE * error):
            what, step = GAPS[name]
            text = f"The {name} gap is {value:.2f} ± {error:.2f} nats per unit (limit {LARGEST}): {what}."
            found.append(Reason(f"{name}-gap", "WARN", text, step))
    return found


def measured(joint: Joint, guide: Guide, data: Units, key: Array, most: int) -> Measured:
    """The gaps of units spread over the data."""
    rows = evenly(len(data), most)
    shared_key, unit_key = jax.random.split(key)
    shared = jnp.zeros((1, 0)) if guide.shared is None else shared_draws(shared_key, guide, SHARED)[0]
    parts = []
    for chunk in chunks(data.take(rows), joint.structure, len(shared) * DRAWS):
        index = jnp.asarray(rows)[chunk.index]
        found = _of_chunk(Target(joint, guide), shared, chunk.batch, index, unit_key)
        parts.append([np.asarray(x, np.float64)[: chunk.stop - chunk.start] for x in found])
    amortized, best, evidence, k = (np.concatenate(x) for x in zip(*parts, strict=True))
    rose = best.mean(axis=1) > amortized.mean(axis=1)
    best = np.where(rose[:, None], best, amortized)  # the encoder's q is of the family too
    return Measured((evidence - best).mean(axis=1), (best - amortized).mean(axis=1), np.median(k, axis=1))


def _of_chunk(target: Target, shared: Array, batch: Batch, index: Array, key: Array) -> tuple[Array, ...]:
    """ELBO of the encoder's q and of the family's best, evidence and its k-hat, each (units, R)."""
    judge_key, climb_key, normal_key, other_key = jax.random.split(key, 4)
    own = encoded(target, batch)
    first = judged(judge_key, target, own, shared, batch, index, DRAWS)
    climbed = optimise.optimised(climb_key, target, own, shared, batch, index, optimise.RATE["context"], STEPS)
    best = judged(judge_key, target, climbed, shared, batch, index, DRAWS)
    evidence, k = best.numbers.log_evidence, best.numbers.pareto_k
    if target.continuous and best.best.shape[-1] <= LARGEST_DENSE:
        start = optimise.normals(target, best.best, jnp.mean(shared, axis=0), batch)
        normal = optimise.optimised(normal_key, target, start, shared, batch, index, optimise.RATE["normal"])
        other = judged(other_key, target, normal, shared, batch, index, DRAWS).numbers
        surer = other.pareto_k < k
        evidence, k = jnp.where(surer, other.log_evidence, evidence), jnp.where(surer, other.pareto_k, k)
    return first.own.elbo, best.own.elbo, evidence, k


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over units and its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)
