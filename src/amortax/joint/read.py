"""How is a model read? Abstract runs at several sizes, refusing early whatever can't be amortized unit by unit.

The runs are abstract: nothing is computed. What abstract runs can't see (a literal that happens to fit, arithmetic
across units, density terms counted twice) is left to `probe`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from .._errors import ModelError
from .._types import Batch
from .arguments import Label, argument_of, label_of, label_sites, ragged_groups
from .choices import choices_of, refuse_unlisted
from .depends import Dependencies, dependencies
from .layout import check_arguments, shapes
from .levels import refuse_sums
from .observe import Seen, name_of, observe
from .refuse import (
    refuse_forgotten,
    refuse_latents,
    refuse_other_lengths,
    refuse_plates,
    refuse_ragged_events,
    refuse_sites,
    refuse_sizes,
    refuse_tied,
    refuse_unobserved,
)
from .structure import Argument, InnerPlate, Role, Site, Structure
from .tree import tied
from .whole import Whole

Frames = Mapping[int, tuple[str, int]]  # dim -> (plate, size)


def read(model: Callable, data: Batch, axes: Mapping[str, int], plate: str, missing: Collection[str] = ()) -> Structure:
    """Reads `model` for the units of `data` (all units, host arrays) along `plate`.

    **Arguments**: `missing` names labels that may be missing later, though none is here.

    **Raises** `ModelError`, naming the site and what to write instead, for anything that can't be amortized.
    """
    check_arguments(model, names := list(data.arrays), axes)
    whole = observe(model, shapes(data, axes, num_units := len(data.arrays[names[0]])))
    refuse_plates(model, whole, plate, num_units)
    specs = shapes(data, axes, 1)
    one = _with_axes(observe(model, specs), {} if isinstance(model, Whole) else whole)
    refuse_plates(model, one, plate, 1)
    refuse_sites(model, one, plate)
    inner = _inner_plates(model, data, axes, one, plate)
    refuse_forgotten(model, specs, one)
    refuse_latents(one, plate)
    refuse_sizes(one, whole, plate)
    choices = choices_of(model, specs, [s.name for s in one.values() if s.discrete and not s.observed])
    refuse_unlisted(one, choices, plate)
    unit_axes = _unit_axes(one, whole, plate)
    inside = frozenset(n for n, s in one.items() if n in unit_axes or (s.kind == "sample" and _is_in(s, plate)))
    links = dependencies(model, specs, one, inside, plate)
    refuse_unobserved(one, names, plate)
    sites = label_sites(one, links, plate)
    values = choices_of(model, specs, list(sites.values()))
    labels = {n: label_of(n, data, values[site], declared=n in missing) for n, site in sites.items()}
    choices |= {site: values[site] for n, site in sites.items() if labels[n].summed}
    arguments = tuple(argument_of(n, data, axes, one, links, inner, plate, label=labels.get(n, Label())) for n in names)
    refuse_ragged_events(arguments, plate)
    structure = Structure(
        model=name_of(model),
        plate=plate,
        sites=_sites(one, plate, unit_axes, links, choices),
        arguments=arguments,
        plates=inner,
        params=tuple(seen.name for seen in one.values() if seen.kind == "param"),
        cannot_simulate=_cannot_simulate(one, links, arguments),
        no_density=_no_density(one),
        whole=isinstance(model, Whole),
    )
    return _element_by_element(structure, links)


def _element_by_element(structure: Structure, links: Dependencies) -> Structure:
    """Whether elements of inner plates may be summed, and inferred, one by one."""
    refuse_sums(structure, links.follows)
    structure = dataclasses.replace(structure, tied=tied(structure, links.follows))
    refuse_tied(structure)
    return structure


def _with_axes(one: dict[str, Seen], whole: dict[str, Seen]) -> dict[str, Seen]:
    """Where arguments have their axes, from a run in which the unit axis isn't of length one as added ones are."""
    return {
        n: dataclasses.replace(s, added=whole[n].added, order=whole[n].order) if n in whole else s
        for n, s in one.items()
    }


def _is_in(seen: Seen, plate: str) -> bool:
    return any(name == plate for name, _, _ in seen.plates)


def _inner_plates(
    model: Callable, data: Batch, axes: Mapping[str, int], one: dict[str, Seen], plate: str
) -> tuple[InnerPlate, ...]:
    """The plates inside the amortized one; ragged are those that grow when the arguments of a ragged group do."""
    groups = ragged_groups(data)
    if groups:
        refuse_sizes(one, observe(model, shapes(data, axes, 1, longer=frozenset(data.lengths))), plate, "padded length")
    grown = {}
    for group in groups:
        try:
            grown[group] = observe(model, shapes(data, axes, 1, longer=frozenset(group)))
        except ModelError as error:  # all together grew: these don't without others, that differ in length
            refuse_other_lengths(group, data, plate, error)
    found: dict[str, InnerPlate] = {}
    for name, seen in one.items():
        for index, (frame, dim, size) in enumerate(seen.plates):
            if frame != plate and _is_in(seen, plate):
                ragged = [g for g in groups if grown[g][name].plates[index][2] != size]
                argument, ordered = ragged[0][0] if ragged else None, frame == seen.steps
                found[frame] = InnerPlate(frame, bool(ragged), True, argument, dim, ordered)
    return tuple(found.values())


