"""How do units stand in the model's own arrays? Shapes and slices between unit-first storage and the model's layout."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._errors import ModelError
from .._types import Batch
from .observe import name_of


def shapes(
    data: Batch, axes: Mapping[str, int], num_units: int, longer: Collection[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract arguments for `num_units` units in the model's layout; those in `longer` have one more padded place."""
    specs = {}
    for name, array in data.arrays.items():
        shape = list(array.shape[1:])
        if name in longer:
            shape[0] += 1
        shape.insert(axes.get(name, 0), num_units)
        specs[name] = jax.ShapeDtypeStruct(tuple(shape), jax.dtypes.canonicalize_dtype(array.dtype))
    return specs


def to_model(arrays: Mapping[str, Array], axes: Mapping[str, int]) -> dict[str, Array]:
    """Moves the leading unit axis of every array to where the model expects it."""
    return {name: jnp.moveaxis(array, 0, axes.get(name, 0)) for name, array in arrays.items()}


def unit_to_model(arrays: Mapping[str, Array], axes: Mapping[str, int]) -> dict[str, Array]:
    """Arrays of one unit as a plate of size 1 in the model's layout."""
    return {name: jnp.expand_dims(array, axes.get(name, 0)) for name, array in arrays.items()}


def unit_slice(value: Any, index: int, dim: int, event_dim: int) -> Any:
    """Unit `index` of a site's value or log density in the model's layout, keeping the unit axis."""
    axis = np.ndim(value) - event_dim + dim
    return value if axis < 0 else np.take(value, [index], axis=axis)


def check_arguments(model: Callable, names: list[str], axes: Mapping[str, int]) -> None:
    """The model's signature against the data's names: missing, extra and misspelt arguments are errors."""
    parameters = inspect.signature(model).parameters
    where = f"model '{name_of(model)}'"
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise ModelError(f"{where} has positional-only arguments; give every argument a name: its data is found by it")
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing := [name for name in needed if name not in names]:
        raise ModelError(
            f"{where} needs the arguments {missing}, which the data (with {sorted(names)}) does not have; "
            "add them, or bind constants with functools.partial"
        )
    extra = [name for name in names if name not in parameters]
    if extra and not open_ended:
        near = difflib.get_close_matches(extra[0].lower(), [name for name in parameters if name not in names], 1)
        raise ModelError(
            f"data has {extra}, which {where} does not take (it takes {list(parameters)}); "
            + (f"did you mean '{near[0]}'?" if near else "drop or rename")
        )
    if unknown := [name for name in axes if name not in names]:
        raise ModelError(f"axes= names {unknown}, which the data (with {sorted(names)}) does not have")


def omitted_arguments(model: Callable, names: list[str]) -> list[str]:
    """Arguments left at a default of None: perhaps a response that was forgotten."""
    parameters = inspect.signature(model).parameters
    bound = getattr(model, "keywords", {})
    return [n for n, p in parameters.items() if p.default is None and n not in names and n not in bound]
