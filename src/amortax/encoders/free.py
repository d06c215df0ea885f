"""No encoder: every training unit has variational parameters of its own (traditional variational inference).

The context of unit i is row i of a table (N, P) that is trained directly. Nothing is read from the unit's data but
which row is its own (`Batch.rows`), so there is no answer for a unit that was not trained on.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._recipe import Recipe
from .._types import Batch, Fixed
from .base import AbstractEncoder, Features, Inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class free(Recipe, slots=("encoder",)):
    """Recipe of `Free`: own parameters per unit; `num_units` is filled in by `amortize` and `fit`.

    Memory and, per pass over the units, time grow with the number of units, and new units have no answer; in return no
    network stands between a unit and its best q. `compare` tells what an encoder loses to it.
    """

    num_units: int | None = None

    def build(self, row: Float[Array, " p"], *, key: Array) -> Free:
        """The table in which every unit starts from `row`."""
        count = self.num_units or 1
        fingerprints = Fixed(jnp.zeros((count, 2), jnp.uint32))
        own_rows = jnp.tile(row[None], (count, 1))
        return Free(Features(Inputs(()), key=key), (row.shape[0],), own_rows, fingerprints)


class Free(AbstractEncoder):
    """A table of parameters, one row for each training unit, and the units' fingerprints in the same order."""

    features: Features  # none
    context_sizes: tuple[int, ...] = eqx.field(static=True)
    own_rows: Float[Array, "n p"]
    fingerprints: Fixed  # (n, 2), 64 bits as two halves; see `Units.unit_fingerprints`

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """The unit's own row."""
        assert unit.rows is not None, "units of a free guide pass `own.with_rows` first"
        return (self.own_rows[unit.rows],)

    def known(self) -> np.ndarray:
        """Fingerprints (n,) of the training units, in the order of their rows."""
        return np.ascontiguousarray(np.asarray(self.fingerprints.value, np.uint32)).view(np.uint64)[:, 0]


def halves(fingerprints: np.ndarray) -> Fixed:
    """64-bit fingerprints (n,) as they are stored: JAX has 32 bits."""
    return Fixed(jnp.asarray(np.ascontiguousarray(fingerprints, np.uint64)[:, None].view(np.uint32)))
