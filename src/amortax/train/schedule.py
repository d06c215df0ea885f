"""How fast, and when to stop? Adam with warm-up and clipping; the step size falls when the bound stops rising.

With `num_steps` given, the step size falls along a cosine to a tenth. Otherwise it falls to a third and to a tenth when
the smoothed bound no longer rises by more than its own noise, and training ends after two such plateaus more (DESIGN
§4.10).
The answer is the average of the parameters over the last phase (Polyak and Juditsky 1992): single steps keep moving
with the noise of their minibatch, by more than the posterior sd of a global of many units, and their average doesn't.
If the bound falls far below its best and stays there, training goes back to the best parameters with a third of the
step. The factor lives in the optimizer's state under `step_size` (`optax.inject_hyperparams`), set between blocks.
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

from .._network import Linear
from .._types import PyTree
from ..families.transforms import AbstractTransform
from .rows import adam_by_row, map_rows

Optimizer = optax.GradientTransformation
FACTORS = (1.0, 0.3, 0.1, 0.1)
SETBACK, MOST_SETBACKS = 1 / 3, 4
WINDOW = 5  # blocks that one side of the plateau test averages
SETTLING = 1 / 2  # of `num_steps`, after which parameters are averaged
QUICK, LONG = 0.9, 0.99  # decay of the mean square gradient of q(v): the long memory once the factor is at most SETTLED
SETTLED = 0.3
WIDE = 64  # of a layer, beyond which its steps are smaller


@functools.lru_cache(maxsize=32)
def adam(
    learning_rate: float = 5e-3, globals_factor: float = 10.0, warm_up: int = 100, clip: float = 10.0
) -> optax.GradientTransformationExtraArgs:
    """The default: clipping by global norm, Adam, linear warm-up. Cached, so that a second `fit` compiles nothing.

    The few free numbers of q(v), and those of units that have their own, start at the prior and have far to go: they
    move `globals_factor` times faster than the weights of networks, and at first forget the size of past gradients
    sooner. That of a log sd falls with the sd's square: with the long memory the sd would need a thousand steps for
    each factor of ten. Layers wider than 64 take smaller steps, by the square root of their width: with the steps of a
    narrow one, the bound of a VAE of width 400 falls again and again by several nats and stays 1 to 2 below. Networks
    of splines within q(v) take a fifth: before location and scale are found, they bend where the posterior is not.
    """
    return optax.with_extra_args_support(
        optax.chain(
            optax.clip_by_global_norm(clip),
            optax.masked(optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), _by_width()), _of_networks),
            optax.inject_hyperparams(_adam_of_free_numbers)(memory=QUICK),
            optax.masked(optax.scale(globals_factor), lambda params: _not(_of_networks(params))),
            _by_transform(),
            optax.scale_by_learning_rate(optax.linear_schedule(0.01 * learning_rate, learning_rate, warm_up)),
            optax.inject_hyperparams(optax.scale)(step_size=1.0),
        )
    )


def _by_width() -> optax.GradientTransformation:
    """Scales steps of matrices by the root of `WIDE` over their smaller side, if that is larger."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda x: x * _share_of_width(x.shape), updates))


def _share_of_width(shape: tuple[int, ...]) -> float:
    return min(1.0, math.sqrt(WIDE / max(min(shape[-2:]), 1))) if len(shape) > 1 else 1.0


def _by_transform() -> optax.GradientTransformation:
    """Scales steps of the networks of a flow within q(v) by what its transform asks for."""

    def scaled(updates: PyTree, _: PyTree) -> PyTree:
        joint, guide = updates
        if guide.shared is None:
            return updates
        shared = jax.tree.map(_at_its_pace, guide.shared, is_leaf=_is_layer)
        return joint, eqx.tree_at(lambda g: g.shared, guide, shared)

    return optax.stateless(scaled)


def _is_layer(node: Any) -> bool:
    return isinstance(getattr(node, "transform", None), AbstractTransform)


def _at_its_pace(node: Any) -> Any:
    return jax.tree.map(lambda x: node.transform.pace * x, node) if _is_layer(node) else node


def of_globals(params: PyTree) -> PyTree:
    """True at the free numbers of q(v), in a tree shaped as the trained (joint, guide).

    Not at weights of networks between a flow's own numbers: ten times faster, spline couplings diverge.
    """
    joint, guide = jax.tree.map(lambda _: False, params)
    if guide.shared is not None:
        guide = eqx.tree_at(lambda g: g.shared, guide, replace_fn=_outside_networks)
    return joint, guide


