"""Is this the model that was trained? Its structure, read again from stored shapes alone, against the stored one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from .._errors import ArtifactError, ModelError
from .._types import Batch, PyTree
from .observe import name_of
from .probe import initial_params
from .read import read
from .structure import Structure
from .whole import program_of

NUM_UNITS, LENGTH = 2, 3


def reread(model: Callable, structure: Structure, path: str) -> tuple[Structure, PyTree]:
    """The stored structure and shapes of the parameters of `model`, which must have it.

    Whether it has a density the model itself says: older files do not.

    **Raises** `ArtifactError` naming the first difference in sites, supports, shapes, plates or parameters.
    """
    if not callable(model):
        raise ArtifactError(f"{path}: model= is the function that it was trained with, got {model!r}")
    data, model = _stand_in(structure), program_of(model, structure)
    axes = {a.name: a.axis for a in structure.arguments if a.axis}
    try:
        found = read(model, data, axes, structure.plate)
    except ModelError as error:
        raise ArtifactError(f"{path}: model '{name_of(model)}' is not the one that was trained: {error}") from error
    if difference := structure.difference(found):
        raise ArtifactError(f"{path}: model '{name_of(model)}' is not the one that was trained; {difference}")
    structure = dataclasses.replace(structure, no_density=found.no_density)
    return structure, jax.eval_shape(lambda key: initial_params(model, structure, data, key), jax.random.key(0))


def _stand_in(structure: Structure) -> Batch:
    """Two units of the stored shapes; no value of it is ever looked at."""
    arrays, masks, lengths = {}, {}, {}
    for a in structure.arguments:
        shape = (NUM_UNITS, *(LENGTH if n is None else n for n in a.shape))
        arrays[a.name] = np.ones(shape, a.dtype)
        if a.masked:
            masks[a.name] = np.ones(shape, bool)
            if a.name in structure.labels:
                masks[a.name][0] = False  # which is why they are summed
        if a.ragged:
            lengths[a.name] = np.full(NUM_UNITS, LENGTH, np.int32)
    return Batch(arrays, masks, lengths)
