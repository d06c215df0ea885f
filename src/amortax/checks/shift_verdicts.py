"""What does a shift from the training units say? Verdicts of units, and whether more are shifted than chance allows.

Shift alone is a warning: the answer was not practised, which doesn't make it wrong. By design up to 1% of units like
the training units are flagged (0.5% by their inputs, 0.5% by their context), each a warning of that unit. The data as
a whole are warned of where more units are flagged than that could be (more than 2%, at one chance in 2,000), or where
one is farther away than any of these units should be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .report import Reason

if TYPE_CHECKING:
    from .shift import Reference

ALLOWED = 0.02  # of units; the limits themselves are quantiles of few training units
RARE = 0.0005  # chance of a false alarm over all units

MEANING = {
    "unseen-category": "have a category that no training unit had",
    "input-shift": "have inputs unlike those of the training units",
    "context-shift": "are read by the encoder unlike any training units",
}


def with_shifts(units: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of units with those of shifts; a unit that passed till now and is shifted is a warning."""
    if not found:
        return units
    shifted = codes(found)
    passed = (units["verdict"] == "PASS") & (shifted != "")
    verdict = np.where(passed, "WARN", units["verdict"])
    reason = np.where(passed, shifted, units["reason"])
    next_step = np.where(passed, "refine", units["next_step"])
    return {**units, "verdict": verdict, "reason": reason, "next_step": next_step, "shift": shifted, **found}


def codes(found: dict[str, np.ndarray]) -> np.ndarray:
    """The kind of shift of every unit, or ""."""
    kinds = [found["unseen"], found["input_shift"] > 1.0, found["context_shift"] > 1.0]
    return np.select(kinds, list(MEANING), "")


def shift_reasons(units: dict[str, np.ndarray], name: str) -> list[Reason]:
    """A reason for each kind of shift, where it is no chance."""
    if "shift" not in units:
        return []
    total, reasons = len(units["shift"]), []
    beyond_chance = np.sum(units["shift"] != "") > _most_by_chance(total)
    for code, what in MEANING.items():
        here = units["shift"] == code
        far = here & ((units["shift_chance"] < RARE / max(total, 1)) | units["unseen"])
        count = int(np.sum(here))
        if not count or not (beyond_chance or np.any(far)):
            continue
        where = [str(x) for x in np.unique(units["outside"][here]) if x]
        numbers = np.maximum(units["input_shift"], units["context_shift"])[here]
        text = f"{count} of {total} units ({name}) {what}"
        if code != "unseen-category":
            text += f": up to {_times(numbers.max())} the limit, which 0.5% of units like those pass"
        text += f" (outside what was seen: {', '.join(where)})." if where else "."
        step = "look for other units of measurement in their data; posterior.refine(units, key=key), or train on them"
        reasons.append(Reason(code, "WARN", text, step))
    return reasons


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 1000 else f"{ratio:.0e} times"


def _most_by_chance(total: int) -> float:
    """Flagged units that chance allows among `total`: mean and 3.3 deviations, with a unit to spare for few."""
    return ALLOWED * total + 3.3 * np.sqrt(ALLOWED * total) + 1.0


def shift_fact(reference: Reference | None) -> dict[str, str]:
    """What the report says of shift where it was not judged."""
    if reference is not None:
        return {}
    why = (
        "not checked: no reference of the training units (too few of them, no encoder, or stored before there was one)"
    )
    return {"shift": why}
