"""Which numbers belong together? Sites of the same plates: element by element they are blocks of one group.

A layout says for every site, in the order in which they stand in a flat vector, (its plates, the shape of its
unconstrained value, the axes of that along these plates).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import LARGEST

TOP = 64  # most numbers of the block on top
Place = tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]


class Part(NamedTuple):
    """One site in a group: where it starts among all numbers, its shape, and which of its axes make rows."""

    start: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Elements of the plates."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def width(self) -> int:
        """Numbers of one element."""
        return math.prod(self.shape) // max(self.rows, 1)

    def split(self) -> Part:
        """The same with every number in a row of its own."""
        return self._replace(axes=tuple(range(len(self.shape))))

    def take(self, flat: Float[Array, " d"]) -> Float[Array, "width rows"]:
        """The site's numbers among all."""
        own = flat[self.start : self.start + math.prod(self.shape)].reshape(self.shape)
        return jnp.moveaxis(own, self.axes, self._last).reshape(self.width, self.rows)

    def flat(self, numbers: Float[Array, "width rows"]) -> Float[Array, " own"]:
        """The inverse of `take`, without the others."""
        others = [n for axis, n in enumerate(self.shape) if axis not in self.axes]
        moved = numbers.reshape(*others, *(self.shape[axis] for axis in self.axes))
        return jnp.ravel(jnp.moveaxis(moved, self._last, self.axes))

    @property
    def _last(self) -> tuple[int, ...]:
        return tuple(range(-len(self.axes), 0))


class Group(NamedTuple):
    """Sites of the same plates: one block for each of `rows` elements, `width` numbers each."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Blocks."""
        return self.parts[0].rows if self.parts else 1

    @property
    def width(self) -> int:
        """Numbers of one block."""
        return sum(part.width for part in self.parts)

    def take(self, flat: Float[Array, " d"]) -> Float[Array, "width rows"]:
        """The group's numbers among all; rows stand last, where loops over them are fast."""
        return jnp.concatenate([part.take(flat) for part in self.parts])


def groups_of(layout: Sequence[Place]) -> tuple[Group, ...]:
    """The block on top, and the groups of blocks below it.

    Sites outside plates, smallest first, are on top as long as they are `TOP` numbers at most; sites of the same plates
    share a block as long as it has `LARGEST`. Of what is larger, each number is a block of its own.
    """
    start, by_plates = 0, {(): []}
    for plates, shape, axes in layout:
        names, along = zip(*sorted(zip(plates, axes, strict=True)), strict=True) if plates else ((), ())
        by_plates.setdefault(names, []).append(Part(start, tuple(shape), along))
        start += math.prod(shape)
    top, alone = _narrow(by_plates.pop(()), TOP)
    groups = []
    for parts in by_plates.values():
        together, wide = _narrow(parts, LARGEST)
        groups += [Group(together)] * bool(together)
        alone += wide
    return (Group(top), *groups, *(Group((part.split(),)) for part in alone))


def _narrow(parts: Iterable[Part], most: int) -> tuple[tuple[Part, ...], list[Part]]:
    """(parts that together have at most `most` numbers in a row, the others)."""
    together, wide = [], []
    for part in sorted(parts, key=lambda part: part.width):
        fits = sum(other.width for other in together) + part.width <= most
        (together if fits else wide).append(part)
    return tuple(together), wide
