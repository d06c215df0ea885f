"""How fast, and when to stop? Adam with warm-up and clipping; the step size falls when the bound stops rising.

With `num_steps` given, the step size falls along a cosine to a hundredth. Otherwise it falls to a third each time the
smoothed bound no longer rises by more than its own noise, and training ends on the third such plateau (DESIGN §4.10).
The factor lives in the optimizer's state under `step_size` (`optax.inject_hyperparams`), set between blocks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from .._types import PyTree

FACTORS = (1.0, 0.3, 0.1, 0.03)
WINDOW = 5  # blocks that one side of the plateau test averages


@functools.lru_cache(maxsize=32)
def adam(
    learning_rate: float = 5e-3, globals_factor: float = 10.0, warm_up: int = 100, clip: float = 10.0
) -> optax.GradientTransformationExtraArgs:
    """The default: clipping by global norm, Adam, linear warm-up. Cached, so that a second `fit` compiles nothing.

    The few free numbers of q(v) start at the prior and have far to go: they move `globals_factor` times faster than the
    weights of networks.
    """
    return optax.with_extra_args_support(
        optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_adam(b1=0.9, b2=0.99),
            optax.masked(optax.scale(globals_factor), _of_globals),
            optax.scale_by_learning_rate(optax.linear_schedule(0.01 * learning_rate, learning_rate, warm_up)),
            optax.inject_hyperparams(optax.scale)(step_size=1.0),
        )
    )


def _of_globals(params: PyTree) -> PyTree:
    """True at the parameters of q(v), in a tree shaped as the trained (joint, guide)."""
    joint, guide = jax.tree.map(lambda _: False, params)
    if guide.shared is not None:
        guide = eqx.tree_at(lambda g: g.shared, guide, replace_fn=lambda block: jax.tree.map(lambda _: True, block))
    return joint, guide


def set_step_size(optimizer_state: Any, factor: float) -> Any:
    """The state with another `step_size`; unchanged where the user's optimizer has none."""
    current = optax.tree_utils.tree_get(optimizer_state, "step_size", None)
    if current is None:
        return optimizer_state
    return optax.tree_utils.tree_set(optimizer_state, step_size=np.asarray(factor, current.dtype))


@dataclasses.dataclass
class Schedule:
    """Step-size factor of the next block, from the bounds of the blocks so far."""

    num_steps: int | None
    limit: int  # most steps without num_steps
    plateaus: int = 0
    since: int = 0  # blocks since the last plateau

    def factor(self, step: int) -> float:
        """The factor for the block that starts at `step`."""
        if self.num_steps is None:
            return FACTORS[min(self.plateaus, len(FACTORS) - 1)]
        progress = min(step / max(self.num_steps, 1), 1.0)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))

    def finished(self, step: int, means: Sequence[float], errors: Sequence[float]) -> bool:
        """Whether to stop; `means` and `errors` are the bound of every block and its standard error."""
        if self.num_steps is not None:
            return step >= self.num_steps
        self.since += 1
        if self.since >= 2 * WINDOW and not rises(means, errors):
            self.plateaus, self.since = self.plateaus + 1, 0
        return self.plateaus >= len(FACTORS) or step >= self.limit


def rises(means: Sequence[float], errors: Sequence[float]) -> bool:
    """Whether the last window of blocks lies above the one before by more than two standard errors of the difference."""
    late, early = np.asarray(means[-WINDOW:]), np.asarray(means[-2 * WINDOW : -WINDOW])
    noise = np.sqrt(np.sum(np.square(errors[-2 * WINDOW :]))) / WINDOW
    return bool(late.mean() - early.mean() > 2.0 * noise)
