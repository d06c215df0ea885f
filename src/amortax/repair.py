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
from .refine.globals import RepairedGlobals, repaired_globals
from .refine.ladder import NEVER, Ladder, Repaired
from .refine.target import Target

EXACT = "exact"
RUNGS = ("encoder", "own", "reweight", "smc", "hmc")  # as far as a unit may go, cheapest first


def refine(
    joint: Joint,
    guide: Guide,
    data: Units,
    training: Units | None,
    *,
    num_samples: int,
    key: Array,
    budget: float | int | str | None,
) -> Any:
    """The Dataset of `Posterior.refine`, for checked units."""
    until = time.monotonic() + seconds_of(budget)
    shared, whole = _globals(joint, guide, training if budget == EXACT else None, num_samples, key)
    found = answer.sample(joint, guide, data, num_samples, key, shared)
    told, drawn = {}, {"globals_rung": "encoder" if whole is None else whole.rung}
    if whole is not None and whole.reason:
        drawn["globals_reason"] = whole.reason
    if guide.local is not None:
        repaired = _jointly(whole, data, training) or _by_units(joint, guide, data, shared, key, budget, until)
        answer.written(joint, data, found[1], repaired.draws, shared, key)
        told = {"rung": repaired.rung, "verdict": repaired.verdict, "seconds": repaired.seconds}
    plate = joint.structure.plate
    answered = to_dataset(joint.structure, data, *found)
    return answered.assign({name: (plate, column) for name, column in told.items()}).assign_attrs(drawn)


def _globals(
    joint: Joint, guide: Guide, training: Units | None, num_samples: int, key: Array
) -> tuple[Array, RepairedGlobals | None]:
    """(draws of the globals, what was done to them); those of `sample` where nothing was."""
    whole = None
    if training is not None and guide.shared is not None:
        repair_key = jax.random.fold_in(key, 3)
        whole = repaired_globals(joint, guide, training, num_samples=num_samples, key=repair_key)
        if whole.rung in ("reweight", "hmc"):
            return jnp.asarray(whole.shared, jnp.result_type(float)), whole
    return answer.draw_shared(guide, answer.split_keys(key)[0], num_samples), whole


def _jointly(whole: RepairedGlobals | None, data: Units, training: Units | None) -> Repaired | None:
    """The units' own draws that came with those of the globals, where they are of these units."""
    if whole is None or whole.whole is None or training is None or data.fingerprint() != training.fingerprint():
        return None
    size, local = len(data), whole.whole.local
    each = np.full(size, whole.whole.seconds / size)
    draws = {i: local[:, i].astype(np.dtype(jnp.result_type(float))) for i in range(size)}
    return Repaired(np.full(size, "hmc"), np.full(size, "PASS"), each, draws)


def _by_units(
    joint: Joint, guide: Guide, data: Units, shared: Array, key: Array, budget: float | int | str | None, until: float
) -> Repaired:
    """Every unit by itself, given the globals."""
    at = jnp.zeros((1, 0)) if guide.shared is None else shared
    options = {"num_samples": shared.shape[0], "key": jax.random.fold_in(key, 2), "exact": budget == EXACT}
    return Ladder(Target(joint, guide), data, at, **options).climb(until)


def seconds_of(budget: float | int | str | None) -> float:
    """The budget in seconds, infinite where there is none; `DataError` where it is none of what it may be."""
    if budget is None or (isinstance(budget, str) and budget == EXACT):
        return NEVER
    if isinstance(budget, (int, float, np.number)) and not isinstance(budget, bool) and budget > 0:
        return float(budget)
    raise DataError(f"refine: budget must be seconds above zero, 'exact' or None, got {budget!r}")


def by_rung(refined: Any) -> dict[str, np.ndarray]:
    """Of the Dataset of `refine`, a row for each rung that units ended on: units, how many PASS and FAIL, seconds."""
    if "rung" not in refined:
        return {}
    rung, verdict, seconds = (refined[name].values for name in ("rung", "verdict", "seconds"))
    found = [name for name in RUNGS if np.any(rung == name)]
    return {
        "rung": np.array(found),
        "units": np.array([int(np.sum(rung == name)) for name in found]),
        "PASS": np.array([int(np.sum((rung == name) & (verdict == "PASS"))) for name in found]),
        "FAIL": np.array([int(np.sum((rung == name) & (verdict == "FAIL"))) for name in found]),
        "seconds": np.array([float(np.sum(seconds[rung == name])) for name in found]),
    }
