"""How is a model read? Abstract runs at several sizes, refusing early whatever can't be amortized unit by unit.

The runs are abstract: nothing is computed. What abstract runs can't see (a literal that happens to fit, arithmetic
across units, density terms counted twice) is left to `probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from .._errors import ModelError
from .._types import Batch
from .depends import Dependencies, dependencies
from .layout import check_arguments, omitted_arguments, shapes
from .observe import Seen, name_of, observe
from .refuse import refuse_latents, refuse_plates, refuse_sites
from .structure import Argument, InnerPlate, Site, Structure


def read(model: Callable, data: Batch, axes: Mapping[str, int], plate: str) -> Structure:
    """Reads `model` for the units of `data` (all units, host arrays) along `plate`.

    **Raises** `ModelError`, naming the site and what to write instead, for anything that can't be amortized.
    """
    names = list(data.arrays)
    check_arguments(model, names, axes)
    num_units = len(next(iter(data.arrays.values())))
    whole = observe(model, shapes(data, axes, num_units))
    refuse_plates(model, whole, plate, num_units)
    one = observe(model, shapes(data, axes, 1))
    refuse_plates(model, one, plate, 1)
    longer = observe(model, shapes(data, axes, 1, extra=1)) if data.lengths else one
    inner = _inner_plates(one, longer, plate, data)
    refuse_sites(model, one, plate)
    refuse_latents(one, {p.name for p in inner if p.ragged}, plate)
    _refuse_forgotten(model, data, axes, one, plate)
    links = dependencies(model, shapes(data, axes, 1), one, plate)
    arguments = tuple(_argument(name, data, axes, one, links, inner, plate) for name in names)
    _refuse_missing_covariates(arguments, data)
    return Structure(
        model=name_of(model),
        plate=plate,
        sites=tuple(_site(seen, plate, seen.name in links.checkable) for seen in one.values() if seen.kind in {"sample", "deterministic"}),
        arguments=arguments,
        plates=inner,
        params=tuple(seen.name for seen in one.values() if seen.kind == "param"),
        cannot_simulate=_cannot_simulate(one, links, arguments),
    )


def _inner_plates(one: dict[str, Seen], longer: dict[str, Seen], plate: str, data: Batch) -> tuple[InnerPlate, ...]:
    found: dict[str, InnerPlate] = {}
    for name, seen in one.items():
        for (frame, _, size), (_, _, size_longer) in zip(seen.plates, longer[name].plates, strict=True):
            in_unit = any(f == plate for f, _, _ in seen.plates)
            if frame != plate and in_unit:
                ragged = size != size_longer
                lengths = [a for a in data.lengths if data.arrays[a].shape[1] == size] if ragged else [None]
                found[frame] = InnerPlate(frame, ragged, exchangeable=True, argument=(lengths or [None])[0])
    return tuple(found.values())


def _refuse_forgotten(model: Callable, data: Batch, axes: Mapping[str, int], one: dict[str, Seen], plate: str) -> None:
    specs = shapes(data, axes, 1)
    for name in omitted_arguments(model, list(data.arrays)):
        for site in one.values():
            if site.kind != "sample" or site.observed:
                continue
            trial = {**specs, name: jax.ShapeDtypeStruct(site.shape, np.dtype(np.int32 if site.discrete else np.float32))}
            try:
                seen = observe(model, trial).get(site.name)
            except ModelError:
                continue
            if seen is not None and seen.argument == name:
                raise ModelError(
                    f"site '{site.name}' is observed through the argument '{name}', which the data (with "
                    f"{sorted(data.arrays)}) does not have; add it, or bind it with functools.partial(model, {name}=None) "
                    "if it is meant to be a latent"
                )
    if not any(s.observed and any(f == plate for f, _, _ in s.plates) for s in one.values()):
        raise ModelError(
            f"no site inside plate '{plate}' is observed, so units tell nothing: observe one with obs=, "
            f"through an argument that the data (with {sorted(data.arrays)}) has"
        )


def _site(seen: Seen, plate: str, checkable: bool) -> Site:
    per_unit = any(name == plate for name, _, _ in seen.plates)
    frames = {dim: name for name, dim, _ in seen.plates}
    batch_ndim = len(seen.shape) - seen.event_dim
    kept, dims, dropped = [], [], []
    for position, size in enumerate(seen.shape):
        dim = position - batch_ndim
        name = frames.get(dim) if dim < 0 else None
        broadcast = dim < 0 and size == 1 and name is None and any(other < dim for other in frames)
        if name == plate or broadcast:
            dropped.append(position - len(seen.shape))
            continue
        kept.append(size)
        dims.append(name)
    role = "deterministic" if seen.kind == "deterministic" else "factor" if seen.factor else "observed"
    if role == "observed" and not seen.observed:
        role = "local" if per_unit else "global"
    return Site(
        seen.name,
        role,
        per_unit,
        tuple(dims),
        tuple(kept),
        tuple(dropped),
        seen.shape,
        seen.event_dim,
        seen.free_shape,
        seen.support,
        seen.argument,
        next((dim for name, dim, _ in seen.plates if name == plate), 0),
        checkable,
    )


def _argument(
    name: str,
    data: Batch,
    axes: Mapping[str, int],
    one: dict[str, Seen],
    links: Dependencies,
    inner: tuple[InnerPlate, ...],
    plate: str,
) -> Argument:
    array = data.arrays[name]
    shape: list[int | None] = list(array.shape[1:])
    if name in data.lengths:
        shape[0] = None
    plate_name, plate_axis = _along(name, array, data, one, inner, plate)
    observing = [seen for seen in one.values() if seen.argument == name]
    return Argument(
        name,
        str(jax.dtypes.canonicalize_dtype(array.dtype)),
        tuple(shape),
        axes.get(name, 0),
        "observed" if name in links.observed_arguments else "covariate",
        plate_name,
        plate_axis,
        masked=name in data.masks,
        categories=links.indexed.get(name) if array.dtype.kind in "iu" else None,
        positive=any("nonnegative" in s.support.lower() or "positive" in s.support.lower() for s in observing),
    )


def _along(
    name: str, array: np.ndarray, data: Batch, one: dict[str, Seen], inner: tuple[InnerPlate, ...], plate: str
) -> tuple[str | None, int]:
    """The inner plate along which an argument's elements lie, and the axis of one unit's array."""
    if name in data.lengths:
        ragged = [p.name for p in inner if p.argument in data.lengths]
        same = [p for p in inner if p.ragged and np.array_equal(data.lengths[p.argument or name], data.lengths[name])]
        return (same[0].name if same else (ragged or [None])[0]), 0
    for seen in one.values():
        if seen.argument == name:
            unit_dim = next((dim for f, dim, _ in seen.plates if f == plate), None)
            for frame, dim, _ in reversed(seen.plates):
                if frame != plate and unit_dim is not None:
                    position = len(seen.shape) - seen.event_dim + dim
                    unit_position = len(seen.shape) - seen.event_dim + unit_dim
                    return frame, position - (1 if position > unit_position else 0)
            return None, 0
    sizes = {f: (dim, size) for seen in one.values() for f, dim, size in seen.plates if f != plate}
    for frame, (_, size) in sizes.items():
        if size > 1 and size in array.shape[1:]:
            return frame, array.shape[1:].index(size)
    return None, 0


def _refuse_missing_covariates(arguments: tuple[Argument, ...], data: Batch) -> None:
    for argument in arguments:
        mask = data.masks.get(argument.name)
        if mask is None or argument.role == "observed":
            continue
        real = np.ones(mask.shape, bool)
        if argument.name in data.lengths:
            inside = np.arange(mask.shape[1]) < data.lengths[argument.name][:, None]
            real = np.broadcast_to(inside.reshape(inside.shape + (1,) * (mask.ndim - 2)), mask.shape)
        places = np.argwhere(real & ~mask)
        if len(places):
            raise ModelError(
                f"covariate '{argument.name}' is missing at {len(places)} places, first at unit {places[0][0]}"
                f"{f', element {tuple(int(i) for i in places[0][1:])}' if places.shape[1] > 1 else ''}; only observed "
                f"sites may have missing values: drop those rows, impute '{argument.name}', or model it with a sample site"
            )


def _cannot_simulate(one: dict[str, Seen], links: Dependencies, arguments: tuple[Argument, ...]) -> str:
    for seen in one.values():
        if seen.factor:
            return f"factor '{seen.name}' has no sampler"
        if seen.improper:
            return f"site '{seen.name}' has an improper prior"
        if seen.observed and seen.argument is None:
            return f"site '{seen.name}' observes a function of the data, not an argument itself"
    if links.lagged:
        return f"observed argument '{links.lagged[0]}' changes the distribution of site '{links.lagged[1]}'"
    unobserved = [a.name for a in arguments if a.role == "observed" and not any(s.argument == a.name for s in one.values())]
    return f"argument '{unobserved[0]}' is observed only through other arguments" if unobserved else ""
