"""What numbers say what a unit is like? Of its inputs, and of its context, as many for every unit.

An argument with a value in every place is itself; along a set or a ragged axis it is its mean, deviation, least and
largest value, and how many elements there are. Counts and positive numbers are seen on the log scale too, categories
by how rare they are in training, -log of their share, and missing values by theirs. A context for every element or step
is its mean and deviation over them. These are the numbers that an encoder sees, in a form that units of any size share.
"""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from .._types import Batch, Context
from ..chunks import chunks
from ..data import Units
from ..encoders.base import Feature, Inputs
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.masks import own_places

Rows = Float[np.ndarray, "units d"]


def category_shares(inputs: Inputs, data: Units) -> dict[str, np.ndarray]:
    """How often each category was seen, as a share of all values seen; 0 for one that never was."""
    found = {}
    for feature in inputs.features:
        if feature.categories:
            codes = np.asarray(data.arrays[feature.name])[_known(feature, data)] - feature.first_category
            counts = np.bincount(codes.astype(np.int64), minlength=feature.categories)
            found[feature.name] = counts / max(counts.sum(), 1)
    return found


def input_numbers(inputs: Inputs, data: Units, shares: dict[str, np.ndarray]) -> Rows:
    """The numbers of every unit's inputs; NaN where a unit has no value."""
    parts = [np.zeros((len(data), 0))]
    for feature in inputs.features:
        known = _known(feature, data)
        for values in _scales(feature, data, shares):
            parts += _pooled(values, known, sorted(1 + axis for axis in feature.sets.values()))
        own = own_places(known, data.lengths.get(feature.name))  # type: ignore[arg-type]
        if feature.masked:
            parts.append(1.0 - _mean(known.astype(float), own).reshape(-1, 1))
        if feature.sets:
            parts.append(np.log1p(own.reshape(len(own), -1).sum(axis=1, keepdims=True)))
    return np.concatenate(parts, axis=1)


def _scales(feature: Feature, data: Units, shares: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The values of an argument on each scale on which it is seen."""
    values = np.asarray(data.arrays[feature.name])
    if feature.categories:
        rarity = -np.log(np.maximum(shares[feature.name], 0.5 * _least(shares[feature.name])))
        return [rarity[values.astype(np.int64) - feature.first_category]]
    plain = values.astype(np.float64)
    return [plain, np.log1p(np.maximum(plain, 0.0))] if feature.positive else [plain]


def _least(shares: np.ndarray) -> float:
    return float(np.min(shares[shares > 0], initial=1.0))


def _known(feature: Feature, data: Units) -> Bool[np.ndarray, "units ..."]:
    """Where an argument has a value: neither padding nor missing."""
    mask = data.masks.get(feature.name)
    return np.ones(data.arrays[feature.name].shape, bool) if mask is None else np.asarray(mask)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean per unit over all places that count."""
    flat, counts = values.reshape(len(values), -1), where.reshape(len(values), -1)
    return (flat * counts).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)


def _pooled(values: np.ndarray, known: np.ndarray, axes: list[int]) -> list[Rows]:
    """The values themselves, or over `axes` mean, deviation, least and largest; NaN where none is known."""
    if not axes:
        return [np.where(known, values, np.nan).reshape(len(values), -1)]
    last = range(values.ndim - len(axes), values.ndim)
    values, known = np.moveaxis(values, axes, last), np.moveaxis(known, axes, last)
    shape = (len(values), int(np.prod(values.shape[1 : last[0]])), -1)
    values, known = values.reshape(shape), known.reshape(shape)
    count = known.sum(axis=2)
    values = np.where(known, values, 0.0)
    mean = values.sum(axis=2) / np.maximum(count, 1)
    spread = np.sqrt(np.sum(np.where(known, values - mean[..., None], 0.0) ** 2, axis=2) / np.maximum(count, 1))
    least = np.min(np.where(known, values, np.inf), axis=2, initial=np.inf)
    largest = np.max(np.where(known, values, -np.inf), axis=2, initial=-np.inf)
    return [np.where(count > 0, x, np.nan) for x in (mean, spread, least, largest)]


def context_numbers(joint: Joint, guide: Guide, data: Units) -> Rows:
    """The numbers of every unit's context, all its parts side by side."""
    found = [np.zeros((len(data), 0))]
    if guide.encoder is None:
        return found[0]
    inputs, rows = guide.encoder.features.inputs, []
    for chunk in chunks(data, joint.structure, 1):
        part = data.take(slice(chunk.start, chunk.stop))
        context = [np.asarray(x, np.float64)[: len(part)] for x in _encode(guide, chunk.batch)]
        numbers = [x.reshape(len(part), -1) if x.ndim <= 2 else _over_elements(x, inputs, part) for x in context]
        rows.append(np.concatenate([found[0][: len(part)], *numbers], axis=1))
    return np.concatenate(rows)


@eqx.filter_jit
def _encode(guide: Guide, batch: Batch) -> Context:
    return guide.encode(batch)


def _over_elements(context: np.ndarray, inputs: Inputs, data: Units) -> Rows:
    """Mean and deviation of a context that every element has, over the elements that are a unit's own."""
    plates = [p for p in inputs.nested if any(p in names for names in inputs.levels)] or list(inputs.plates)
    own = _own_elements(context.shape[1:-1], plates, inputs, data)
    count = np.maximum(own.reshape(len(own), -1).sum(axis=1), 1)[:, None]
    axes = tuple(range(1, context.ndim - 1))
    mean = np.sum(context * own[..., None], axis=axes) / count
    away = (context - np.expand_dims(mean, axes)) * own[..., None]
    return np.concatenate([mean, np.sqrt(np.sum(away**2, axis=axes) / count)], axis=1)


def _own_elements(grid: tuple[int, ...], plates: list[str], inputs: Inputs, data: Units) -> np.ndarray:
    """(units, *grid): one where an element is the unit's own and has a value, in a grid with an axis for each plate."""
    used = [p for p, n in zip(plates, grid, strict=False) if n > 1]
    fitting = [f for f in inputs.features if len(plates) == len(grid) and used and set(used) <= set(f.sets)]
    own = np.ones((len(data), *grid))
    if not fitting:
        return own
    feature = min(fitting, key=lambda f: len(f.sets))
    known = np.moveaxis(_known(feature, data), [1 + feature.sets[p] for p in used], range(1, 1 + len(used)))
    known = known.any(axis=tuple(range(1 + len(used), known.ndim)))
    sizes = iter(known.shape[1:])
    places = known.reshape(len(data), *(next(sizes) if p in used else 1 for p in plates))
    own = np.zeros_like(own)
    cut = tuple(slice(0, min(n, m)) for n, m in zip(own.shape, places.shape, strict=True))
    own[cut] = places[cut]
    return own
