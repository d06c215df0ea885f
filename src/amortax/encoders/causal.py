"""What does an encoder say of a series so far? At every step a state of the steps up to it, and the step itself.

    h_t = GRU(h_{t-1}, x_t),   context_t = (h_t, x_t),

so that the context of a step never changes with what comes after it, and one more step costs the same however many
were before (gated recurrent unit: Cho and others 2014; the cell is Equinox's). Time is the first axis. All steps share
one standardisation, and what is along no time axis is seen again at every step.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import Batch
from .base import AbstractEncoder, Features, Inputs

STEP = "step"  # what the time axis is called where features name the axes along which they are alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class causal(Recipe, slots=("encoder",)):
    """Recipe of `Causal`, a gated recurrent unit of `width` numbers; for `am.filtering()`."""

    width: int = 64

    def build(self, inputs: Inputs, *, key: Array) -> Causal:
        """The encoder for inputs with a time axis."""
        return Causal(inputs, self.width, key=key)


def along_time(inputs: Inputs, length: int) -> Inputs:
    """The inputs with every first axis of `length` as time, whose steps are alike, and all others with own places.

    **Raises** `GuideError` where units differ in length.
    """
    if ragged := [f.name for f in inputs.features if None in f.shape]:
        raise GuideError(
            f"am.causal() reads series of one length, but {ragged} differ in length; pad them at the end, with NaN "
            "where observed, by repeated values where not: the steps so far are read as they are in a shorter series"
        )
    plain = {"plate": None, "plate_axis": 0, "others": (), "image": False, "time_axis": None}
    timed = plain | {"plate": STEP}
    features = (dataclasses.replace(f, **(timed if f.shape[:1] == (length,) else plain)) for f in inputs.features)
    return Inputs(tuple(features))


class Causal(AbstractEncoder):
    """Contexts of all steps: (T, width) states and (T, numbers) of the steps themselves."""

    features: Features
    cell: eqx.nn.GRUCell
    context_sizes: tuple[int, ...] = eqx.field(static=True)  # of one step

    def __init__(self, inputs: Inputs, width: int, *, key: Array) -> None:
        features, cell = jax.random.split(key)
        self.features = Features(inputs, key=features)
        size = inputs.width(STEP) + inputs.width(None)
        self.cell = eqx.nn.GRUCell(size, width, key=cell)
        self.context_sizes = (width, size)

    def start(self) -> Float[Array, " width"]:
        """The state before the first step."""
        return jnp.zeros(self.cell.hidden_size)

    def rows(self, unit: Batch) -> Float[Array, "steps numbers"]:
        """What is seen of every step."""
        rows, plain = self.features.steps(unit, STEP)[0], self.features.plain(unit)
        return jnp.concatenate([rows, jnp.broadcast_to(plain, (rows.shape[0], *plain.shape))], axis=1)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """The contexts of all steps of one unit."""

        def step(state: Array, row: Array) -> tuple[Array, Array]:
            state = self.cell(row, state)
            return state, state

        rows = self.rows(unit)
        return jax.lax.scan(step, self.start(), rows)[1], rows
