"""What can't be amortized, and what to write instead: one check per kind of model, on facts from abstract runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from .._errors import DataError, ModelError
from .._types import Batch
from .layout import omitted_arguments
from .observe import Seen, name_of, observe
from .structure import Argument, Structure

NESTED = """write one row per unit and nest the plates:
    with numpyro.plate("{plate}", x.shape[0], dim=-2):       # x: (units, elements)
        z = numpyro.sample("z", ...)
        with numpyro.plate("element", x.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z * x, 1.0), obs=y)
  and group a long table with amortax.from_table(table, unit="{plate}", columns=["x", "y"])"""


def refuse_plates(model: Callable, seen: dict[str, Seen], plate: str, num_units: int) -> None:
    """The amortized plate must exist and have as many elements as the data has units; no plate may subsample."""
    sizes = {s.name: s.sizes for s in seen.values() if s.kind == "plate"}
    where = f"model '{name_of(model)}'"
    if plate not in sizes:
        raise ModelError(
            f"{where} has no plate '{plate}'; its plates are {sorted(sizes)}: give plate= the one whose elements "
            "are the units"
        )
    for name, (size, subsample) in sizes.items():
        if subsample is not None and subsample != size:
            raise ModelError(
                f"plate '{name}' has its own subsample_size={subsample} of {size}; write plate('{name}', n) with n "
                "from the shape of the data and give batch_size= to fit: minibatches are amortax's work"
            )
    size = sizes[plate][0]
    if size == num_units:
        return
    around = [n for s in seen.values() if any(n == plate for n, _, _ in s.plates) for n, _, _ in s.plates if n != plate]
    if outer := [name for name in around if sizes[name][0] == num_units]:
        raise ModelError(
            f"plate '{plate}' is inside plate '{outer[0]}', whose elements are the units "
            f"of the data: give plate='{outer[0]}'; elements of '{plate}' are part of their unit"
        )
    if num_units == 1:
        raise ModelError(
            f"plate '{plate}' has {size} elements when the data has one unit: its size is a literal, or read from "
            "another axis; take it from the unit axis of an argument, e.g. x.shape[0]"
        )
    raise ModelError(
        f"plate '{plate}' has {size} elements but the data has {num_units} units; if rows are not units, "
        + NESTED.format(plate=plate)
    )


def refuse_sites(model: Callable, seen: dict[str, Seen], plate: str) -> None:
    """Kinds of site that have no per-unit density: mutable state, and terms counted twice."""
    for site in seen.values():
        if site.kind == "mutable":
            raise ModelError(
                f"site '{site.name}' is mutable; batch statistics and other state can't be amortized: "
                "use a module without it"
            )
        if site.kind == "sample":
            _refuse_counted_twice(site)
    if not any(s.kind == "sample" for s in seen.values()):
        raise ModelError(f"model '{name_of(model)}' has no sample site")


def _refuse_counted_twice(site: Seen) -> None:
    if not site.plates:
        return
    expected = [1] * max(-dim for _, dim, _ in site.plates)
    for _, dim, size in site.plates:
        expected[dim] = size
    got = (1,) * (len(expected) - len(site.log_prob_shape)) + site.log_prob_shape
    if got != tuple(expected):
        plates = ", ".join(f"{name}: dim={dim}, size {size}" for name, dim, size in site.plates)
        raise ModelError(
            f"site '{site.name}' has log densities of shape {site.log_prob_shape} for one unit, but its "
            f"plates ({plates}) say {tuple(expected)}: values and plates broadcast against each "
            f"other; give nested plates their dim "
            "(the amortized one dim=-2, the one inside dim=-1) and parameters the matching axes (x[:, None])"
        )


def refuse_latents(seen: dict[str, Seen], plate: str) -> None:
    """Latents that no block can hold: discrete ones shared by all units."""
    for site in seen.values():
        if site.kind != "sample" or site.observed:
            continue
        if site.discrete and site.steps:
            raise ModelError(
                f"site '{site.name}' is a discrete latent in the body of a scan (support {site.support}), where each "
                "step depends on the one before, so that steps can't be summed one by one; observe it, or sum it out "
                "in the carry (the forward recursion of a hidden Markov model, with numpyro.factor)"
            )
        if site.discrete and not any(name == plate for name, _, _ in site.plates):
            raise ModelError(
                f"site '{site.name}' is a discrete latent outside plate '{plate}' (support {site.support}): only "
                f"discrete sites of a unit are summed; move it into plate '{plate}', observe it, or sum it out, e.g. "
                "with numpyro.distributions.MixtureSameFamily"
            )


def refuse_tied(structure: Structure) -> None:
    """Numeric latents in a ragged plate, of which units have different numbers, are inferred element by element."""
    if not (structure.stretches and structure.tied):
        return
    ragged = {p.name for p in structure.plates if p.ragged}
    site = next(s for s in structure.of("local") if s.plates & ragged)
    if any(plate.ordered and plate.ragged and plate.name in site.plates for plate in structure.plates):
        raise ModelError(
            f"site '{site.name}' is in the steps of a scan, of which units have different numbers; pad the shorter "
            "series with NaN, so that all have as many steps: those after the last that was seen follow the prior"
        )
    raise ModelError(
        f"site '{site.name}' is a latent inside the ragged plate '{min(site.plates & ragged)}', whose elements must be "
        f"independent given what stands above them, but {structure.tied}; write that site inside the plate, or "
        "leave out what ties the elements"
    )


def refuse_sizes(one: dict[str, Seen], more: dict[str, Seen], plate: str, what: str = "number of units") -> None:
    """Globals and parameters, which a new unit must share, can't have a size that the data decides."""
    for name, site in one.items():
        latent = site.kind == "sample" and not site.observed
        if not (latent or site.kind == "param") or any(frame == plate for frame, _, _ in site.plates if latent):
            continue
        if site.shape != more[name].shape:
            kind = "parameter" if site.kind == "param" else "site"
            raise ModelError(
                f"{kind} '{name}' has shape {more[name].shape} when the {what} grows, {site.shape} before: it must "
                f"be the same for every unit; a value per unit is a numpyro.sample site inside plate '{plate}'"
            )