def _unit_axes(one: dict[str, Seen], whole: dict[str, Seen], plate: str) -> dict[str, int]:
    """The unit axis of every deterministic value that has one, inside the plate or not."""
    found = {}
    for name, seen in one.items():
        if seen.kind != "deterministic" or seen.shape == whole[name].shape:
            continue
        mine, all_units = seen.shape, whole[name].shape
        differ = [i for i, (a, b) in enumerate(zip(mine, all_units, strict=False)) if a != b]
        if len(mine) != len(all_units) or len(differ) != 1 or mine[differ[0]] != 1:
            raise ModelError(
                f"deterministic '{name}' has shape {all_units} for all units and {mine} for one, so it is not one "
                f"value per unit of plate '{plate}'; leave it out, and compute it from the posterior's draws"
            )
        found[name] = differ[0]
    return found


class Known(NamedTuple):
    """What other readings of the model say about a site."""

    checkable: bool
    choices: tuple[int | float, ...]


def _sites(
    one: dict[str, Seen], plate: str, unit_axes: Mapping[str, int], links: Dependencies, choices: Mapping[str, Any]
) -> tuple[Site, ...]:
    frames = {dim: (name, size) for s in one.values() if _is_in(s, plate) for name, dim, size in s.plates}
    return tuple(
        _site(s, plate, unit_axes, frames, Known(s.name in links.checkable, choices.get(s.name) or ()))
        for s in one.values()
        if s.kind in {"sample", "deterministic"}
    )


def _site(seen: Seen, plate: str, unit_axes: Mapping[str, int], frames: Frames, known: Known) -> Site:
    per_unit = seen.name in unit_axes if seen.kind == "deterministic" else _is_in(seen, plate)
    own: Frames = {dim: (name, size) for name, dim, size in seen.plates}
    event_dim = seen.event_dim
    if seen.kind == "deterministic":
        own, event_dim = _frames_of_value(seen, plate, unit_axes.get(seen.name), own, frames)
    kept, dims, dropped = [], [], []
    for position, size in enumerate(seen.shape):
        dim = position - (len(seen.shape) - event_dim)
        name = own[dim][0] if dim in own and own[dim][1] == size else None
        broadcast = dim < 0 and size == 1 and name is None and any(other < dim for other in own)
        if name == plate or broadcast:
            dropped.append(position - len(seen.shape))
            continue
        kept.append(size)
        dims.append(name)
    return Site(
        name=seen.name,
        role=_role(seen, per_unit),
        per_unit=per_unit,
        dims=tuple(dims),
        kept_shape=tuple(kept),
        dropped=tuple(dropped),
        model_shape=seen.shape,
        event_dim=event_dim,
        free_shape=seen.free_shape,
        support=seen.support,
        argument=seen.argument,
        added=seen.added,
        order=seen.order,
        unit_dim=next((dim for dim, (name, _) in own.items() if name == plate), 0),
        checkable=known.checkable and per_unit,
        choices=known.choices,
    )


def _role(seen: Seen, per_unit: bool) -> Role:
    if seen.kind == "deterministic" or seen.factor:
        return "factor" if seen.factor else "deterministic"
    if seen.observed:
        return "observed"
    if seen.discrete:
        return "discrete"
    return "local" if per_unit else "global"


def _frames_of_value(seen: Seen, plate: str, axis: int | None, own: Frames, frames: Frames) -> tuple[Frames, int]:
    """Where the plates of a deterministic value lie, which has no event dimension of its own: (plates, event_dim)."""
    if axis is None:
        return ({} if _is_in(seen, plate) else own), 0
    ndim = len(seen.shape)
    unit_dim = next(dim for dim, (name, _) in frames.items() if name == plate)
    if axis - unit_dim > ndim:  # other axes than the model's
        return {axis - ndim: (plate, 1)}, 0
    return (own if _is_in(seen, plate) else frames), ndim - (axis - unit_dim)


def _cannot_simulate(one: dict[str, Seen], links: Dependencies, arguments: tuple[Argument, ...]) -> str:
    samples = [seen for seen in one.values() if seen.kind == "sample"]
    for seen in samples:
        if seen.improper and not seen.observed:
            return f"site '{seen.name}' has an improper prior"
    for seen in samples:
        if seen.factor:
            return f"factor '{seen.name}' has no sampler"
        if seen.improper:
            return f"observed site '{seen.name}' has no sampler (ImproperUniform)"
        if seen.observed and seen.argument is None:
            if not links.derived.get(seen.name):
                return f"site '{seen.name}' observes a constant, which ties its parameters together"
            return f"site '{seen.name}' observes a function of the data, not an argument itself"
    for argument, site in links.lagged.items():
        return f"observed argument '{argument}' changes the distribution of site '{site}'"
    return ""


def _no_density(one: dict[str, Seen]) -> str:
    """A site that only says where data come; with a factor the model has its density from there."""
    if any(seen.factor for seen in one.values()):
        return ""
    for seen in one.values():
        if seen.observed and seen.improper:
            return f"observed site '{seen.name}' has no density (ImproperUniform is 1 whatever the latents are)"
    return ""