def _outside_networks(block: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.tree.map(lambda _: not isinstance(x, Linear), x), block, is_leaf=lambda x: isinstance(x, Linear)
    )


def _of_units(params: PyTree) -> PyTree:
    """True at the rows of units that have parameters of their own."""
    return map_rows(lambda _: True, lambda _: False, params)


def _adam_of_free_numbers(memory: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.masked(optax.scale_by_adam(b1=0.9, b2=memory), of_globals),
        optax.masked(adam_by_row(memory), _of_units),
    )


def _of_networks(params: PyTree) -> PyTree:
    """True at all other parameters."""
    return jax.tree.map(lambda one, other: not (one or other), of_globals(params), _of_units(params))


def _not(marks: PyTree) -> PyTree:
    return jax.tree.map(lambda mark: not mark, marks)


def set_step_size(optimizer_state: Any, factor: float) -> Any:
    """The state with another `step_size`, and the long memory once that is small, where the optimizer has them."""
    for name, value in (("step_size", factor), ("memory", QUICK if factor > SETTLED else LONG)):
        current = optax.tree_utils.tree_get(optimizer_state, name, None)
        if current is not None:
            optimizer_state = optax.tree_utils.tree_set(optimizer_state, **{name: np.asarray(value, current.dtype)})
    return optimizer_state


@dataclasses.dataclass
class Schedule:
    """Step-size factor of the next block, from the bounds of the blocks so far."""

    num_steps: int | None
    limit: int  # most steps without num_steps
    plateaus: int = 0
    since: int = 0  # blocks since the last plateau
    setbacks: int = 0  # times that training diverged and went back

    def set_back(self) -> None:
        """Training went back to its best parameters: go on with a third of the step."""
        self.setbacks, self.since = self.setbacks + 1, 0

    def factor(self, step: int) -> float:
        """The factor for the block that starts at `step`."""
        if self.num_steps is None:
            return SETBACK**self.setbacks * FACTORS[min(self.plateaus, len(FACTORS) - 1)]
        progress = min(step / max(self.num_steps, 1), 1.0)
        cosine = FACTORS[-1] + (1.0 - FACTORS[-1]) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return SETBACK**self.setbacks * cosine

    def settling(self, step: int) -> bool:
        """Whether the parameters of the block that starts at `step` belong to the average that is kept."""
        if self.num_steps is None:
            return FACTORS[min(self.plateaus, len(FACTORS) - 1)] == FACTORS[-1]
        return step >= SETTLING * self.num_steps

    def finished(self, step: int, means: Sequence[float], errors: Sequence[float]) -> bool:
        """Whether to stop; `means` and `errors` are the bound of every block and its standard error."""
        if self.num_steps is not None:
            return step >= self.num_steps
        self.since += 1
        if self.since >= 2 * WINDOW and not rises(means, errors):
            self.plateaus, self.since = self.plateaus + 1, 0
        return self.plateaus >= len(FACTORS) or step >= self.limit


def diverges(means: Sequence[float], errors: Sequence[float]) -> bool:
    """Whether every block of the last window lies below the best block before it by more than ten standard errors."""
    if len(means) <= WINDOW:
        return False
    best = int(np.nanargmax(np.where(np.isfinite(means[:-WINDOW]), means[:-WINDOW], -np.inf)))
    late, noise = np.asarray(means[-WINDOW:]), np.hypot(errors[-WINDOW:], errors[best])
    return bool(np.all(late < means[best] - 10.0 * noise))


def rises(means: Sequence[float], errors: Sequence[float], by: float = 2.0) -> bool:
    """Whether the last window of blocks lies above the one before by more than `by` standard errors."""
    late, early = np.asarray(means[-WINDOW:]), np.asarray(means[-2 * WINDOW : -WINDOW])
    noise = np.sqrt(np.sum(np.square(errors[-2 * WINDOW :]))) / WINDOW
    return bool(late.mean() - early.mean() > by * noise)


def overfits(held_out: Sequence[float], patience: int = 20) -> bool:
    """No better bound on the held-out units for `patience` blocks."""
    return len(held_out) > patience and max(held_out[-patience:]) <= max(held_out[:-patience])
