"""Is a unit like those that q was trained on? Its inputs and context against what `fit` kept of the training units.

An encoder answers for any unit, also for one in other units of measurement, and k-hat sees only half of those (a guide
may be as sure of a wrong question as of a right one). So `fit` keeps what the training units were like, as two clouds:
of the numbers of their inputs (`summaries`), and of the encoder's contexts. A unit outside a cloud's limit is flagged,
and so is one with a category that no training unit had, whose embedding was never trained. Of units like the training
units at most `cloud.SHARE` are outside each cloud, by design.

Shift says that an answer was not practised, not that it is wrong: k-hat judges the answer itself.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import ArtifactError
from ..data import Units
from ..encoders.base import Feature
from ..encoders.free import Free
from ..guide import Guide
from ..joint.joint import Joint
from .cloud import BLOCK, FEWEST, MOST, Cloud, cloud_of
from .summaries import category_shares, context_numbers, input_numbers

PREFIX = "reference."  # of the names of its arrays in a file


class Reference(eqx.Module):
    """What the training units were like."""

    inputs: Cloud
    context: Cloud
    shares: dict[str, Float[np.ndarray, " categories"]]  # categorical argument -> how often each was seen
    ranges: dict[str, Float[np.ndarray, " 2"]]  # numeric argument -> least and largest value seen

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name, as they are stored."""
        found = {f"inputs.{name}": x for name, x in self.inputs.to_arrays().items()}
        found |= {f"context.{name}": x for name, x in self.context.to_arrays().items()}
        found |= {f"shares.{name}": x for name, x in self.shares.items()}
        found |= {f"ranges.{name}": x for name, x in self.ranges.items()}
        return {PREFIX + name: x for name, x in found.items()}


def reference_from(arrays: dict[str, np.ndarray], guide: Guide) -> Reference | None:
    """The reference among the arrays of a file, None where none was stored.

    **Raises** `ArtifactError` where its arrays are not those of this guide.
    """
    if not arrays:
        return None
    groups: dict[str, dict[str, Any]] = {"inputs": {}, "context": {}, "shares": {}, "ranges": {}}
    for name, array in arrays.items():
        group, _, rest = name.removeprefix(PREFIX).partition(".")
        if group not in groups:
            raise ArtifactError(f"array '{name}' is unknown")
        groups[group][rest] = array
    features = _features(guide)
    wanted = {f"shares.{f.name}": (f.categories,) for f in features if f.categories}
    wanted |= {f"ranges.{f.name}": (2,) for f in features if not f.categories}
    found = {f"{g}.{name}": np.shape(x) for g in ("shares", "ranges") for name, x in groups[g].items()}
    if found != wanted:
        raise ArtifactError(f"the reference of training units has {found}, the guide needs {wanted}")
    inputs, context = (Cloud.from_arrays(groups[name]) for name in ("inputs", "context"))
    return Reference(inputs, context, groups["shares"], groups["ranges"])


def reference_of(joint: Joint, guide: Guide, training: Units) -> Reference | None:
    """What `training` units are like, from `MOST` of them at most.

    None where nothing can be said: no encoder reads them (each has its own parameters), or there are fewer than
    `FEWEST` of them. Where q is of single steps (`am.filtering()`) nothing is judged.
    """
    if not _features(guide) or guide.filters or len(training) < FEWEST:
        return None
    if len(training) > MOST:
        training = training.take(np.linspace(0, len(training) - 1, MOST).astype(int))
    inputs = guide.encoder.features.inputs  # type: ignore[union-attr]
    shares = category_shares(inputs, training)
    seen = np.concatenate([input_numbers(inputs, part, shares) for part in _parts(training)])
    ranges = {f.name: _range(f, training) for f in inputs.features if not f.categories}
    context = context_numbers(joint, guide, training)
    return Reference(cloud_of(seen), cloud_of(context), shares, ranges)


def shifts(joint: Joint, guide: Guide, data: Units, reference: Reference | None) -> dict[str, np.ndarray]:
    """Columns of the units: `input_shift` and `context_shift` (1 is the limit), their chances, and `outside`.

    A chance is the share of units like the training units that are as far away, 1 where a unit is within the limit.
    `outside` names the argument with a category that was never seen, or whose numbers leave the range of training
    farthest; of these `unseen` are the first. Empty without a reference.
    """
    if reference is None:
        return {}
    inputs = guide.encoder.features.inputs  # type: ignore[union-attr]
    parts = [reference.inputs.judge(input_numbers(inputs, part, reference.shares)) for part in _parts(data)]
    far, chance = (np.concatenate(x) for x in zip(*parts, strict=True))
    context, context_chance = reference.context.judge(context_numbers(joint, guide, data))
    outside, unseen = _outside(inputs.features, data, reference)
    return {
        "input_shift": far,
        "context_shift": context,
        "shift_chance": np.minimum(chance, context_chance),
        "outside": outside,
        "unseen": unseen,
    }


def _features(guide: Guide) -> tuple[Feature, ...]:
    reads = guide.encoder is not None and not isinstance(guide.encoder, Free)
    return guide.encoder.features.inputs.features if reads else ()  # type: ignore[union-attr]


def _parts(data: Units) -> list[Units]:
    return [data.take(slice(i, i + BLOCK)) for i in range(0, len(data), BLOCK)]


def _values(feature: Feature, data: Units) -> tuple[np.ndarray, np.ndarray]:
    """(values, where there is one), each (units, places)."""
    values = np.asarray(data.arrays[feature.name]).reshape(len(data), -1)
    mask = data.masks.get(feature.name)
    return values, np.ones(values.shape, bool) if mask is None else np.asarray(mask).reshape(len(data), -1)


def _range(feature: Feature, data: Units) -> np.ndarray:
    values, known = _values(feature, data)
    values = values.astype(np.float64)[known]
    return np.array([values.min(), values.max()]) if values.size else np.zeros(2)


def _outside(features: tuple[Feature, ...], data: Units, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """(the argument that is outside what was seen, or "", of every unit; whether by a category never seen)."""
    names, most = np.full(len(data), "", object), np.zeros(len(data))
    for feature in features:
        values, known = _values(feature, data)
        if feature.categories:
            strange = reference.shares[feature.name][values.astype(np.int64) - feature.first_category] == 0
            excess = np.where(np.any(strange & known, axis=1), np.inf, 0.0)
        else:
            low, high = reference.ranges[feature.name]
            beyond = np.maximum(values - high, low - values.astype(np.float64)) / max(high - low, 1e-30)
            excess = np.max(np.where(known, beyond, 0.0), axis=1, initial=0.0)
        names, most = np.where(excess > most, feature.name, names), np.maximum(most, excess)
    return names.astype(str), np.isinf(most)
