"""How do draws look to the rest of the field? xarray with named dims and unit labels; a DataTree that ArviZ reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._errors import DataError, ModelError
from .chunks import row_mask
from .data import Units
from .joint.structure import Site, Structure


def to_dataset(structure: Structure, data: Units, shared: dict[str, np.ndarray], units: dict[str, np.ndarray]) -> Any:
    """An `xarray.Dataset` with dims (sample, plate names, event dims); places beyond a unit's own elements are NaN.

    The unit dim has the units' labels as coordinates; globals have no unit dim.
    """
    import xarray

    sites = {site.name: site for site in structure.sites}
    variables = {}
    for name, value in shared.items():
        variables[name] = (("sample", *_dims(sites[name], value.shape[1:])), value)
    for name, value in units.items():
        value = _without_padding(sites[name], structure, data, value)
        variables[name] = (("sample", structure.plate, *_dims(sites[name], value.shape[2:])), value)
    ordered = {site.name: variables[site.name] for site in structure.sites if site.name in variables}
    if not ordered:
        raise ModelError(
            f"model '{structure.model}' has no observed site of which there could be draws (its data enter by a "
            "numpyro.factor); use sample"
        )
    coords = {structure.plate: data.labels, "sample": np.arange(next(iter(ordered.values()))[1].shape[0])}
    return xarray.Dataset(ordered, coords=coords, attrs={"model": structure.model})


def _dims(site: Site, shape: tuple[int, ...]) -> list[str]:
    return [name or f"{site.name}_dim_{i}" for i, name in enumerate(site.dims[: len(shape)])]


def _without_padding(site: Site, structure: Structure, data: Units, value: np.ndarray) -> np.ndarray:
    """Trims ragged axes to the longest unit and marks what lies beyond a unit's own elements as NaN."""
    for axis, dim in enumerate(site.dims):
        plate = next((p for p in structure.plates if p.name == dim and p.ragged), None)
        if plate is None or plate.argument not in data.lengths:
            continue
        lengths = data.lengths[plate.argument]
        value = np.take(value, np.arange(max(int(lengths.max(initial=0)), 1)), axis=axis + 2, mode="clip")
        inside = row_mask(lengths, value.shape[axis + 2])
        if inside.all():
            continue
        shape = [1, len(lengths)] + [1] * (value.ndim - 2)
        shape[axis + 2] = inside.shape[1]
        if not np.issubdtype(value.dtype, np.floating):
            value = value.astype(np.float64)  # which holds every int32
        value = np.where(inside.reshape(shape), value, np.nan)
    return value


def to_datatree(dataset: Any, report: Any = None) -> Any:
    """A DataTree with the group `posterior` and dims (chain=1, draw, ...), as ArviZ expects them.

    With a `report` of `posterior.check` the group `check` has the verdict of every unit, by label. (With a bare
    `sample` dim ArviZ 0.23 would summarise all units as one.)
    """
    if not hasattr(dataset, "drop_vars"):
        raise DataError(f"to_datatree: expected draws, as posterior.sample gives them, got {dataset!r}")
    import xarray

    group = dataset.drop_vars("sample", errors="ignore")
    group = group.rename_dims(sample="draw") if "sample" in group.dims else group
    group = group.assign_coords(draw=np.arange(group.sizes["draw"])).expand_dims(chain=[0])
    checked = {} if report is None else {"check": report.to_dataset()}
    return xarray.DataTree.from_dict({"posterior": group, **checked})


def values_of(structure: Structure, values: Any, labels: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
    """Latent values by site with a leading sample axis, then the unit axis in the order of `labels`.

    **Arguments**: `values` a Dataset of draws (any order of dims and units), or site -> one value, unit axis first.

    **Returns** the arrays, and whether `values` had a sample axis of its own.

    **Raises** `DataError` for missing sites or units, and for other shapes.
    """
    sites = [s for s in structure.sites if s.role in ("local", "global") or s.choices]
    names = [str(name) for name in (values.data_vars if hasattr(values, "data_vars") else values)]
    if absent := [site.name for site in sites if site.name not in names]:
        raise DataError(f"values has no site '{absent[0]}'; it has {sorted(names)}")
    own = hasattr(values, "data_vars") and "sample" in values.dims
    if hasattr(values, "data_vars"):
        values = _ordered(structure, values, labels)
    found = {}
    for site in sites:
        array = np.asarray(values[site.name])
        array = array if own else array[None]
        expected = ((len(labels),) if site.per_unit else ()) + _kept_shape(structure, site)
        fits = len(expected) == array.ndim - 1 and all(
            want in (None, got) for want, got in zip(expected, array.shape[1:], strict=True)
        )
        if not fits:
            raise DataError(
                f"values['{site.name}'] has shape {array.shape[own:] if own else array.shape[1:]}, "
                f"expected {tuple('any' if n is None else n for n in expected)}"
                + (f": one value for each of the {len(labels)} units of data, unit axis first" * site.per_unit)
            )
        found[site.name] = array
    return found, own


def _kept_shape(structure: Structure, site: Site) -> tuple[int | None, ...]:
    """Shape of one unit's value, None along plates whose size the data decide."""
    loose = structure.loose | {p.name for p in structure.plates if p.ragged}
    return tuple(None if dim in loose else n for dim, n in zip(site.dims, site.kept_shape, strict=True))


def _ordered(structure: Structure, values: Any, labels: np.ndarray) -> Any:
    """The Dataset with units in the order of `labels` and dims in the order of `to_dataset`."""
    plate = structure.plate
    if plate in values.dims:
        if plate in values.coords:
            known = set(np.asarray(values[plate]).tolist())
            if absent := [label for label in labels.tolist() if label not in known]:
                raise DataError(f"values has no {plate} '{absent[0]}', which data has; it has {len(known)} units")
            values = values.sel({plate: labels})
        values = values.transpose("sample", plate, ..., missing_dims="ignore")
    return values.transpose("sample", ..., missing_dims="ignore")
