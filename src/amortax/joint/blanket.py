"""What ties units together? Which latents or data of other units a site of one unit depends on, and what that means.

The posterior of a unit's latents z_i can be read off the unit's own data only if its Markov blanket lies in these and
the globals (Margossian and Blei 2024). A likelihood that sees z of a neighbour brings the neighbour's data into it: no
encoder of one unit's data closes that gap, at any width. It is found by changing what other units have, and nothing of
the unit's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._errors import ModelError
from .._types import Batch
from .layout import unit_slice
from .structure import Site, Structure

Facts = dict[str, np.ndarray]  # by site
Given = tuple[Batch, dict[str, np.ndarray]]  # units, and their latents
Density = Callable[[Batch, dict[str, np.ndarray]], Facts]

SERIES = (
    "make units that are tied to each other one unit: nest their plate in one of whole series or groups and amortize "
    "that (data with a leading axis of these), or give plate=None; for a chain with family=am.markov()"
)
BEFORE = "compute such quantities before and pass them as an argument per unit"


def part_of(fact: np.ndarray, site: Site, index: int) -> np.ndarray:
    """What a unit has of a site's log densities, or of its value."""
    event_dim = site.event_dim if site.role == "deterministic" else 0
    return unit_slice(fact, index, site.unit_dim, event_dim) if site.per_unit else fact


def refuse_mixed(
    structure: Structure, place: tuple[Site, int], seen: tuple[Facts, Facts], density: Density, given: Given
) -> None:
    """Raises `ModelError`: a site of one unit changes with the others; says with what of theirs, and what to do.

    **Arguments**: `place` the site and the unit; `seen` facts among the others and alone; `density` facts of `given`
    units and latents.
    """
    site, index = place
    what = "value" if site.role == "deterministic" else "log density"
    among, alone = np.sum(part_of(seen[0][site.name], site, index)), np.sum(seen[1][site.name])
    raise ModelError(
        f"site '{site.name}' is not separable by unit: unit {index} has {what} {among:.6g} among other units, "
        f"{alone:.6g} alone. " + _source(structure, place, density, given)
    )


def _source(structure: Structure, place: tuple[Site, int], density: Density, given: Given) -> str:
    site, index = place
    units, free = given

    def own(units: Batch, free: dict[str, np.ndarray]) -> np.ndarray:
        return part_of(density(units, free)[site.name], site, index)

    before = own(units, free)
    moved = ((name, own(units, other)) for name, other in _other_latents(structure, free, index))
    if found := [f"'{name}'" for name, after in moved if not np.array_equal(before, after, equal_nan=True)]:
        which = f"It depends on latent {' and '.join(found)} of other units of plate '{structure.plate}'"
        if site.role == "deterministic":
            return f"{which}: leave it out, and compute it from the draws; where a likelihood hangs on it, {SERIES}"
        return (
            f"{which}. So the posterior of a unit's {found[0]} needs the data of others, and no encoder of its own "
            f"data can give it, whatever its width; {SERIES}"
        )
    swapped = ((name, own(other, free)) for name, other in _other_data(units, index))
    if found := [f"data['{name}']" for name, after in swapped if not np.array_equal(before, after, equal_nan=True)]:
        return (
            f"It depends on {' and '.join(found)} of other units of plate '{structure.plate}' (a mean over units, a "
            f"lag); {BEFORE}"
        )
    return f"Something in it mixes units of plate '{structure.plate}' (a literal count, an index into units); {BEFORE}"


def _other_latents(
    structure: Structure, free: dict[str, np.ndarray], index: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for site in structure.of("local"):
        values = free[site.name]
        mine = np.arange(values.shape[site.unit_axis]) == index
        mine = mine.reshape(-1, *(1,) * (values.ndim - site.unit_axis - 1))
        yield site.name, free | {site.name: np.where(mine, values, 0.5 - values)}


def _other_data(units: Batch, index: int) -> Iterator[tuple[str, Batch]]:
    """Every argument with the values of the other units handed round among them."""
    others = np.delete(np.arange(len(next(iter(units.arrays.values())))), index)
    order = np.insert(np.roll(others, 1), index, index)
    for name in units.arrays:

        def handed(values: dict[str, Any], name: str = name) -> dict[str, Any]:
            return values | {name: values[name][order]} if name in values else values

        yield name, Batch(handed(units.arrays), handed(units.masks), units.lengths)
