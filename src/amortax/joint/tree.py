"""Which numbers belong to which element? A unit's locals as a tree: its own, its classes', their pupils'.

The numbers of all sites in the same inner plates are one level: an array with an axis for every plate of the tree, of
length one along plates that the level is not in, and the numbers of one element on its last axis. So arrays of a level
and of those above it broadcast against each other, and what elements tell their parents is a sum over axes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._types import Batch
from .structure import Structure


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the numbers of one site stand in the flat vector of a unit's locals."""

    start: int
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]  # its axis along each plate of the tree

    def index(self) -> np.ndarray:
        """Positions with an axis for every plate of the tree, and the numbers of one element on the last."""
        places = self.start + np.arange(math.prod(self.shape)).reshape(self.shape)
        along = [axis for axis in self.axes if axis is not None]
        places = np.moveaxis(places, along, range(len(along)))
        grid = [1 if axis is None else self.shape[axis] for axis in self.axes]
        return places.reshape(*grid, -1)


@dataclasses.dataclass(frozen=True)
class Level:
    """All sites in one set of inner plates."""

    plates: frozenset[str]
    grid: tuple[int, ...]  # elements along each plate of the tree
    places: tuple[Place, ...]
    ancestors: tuple[int, ...]  # numbers of the levels in fewer of these plates, outermost first

    @property
    def rows(self) -> int:
        """Elements."""
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        """Numbers of one element."""
        return sum(math.prod(place.shape) for place in self.places) // max(self.rows, 1)

    def index(self) -> np.ndarray:
        """Positions (*grid, width) of its numbers in the flat vector."""
        return np.concatenate([place.index() for place in self.places], axis=-1)


@dataclasses.dataclass(frozen=True)
class Tree:
    """The levels of a unit's locals, every one after its ancestors."""

    plates: tuple[str, ...]  # outermost first
    levels: tuple[Level, ...]

    def split(self, flat: Array) -> list[Array]:
        """A flat vector of locals, in the order of the sites, as one array (*grid, width) for each level."""
        return [flat[level.index()] for level in self.levels]

    def join(self, parts: Sequence[Array]) -> Array:
        """The inverse of `split`."""
        order = np.argsort(np.concatenate([level.index().ravel() for level in self.levels]))
        return self.by_level(parts)[order]

    def by_level(self, parts: Sequence[Array]) -> Array:
        """The numbers of all elements one after the other, level by level."""
        return jnp.concatenate([jnp.ravel(jnp.broadcast_to(x, self.shape(i))) for i, x in enumerate(parts)])

    def of_levels(self, flat: Array) -> list[Array]:
        """The inverse of `by_level`."""
        ends = np.cumsum([level.rows * level.width for level in self.levels])[:-1]
        return [x.reshape(self.shape(i)) for i, x in enumerate(jnp.split(flat, ends))]

    def shape(self, number: int) -> tuple[int, ...]:
        """(*grid, width) of a level."""
        level = self.levels[number]
        return (*level.grid, level.width)

    def elementwise(self, compact: Array) -> list[Array]:
        """One number for each of the levels' widths, (Σ width,), given to every element."""
        ends = np.cumsum([level.width for level in self.levels])[:-1]
        parts = jnp.split(compact, ends)
        return [jnp.broadcast_to(x, self.shape(i)) for i, x in enumerate(parts)]

    def masks(self, structure: Structure, unit: Batch) -> list[Array]:
        """Which elements are the unit's own, and not padding: (*grid,) of every level."""
        lengths = {p.name: unit.lengths[p.argument] for p in structure.plates if p.argument in unit.lengths}
        found = []
        for level in self.levels:
            mask = jnp.ones(level.grid, bool)
            for axis, name in enumerate(self.plates):
                if name in level.plates and name in lengths:
                    own = jnp.arange(level.grid[axis]) < lengths[name]
                    mask &= own.reshape(-1, *(1,) * (len(self.plates) - axis - 1))
            found.append(mask)
        return found


def tree_of(structure: Structure) -> Tree:
    """The tree of a unit's numeric locals, as long as the structure says."""
    sites = structure.of("local")
    used = {name for site in sites for name in site.plates}
    plates = tuple(name for name in structure.outermost_first if name in used)
    kinds = sorted({site.plates for site in sites}, key=lambda names: (len(names), sorted(names)))
    places: dict[frozenset[str], list[Place]] = {names: [] for names in kinds}
    start = 0
    for site in sites:
        axes = site.plate_axes
        places[site.plates].append(Place(start, site.free_shape, tuple(axes.get(name) for name in plates)))
        start += site.free_size
    levels = []
    for names in kinds:
        grid = tuple(1 if a is None else places[names][0].shape[a] for a in places[names][0].axes)
        ancestors = tuple(i for i, other in enumerate(kinds) if other < names)
        levels.append(Level(names, grid, tuple(places[names]), ancestors))
    return Tree(plates, tuple(levels))


def own_numbers(structure: Structure, unit: Batch) -> Array:
    """True at one unit's own numbers, in the order of the sites, and False at those of padding: (d,)."""
    structure = structure.at(unit)
    if not structure.stretches:
        return jnp.ones(structure.size("local"), bool)
    tree = tree_of(structure)
    return tree.join([mask[..., None] for mask in tree.masks(structure, unit)])


def tied(structure: Structure, follows: Mapping[str, frozenset[str]]) -> str:
    """Why elements of inner plates are not independent given what stands above them, or empty.

    **Arguments**: `follows` names, for every site, the latents and arguments on which its distribution depends.
    """
    local = {site.name: site for site in structure.of("local")}
    steps = {plate.name for plate in structure.plates if plate.ordered}
    for site in local.values():
        if site.plates & steps:
            return f"those of site '{site.name}' are the steps of a scan, each of which follows the one before"
    above: dict[frozenset[str], set[frozenset[str]]] = {site.plates: set() for site in local.values()}
    for site in structure.of("local", "discrete", "observed", "factor"):
        if not site.per_unit:
            continue
        causes = [local[name] for name in sorted(follows.get(site.name, frozenset())) if name in local]
        for cause in causes:
            if apart := sorted(cause.plates - site.plates):
                return f"site '{site.name}' depends on '{cause.name}' of all elements of plate '{apart[0]}'"
        kinds = {cause.plates for cause in causes} | ({site.plates} if site.name in local else set())
        if _crossing(kinds):
            names = [cause.name for cause in causes if cause.plates]
            return f"site '{site.name}' depends on latents {names} of plates that cross there"
        for lowest in sorted(kinds, key=len)[-1:]:
            above[lowest] |= kinds - {lowest}
    for plates in sorted(above, key=len, reverse=True):  # once it is known, its element ties all above it together
        if _crossing(above[plates]):
            names = [site.name for site in local.values() if site.plates in above[plates] and site.plates]
            name = next(site.name for site in local.values() if site.plates == plates)
            return f"'{name}' ties latents {names} of plates that cross there"
        for lowest in sorted(above[plates], key=len)[-1:]:
            above[lowest] |= above[plates] - {lowest}
    return ""


def _crossing(kinds: Collection[frozenset[str]]) -> bool:
    """Whether some sets of plates aren't each within the next larger."""
    ordered = sorted(kinds, key=len)
    return any(not a <= b for a, b in itertools.pairwise(ordered))