def refuse_other_lengths(group: Sequence[str], data: Batch, plate: str, error: ModelError) -> None:
    """Ragged arguments along one axis of the model must agree in length in every unit."""
    first = group[0]
    for name, lengths in data.lengths.items():
        differ = np.flatnonzero(np.asarray(lengths) != np.asarray(data.lengths[first]))
        if name not in group and len(differ):
            unit = int(differ[0])
            raise DataError(
                f"data['{first}'] and data['{name}'] run along one axis of the model but differ in length: "
                f"{int(data.lengths[first][unit])} and {int(lengths[unit])} at {plate} number {unit}; give both one "
                "value per element, NaN where an observed one is missing"
            ) from error
    raise error


def refuse_forgotten(model: Callable, specs: Mapping[str, jax.ShapeDtypeStruct], one: dict[str, Seen]) -> None:
    """A latent that would be observed, were an argument given that the data lacks: its response was forgotten."""
    for name in omitted_arguments(model, list(specs)):
        for site in one.values():
            if site.kind != "sample" or site.observed:
                continue
            try:
                trial = observe(model, {**specs, name: jax.ShapeDtypeStruct(site.shape, site.dtype)})
            except ModelError:
                continue
            if site.name in trial and trial[site.name].argument == name:
                raise ModelError(
                    f"site '{site.name}' is observed through the argument '{name}', which the data (with "
                    f"{sorted(specs)}) does not have; add it, or bind it with functools.partial(model, {name}=None) "
                    "if it is meant to be a latent"
                )


def refuse_unobserved(one: dict[str, Seen], names: Sequence[str], plate: str) -> None:
    """Without an observed site in the plate there is nothing to learn about a unit."""
    if not any(s.observed and any(f == plate for f, _, _ in s.plates) for s in one.values()):
        raise ModelError(
            f"no site inside plate '{plate}' is observed, so units tell nothing: observe one with obs=, "
            f"through an argument that the data (with {sorted(names)}) has"
        )


def refuse_ragged_events(arguments: Sequence[Argument], plate: str) -> None:
    """Units of other lengths need a plate along which their elements lie: an event has one size."""
    for argument in arguments:
        if argument.ragged and argument.plate is None:
            raise ModelError(
                f"data['{argument.name}'] differs in length by {plate}, but its elements lie along no plate inside "
                f"'{plate}' (an event, .to_event, has one size); " + NESTED.format(plate=plate)
            )
