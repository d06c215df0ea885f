"""What do labels teach q(c | x)? In the bound nothing: where c is known, q is not asked for it.

A bound on log p(x, c) holds no q(c | x), so a classifier would learn from units without label alone. Kingma, Rezende,
Mohamed and Welling (2014, "Semi-supervised learning with deep generative models", eq. 9) add its log-likelihood,

    weight * 1/B Σ_i log q(labels_i | e_i, v),

to what is trained, never to what is reported. Their α = 0.1 N times the mean over labelled units is a weight of
0.1 N / (number of labelled units).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch, Context
from ..guide import Guide
from ..joint.assignments import allowed_choices, seen_digits
from ..joint.joint import Joint


def label_log_prob(
    guide: Guide, joint: Joint, batch: Batch, contexts: Context, shared: Float[Array, " g"]
) -> Float[Array, " units"]:
    """log q of the labels that each unit has, 0 where it has none."""

    def of(context: Context, unit: Batch) -> Array:
        if guide.draws_choice:
            digits, seen = seen_digits(joint.structure, unit)
            return jnp.sum(jnp.where(seen, guide.element_log_probs(digits, context, shared), 0.0))
        log_probs = guide.choice_log_probs(context, shared, unit, joint, labelled=False)
        return jax.nn.logsumexp(jnp.where(allowed_choices(joint.structure, unit), log_probs, -jnp.inf))

    return jax.vmap(of)(contexts, batch)
