"""What do the model and its data say, q's accuracy apart? Idle latents, predictions, components without names."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ..data import Units
from ..guide import Guide
from ..joint.joint import Joint
from .activity import activity
from .options import Checks
from .predictive import predictive
from .report import Reason, Tables
from .switching import switching


class ModelSide(NamedTuple):
    """Parts of a report."""

    numbers: dict[str, float]
    reasons: list[Reason]
    columns: dict[str, np.ndarray]
    tables: Tables
    about: dict[str, str]


def model_side(joint: Joint, guide: Guide, data: Units, *, key: Array, checks: Checks) -> ModelSide:
    """All of it, of the checked units."""
    keys = jax.random.split(key, 3)
    most, few = checks.latent_units, checks.gap_units
    used = activity(joint, guide, data, key=keys[0], most_units=most, refined_units=few)
    drawn = predictive(joint, guide, data, key=keys[1], draws=checks.predictive_draws, statistics=checks.statistics)
    warned, note = switching(joint, guide, data, key=keys[2]) if most else ([], "")
    about = {"predictive checks": f"not done: {drawn.skipped}"} if drawn.skipped else {}
    about |= {"components": note} if note else {}
    return ModelSide(
        used.numbers | drawn.numbers,
        [*used.reasons, *drawn.reasons, *warned],
        drawn.columns,
        used.tables | drawn.tables,
        about | ({"activity of latents": f"not done: {used.skipped}"} if used.skipped else {}),
    )
