"""The verb `refine`: answers as `sample` gives them, but units that q answers badly are repaired, each as it needs."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import answer
from ._errors import DataError
from .data import Units
from .guide import Guide
from .interop import to_dataset
from .joint.joint import Joint
from .refine.ladder import NEVER, Ladder
from .refine.target import Target

EXACT = "exact"


def refine(joint: Joint, guide: Guide, data: Units, *, num_samples: int, key: Array, budget: float | str | None) -> Any:
    """The Dataset of `Posterior.refine`, for checked units."""
    until = time.monotonic() + _seconds(budget)
    shared = answer.draw_shared(guide, answer.split_keys(key)[0], num_samples)
    found = answer.sample(joint, guide, data, num_samples, key, shared)
    told = {}
    if guide.local is not None:
        at = jnp.zeros((1, 0)) if guide.shared is None else shared
        options = {"num_samples": num_samples, "key": jax.random.fold_in(key, 2), "exact": budget == EXACT}
        repaired = Ladder(Target(joint, guide), data, at, **options).climb(until)
        answer.written(joint, data, found[1], repaired.draws, shared, key)
        told = {"rung": repaired.rung, "verdict": repaired.verdict, "seconds": repaired.seconds}
    plate = joint.structure.plate
    return to_dataset(joint.structure, data, *found).assign({name: (plate, column) for name, column in told.items()})


def _seconds(budget: float | str | None) -> float:
    """The budget in seconds; infinite where there is none."""
    if budget is None or (isinstance(budget, str) and budget == EXACT):
        return NEVER
    if isinstance(budget, (int, float, np.number)) and not isinstance(budget, bool) and budget > 0:
        return float(budget)
    raise DataError(f"refine: budget must be seconds above zero, 'exact' or None, got {budget!r}")
