"""May the discrete sites of a plate be summed element by element? Only if no element hears of another's.

Computed, since reading the program can't tell: with two values in turns along the plate, every element must have the
densities that it has when all elements have its value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._errors import ModelError
from .structure import DENSE, InnerPlate, Structure

Values = dict[str, np.ndarray]  # by site, in the model's layout


def choice_values(structure: Structure, num_units: int, turn: int = 0) -> Values:
    """Values of the discrete sites of some units in the model's layout, the same for all elements of a plate."""
    found = {}
    for site in structure.summed:
        shape = [1] * (len(site.model_shape) - site.event_dim) + list(site.event_shape)
        shape[site.unit_axis] = num_units
        found[site.name] = np.resize(np.roll(np.asarray(site.choices), -turn), shape)
    return found


def refuse_tied_elements(
    plate: InnerPlate,
    structure: Structure,
    latents: Values,
    density: Callable[[Values], Values],
    close: Callable[[np.ndarray, np.ndarray], bool],
) -> None:
    """Raises `ModelError` where a density of one element changes with the discrete sites of another.

    **Arguments**: `latents` of some units; `density` their log densities by site and element; `close` equality but for
    rounding.
    """
    sites = [s for s in structure.summed if plate.name in s.plates]
    if not sites:
        return
    turned = choice_values(structure, latents[sites[0].name].shape[sites[0].unit_axis], turn=1)
    other = latents | {s.name: turned[s.name] for s in sites}
    first, second = density(latents), density(other)
    size = first[sites[0].name].shape[plate.dim]

    def alternate(mine: np.ndarray, yours: np.ndarray, axis: int) -> np.ndarray:
        odd = np.arange(size).reshape(-1, *(1,) * (-axis - 1)) % 2 == 1
        return np.where(odd, yours, mine)

    mixed = {s.name: alternate(latents[s.name], other[s.name], plate.dim - s.event_dim) for s in sites}
    found = density(latents | mixed)
    for site in structure.of(*DENSE):
        if plate.name not in site.plates:
            continue
        if not close(found[site.name], alternate(first[site.name], second[site.name], plate.dim)):
            raise ModelError(
                f"site '{site.name}' of one element of plate '{plate.name}' depends on the discrete sites "
                f"{[s.name for s in sites]} of other elements, so they can't be summed element by element; write them "
                "as one event of the unit (.to_event), whose assignments are summed together, or leave out what ties "
                "the elements"
            )
