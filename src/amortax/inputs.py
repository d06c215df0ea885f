"""What does the encoder see? Every argument of the model, as a plain array or as a set of elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .encoders.base import Feature, Inputs
from .joint.structure import Argument, Structure
from .joint.tree import tree_of


def inputs_of(structure: Structure, by_elements: bool = False, by_step: bool = False) -> Inputs:
    """What the encoder sees: arrays along an exchangeable or ragged inner plate are sets, all others plain arrays.

    Elements with numbers of their own are a set where q goes `by_elements`, and have places of their own elsewhere;
    `by_step` it goes along a series.
    Labels of which the guide has a q it does not see, or q would only repeat them.
    """
    hidden = {argument for argument, site in structure.labels.items() if site in structure.learned}
    own = {name for site in structure.of("local") for name in site.plates}
    sets = [p for p in structure.plates if p.ragged or (by_elements if p.name in own else p.exchangeable)]
    ordered = tuple(p.name for p in sets if not p.exchangeable)
    names = [p.name for p in sets]
    times = [p.name for p in structure.plates if not p.exchangeable]
    seen = [a for a in structure.arguments if a.name not in hidden]
    features = tuple(_feature(a, names, times, by_elements=by_elements) for a in seen)
    return Inputs(features, ordered, **_levels(structure, features) if by_elements else {}, by_step=by_step)


def _feature(argument: Argument, sets: Sequence[str], times: Sequence[str], *, by_elements: bool) -> Feature:
    """An argument as the encoder sees it: elements of plates in `sets` are a set, those in `times` have an order."""
    along = [(name, axis) for axis, name in enumerate(argument.dims) if name is not None and name in sets]
    if not by_elements:
        one = argument.plate
        along = [(one, argument.plate_axis)] if one is not None and one in sets else []
    return Feature(
        argument.name,
        argument.shape,
        *(along[0] if along else (None, 0)),
        argument.masked,
        argument.role == "observed",
        argument.categories,
        argument.first_category,
        argument.positive,
        tuple(along[1:]),
        time_axis=next((axis for axis, name in enumerate(argument.dims) if name in times), None),
    )


def _levels(structure: Structure, features: Sequence[Feature]) -> dict[str, Any]:
    """What `Inputs` says of the plates: their order, and those of every level of numbers."""
    levels = [level.plates for level in tree_of(structure).levels]
    used = {name for feature in features for name in feature.sets}.union(*levels)
    order = tuple(name for name in structure.outermost_first if name in used)
    return {"nested": order, "levels": tuple(tuple(p for p in order if p in names) for names in levels)}
