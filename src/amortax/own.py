"""Which row of the table is a unit's own? Units are known again by label and values together, never by their place.

Two checks make a mix-up impossible: a unit whose label and values are not those of a training unit has no answer, and
rows follow the fingerprints, not the order of the data.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._errors import DataError
from ._types import Fixed
from .data import Units
from .encoders.free import Free, halves
from .families.base import AbstractFamily
from .families.own import Own
from .guide import Guide
from .heads import AbstractHead


def own_family(family: AbstractFamily) -> Own:
    """`family` with parameters from the unit's row."""
    return Own(family.size, Fixed(family))


def first_row(head: AbstractHead | None, family: Own) -> jnp.ndarray:
    """What every unit starts from: the head's point, if there is a head, then the family's parameters."""
    return jnp.concatenate([jnp.zeros(0 if head is None else family.size), family.first_row()])


def table_of(guide: Guide) -> Free | None:
    """The units' own parameters; None where an encoder reads the units."""
    return guide.encoder if isinstance(guide.encoder, Free) else None


def remember(guide: Guide, training: Units) -> Guide:
    """The guide with row i for unit i of `training`."""
    if table_of(guide) is None:
        return guide
    return eqx.tree_at(lambda g: g.encoder.fingerprints, guide, halves(training.unit_fingerprints()))


def with_rows(data: Units, guide: Guide) -> Units:
    """The units with their rows; as they are where an encoder reads them.

    **Raises** `DataError` naming the first unit that has no row.
    """
    table = table_of(guide)
    if table is None:
        return data
    known, asked = table.known(), data.unit_fingerprints()
    order = np.argsort(known)
    rows = order[np.minimum(np.searchsorted(known, asked, sorter=order), len(known) - 1)]
    strange = np.flatnonzero(known[rows] != asked)
    if len(strange):
        first = int(strange[0])
        raise DataError(
            f"{data.name} '{data.labels[first]}' (unit {first} of the data) and {len(strange) - 1} more of {len(data)} "
            f"are not among the {len(known)} that this posterior was trained on. am.free() has parameters for those "
            "alone and knows each by its label and values together. For a part of them, or another order, give the "
            "labels that they had in training (0, 1, ... where none were given): am.units(data, labels=...). For new "
            "units or new values, train with an encoder (leave out encoder=am.free()), or fit again with these units"
        )
    return dataclasses.replace(data, rows=rows.astype(np.int32))
