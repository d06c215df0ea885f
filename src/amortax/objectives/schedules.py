"""How does a number of an objective change with the step? A number stays; a schedule is any function of the step.

`warm_up` is the usual one; Optax's schedules will do as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._errors import FitError
from .._types import whole_number

Schedule = float | Callable[[Any], Any]
LATE = 2**30  # a step that no run reaches


@dataclasses.dataclass(frozen=True)
class warm_up:
    """From `start` at step 0 in a straight line to `end` at step `num_steps`, and `end` from there on.

    Two of equal numbers are equal, so that a second `fit` compiles nothing.

    **Raises** `FitError` if `num_steps` is no whole number from 1.
    """

    num_steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        whole_number("am.warm_up: num_steps", self.num_steps, FitError)

    def __call__(self, step: int | Int[Array, ""]) -> Array:
        """The number at `step`."""
        return self.start + (self.end - self.start) * jnp.minimum(jnp.asarray(step, jnp.float32) / self.num_steps, 1.0)


def at_step(schedule: Schedule, step: int | Int[Array, ""]) -> Any:
    """The number at `step`."""
    return schedule(step) if callable(schedule) else schedule


def settled(schedule: Schedule, step: int) -> bool:
    """Whether the number at `step` is the last one."""
    return float(at_step(schedule, step)) == float(at_step(schedule, LATE))


def check_schedule(name: str, schedule: Any) -> None:
    """Raises `FitError` unless a number, or what a schedule gives at its start and end, is finite and from 0."""
    try:
        ends = [float(at_step(schedule, step)) for step in (0, LATE)]
    except (TypeError, ValueError):
        ends = [math.nan]
    if not all(math.isfinite(x) and x >= 0 for x in ends):
        got = (
            f"{schedule!r}, which is {ends[0]} at step 0 and {ends[-1]} at the end" if callable(schedule) else schedule
        )
        raise FitError(f"{name} must be a finite number from 0 or a function of the step that gives some, got {got}")
