"""What is log p(d) of a unit? K importance draws from q, in memory that doesn't grow with K.

    log p̂_K(d_i | v) = log 1/K Σ_k p(d_i, u_k | v) / q(u_k | d_i, v)

is in the mean a lower bound, low by half its variance 1/ESS - 1/K (Burda, Grosse and Salakhutdinov 2016). With globals
it is averaged over draws v ~ q(v), each with weights of its own.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array

from ._errors import DataError
from .chunks import chunks
from .data import Units
from .guide import Guide
from .importance import shared_draws, unit_numbers
from .joint.joint import Joint
from .psis import MIN_SAMPLES

TOGETHER = 250  # draws of one unit evaluated at once
GLOBAL_DRAWS = 8


def evidence(joint: Joint, guide: Guide, data: Units, num_samples: int, key: Array) -> dict[str, np.ndarray]:
    """Numbers of checked units, by name, each (units,); see `Posterior.evidence`."""
    if num_samples < MIN_SAMPLES:
        raise DataError(
            f"evidence: num_samples={num_samples} is too few for an error and a k-hat; give {MIN_SAMPLES} or more, "
            "5,000 say"
        )
    shared, _ = shared_draws(jax.random.fold_in(key, 0), guide, GLOBAL_DRAWS if guide.shared is not None else 1)
    together, draws = min(num_samples, TOGETHER), shared.shape[0]
    parts = []
    for chunk in chunks(data, joint.structure, draws * together):
        unit_key = jax.random.fold_in(key, 1)
        found = unit_numbers(unit_key, guide, joint, shared, chunk.batch, chunk.index, num_samples, together)
        parts.append(jax.tree.map(lambda x, c=chunk: np.asarray(x, np.float64)[: c.stop - c.start], found))
    each = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    within = np.maximum(1.0 / each.ess - 1.0 / num_samples, 0.0)
    variance = within[:, 0] if draws == 1 else each.log_evidence.var(axis=1, ddof=1) / draws
    return {
        "log_evidence": each.log_evidence.mean(axis=1),
        "standard_error": np.sqrt(variance),
        "elbo": each.elbo.mean(axis=1),
        "pareto_k": np.median(each.pareto_k, axis=1),
    }
