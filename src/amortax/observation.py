"""Is this one step of a series? What a filter is given, against what training had; where values are known, those too.

Inside `jax.jit` nothing is known of values but their shapes and types. Outside, a value that can't be is an error here,
as it is in `posterior.sample`: what is missing, infinite, no whole number, outside its support or its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ._errors import DataError
from .encoders.base import Feature
from .encoders.causal import STEP
from .joint.structure import Structure


class Kind(NamedTuple):
    """What numbers an argument has."""

    name: str
    dtype: str
    support: str  # of the site that it is observed at, or empty


def kinds_of(structure: Structure) -> tuple[Kind, ...]:
    """Of every argument."""
    seen = {site.argument: site.support for site in structure.of("observed")}
    return tuple(Kind(a.name, a.dtype, seen.get(a.name, "")) for a in structure.arguments)


def one_step(
    observation: Any, features: tuple[Feature, ...], kinds: tuple[Kind, ...]
) -> dict[str, tuple[Array, Array]]:
    """Argument -> (its values at one step, which of them are there).

    **Raises** `DataError` naming the argument, for other names, shapes or types, and for values that can't be.
    """
    wanted = sorted(feature.name for feature in features)
    if not isinstance(observation, Mapping):
        raise DataError(
            f"filter.update(state, observation): expected a dict of {wanted} as the observation, got "
            f"{type(observation).__name__}"
        )
    if sorted(map(str, observation)) != wanted:
        raise DataError(f"filter.update: an observation has {wanted}, got {sorted(map(str, observation))}")
    known = {kind.name: kind for kind in kinds}
    return {feature.name: _checked(feature, known[feature.name], observation[feature.name]) for feature in features}


def _checked(feature: Feature, kind: Kind, value: Any) -> tuple[Array, Array]:
    where = f"filter.update: observation['{feature.name}']"
    shape = tuple(int(n or 1) for n in feature.shape[feature.plate == STEP :])
    if value is None:
        if not feature.masked:
            raise DataError(
                f"{where} is missing, but nothing was missing there in training; train on data that has missing values "
                "too"
            )
        return jnp.full(shape, feature.first_category), jnp.zeros(shape, bool)
    given = value if isinstance(value, jax.Array) else np.asarray(value)
    if given.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected a number or an array of shape {shape}, got {value!r}")
    array = jnp.asarray(given)
    if array.shape != shape:
        raise DataError(
            f"{where} has shape {array.shape}; one step of one series has {shape}; give one step, and use jax.vmap for "
            "many series"
        )
    if feature.categories and not jnp.issubdtype(array.dtype, jnp.integer):
        raise DataError(f"{where} is of type {array.dtype}; it is an index, give integers")
    if not isinstance(array, Tracer):
        _refuse_values(where, feature, kind, np.asarray(array, np.float64))
    if not (feature.masked and jnp.issubdtype(array.dtype, jnp.floating)):
        return array, jnp.ones(shape, bool)
    there = ~jnp.isnan(array)
    return jnp.where(there, array, 0.0), there


def _refuse_values(where: str, feature: Feature, kind: Kind, values: np.ndarray) -> None:
    """Values that are known, and can't be."""
    there, least = ~np.isnan(values), feature.first_category
    if not (feature.masked or there.all()):
        raise DataError(
            f"{where} is {values}, a missing value, but nothing was missing there in training, so no belief can be "
            "read from it; leave the step out, or train on data that has missing values too"
        )
    rules = [(np.isinf(values), "expected a finite number; correct it, or mark it as missing (NaN)")]
    if np.dtype(kind.dtype).kind in "iu":
        rules.append((values != np.round(values), f"the posterior was trained on whole numbers ({kind.dtype})"))
    if feature.categories:
        most = least + feature.categories - 1
        rules.append(((values < least) | (values > most), f"it is an index: expected {least} to {most}"))
    elif feature.positive:
        rules.append((values < 0, f"that is outside the support of its site, {kind.support}"))
    elif "bool" in kind.support.lower():
        rules.append(((values != 0) & (values != 1), f"that is outside the support of its site, {kind.support}"))
    for wrong, expected in rules:
        if len(odd := values[wrong & there]):
            raise DataError(f"{where} is {odd[0]:g}; {expected}")
