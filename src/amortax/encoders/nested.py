"""What does an encoder say where a unit has elements with numbers of their own? A context for every level.

Plates within plates are a tree of sets (school, its classes, their pupils). From the leaves up, the elements of each
set are pooled into their parent; from the root down, every element hears what its parent knows:

    r_m = [its arguments, pool of r_child, how many],      c_m = network(r_m, c_parent),

and its context is [c_m, r_m]. No parameter depends on how many elements there are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._network import Network, over_rows
from .._types import Batch
from .base import AbstractEncoder, Features, Inputs
from .pools import AbstractPool, PoolOf


class Node(NamedTuple):
    """The elements in one set of plates."""

    plates: tuple[str, ...]
    parent: int | None


def nodes_of(inputs: Inputs) -> tuple[Node, ...]:
    """The unit itself and every set of plates that has arguments or numbers, each after its parent."""
    along = {tuple(p for p in inputs.nested if p in f.sets) for f in inputs.features}
    plates = sorted({(), *inputs.levels, *along}, key=lambda names: (len(names), names))
    nodes = []
    for names in plates:
        above = [i for i, other in enumerate(plates) if set(other) < set(names)]
        nodes.append(Node(names, max(above, key=lambda i: len(plates[i]), default=None)))
    return tuple(nodes)


class NestedEncoder(AbstractEncoder):
    """Pools from the leaves up and tells from the root down; a context (*grid, width) for every level."""

    features: Features
    pools: tuple[AbstractPool | None, ...]  # of each node's elements within their parent
    networks: tuple[Network, ...]
    nodes: tuple[Node, ...] = eqx.field(static=True)
    context_sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: Inputs, pool: PoolOf, width: int, depth: int, *, key: Array) -> None:
        self.nodes = nodes_of(inputs)
        features, *keys = jax.random.split(key, 1 + 2 * len(self.nodes))
        self.features = Features(inputs, key=features)
        widths = [sum(f.width for f in self._along(node)) + self._ordered(node) for node in self.nodes]
        pools: list[AbstractPool | None] = [None] * len(self.nodes)
        for number in reversed(range(1, len(self.nodes))):
            parent = self.nodes[number].parent
            assert parent is not None
            pools[number] = found = pool(widths[number], key=keys[number])
            widths[parent] += found.size + 2
        if empty := [node.plates for node, size in zip(self.nodes, widths, strict=True) if not size and node.plates]:
            raise GuideError(
                f"no argument of the model lies along {' and '.join(empty[0])}, which has latents of its own: their "
                "number can't be known; give an argument with an axis for them"
            )
        self.pools = tuple(pools)
        self.networks = tuple(
            Network((size, width)[: 1 + (n.parent is not None)], width, width, depth, key=k, activate_last=True)
            for n, size, k in zip(self.nodes, widths, keys[len(self.nodes) :], strict=True)
        )
        places = {node.plates: i for i, node in enumerate(self.nodes)}
        self.context_sizes = tuple(width + widths[places[names]] for names in inputs.levels)

    def __call__(self, unit: Batch) -> tuple[Array, ...]:
        """One context for each level of numbers, with an axis for every plate that has any."""
        rows: list[list[Array]] = [self._own(node, unit) for node in self.nodes]
        found: list[Array] = [jnp.zeros(0)] * len(self.nodes)
        told: list[Array] = []
        below: list[list[Array]] = [[] for _ in self.nodes]  # whether elements of a node have any below that tell
        for number in reversed(range(len(self.nodes))):
            node, pool = self.nodes[number], self.pools[number]
            found[number] = jnp.concatenate(rows[number], axis=-1)
            if pool is not None and node.parent is not None:
                parent = self.nodes[node.parent].plates
                inside = [i for i, p in enumerate(self.order) if p in node.plates and p not in parent]
                weight = self._weight(node, found[number], below[number], unit)
                rows[node.parent] += _pooled(pool, found[number], weight, inside)
                below[node.parent].append(jnp.max(weight, axis=tuple(inside), keepdims=True))
        for number, node in enumerate(self.nodes):
            above = [] if node.parent is None else [told[node.parent]]
            told.append(over_rows(self.networks[number], found[number], *above))
        kept = [i for i, p in enumerate(self.order) if any(p in names for names in self.features.inputs.levels)]
        places = {node.plates: i for i, node in enumerate(self.nodes)}
        contexts = []
        for names in self.features.inputs.levels:
            context = jnp.concatenate([told[places[names]], found[places[names]]], axis=-1)
            contexts.append(context.reshape(*(context.shape[i] for i in kept), -1))
        return tuple(contexts)

    @property
    def order(self) -> tuple[str, ...]:
        """The plates of all axes, outermost first."""
        return self.features.inputs.nested

    def _along(self, node: Node) -> list:
        inputs = self.features.inputs
        return [f for f in inputs.features if tuple(p for p in inputs.nested if p in f.sets) == node.plates]

    def _ordered(self, node: Node) -> int:
        """Positions that are seen, of plates whose elements have an order."""
        return sum(p in self.features.inputs.ordered for p in node.plates) * bool(self._along(node))

    def _own(self, node: Node, unit: Batch) -> list[Array]:
        """The arguments along a node's plates: (*grid, numbers) each."""
        found = []
        for feature in self._along(node):
            numbers = self.features.numbers(feature, unit)
            axes = [feature.sets[p] for p in node.plates]
            moved = jnp.moveaxis(numbers, axes, range(len(axes)))
            sizes = dict(zip(node.plates, moved.shape, strict=False))
            grid = [sizes.get(p, 1) for p in self.order]
            found.append(moved.reshape(*grid, -1))
        for axis, plate in enumerate(self.order):
            if found and plate in node.plates and plate in self.features.inputs.ordered:
                place = jnp.arange(found[0].shape[axis]) / 10.0 - 1.0
                shape = (-1, *(1,) * (len(self.order) - axis))
                found.append(jnp.broadcast_to(place.reshape(shape), (*found[0].shape[:-1], 1)))
        return found

    def _weight(self, node: Node, rows: Array, below: list[Array], unit: Batch) -> Float[Array, "*grid"]:
        """One where an element is the unit's own and tells something, itself or by what is below it."""
        if not self._along(node):
            return jnp.max(jnp.stack(below), axis=0)
        weight, seen = jnp.ones(rows.shape[:-1]), []
        for feature in self._along(node):
            shape = [rows.shape[i] if p in node.plates else 1 for i, p in enumerate(self.order)]
            if feature.name in unit.lengths:
                along = self.order.index(next(p for p in node.plates if feature.sets[p] == 0))
                own = jnp.arange(rows.shape[along]) < unit.lengths[feature.name]
                weight = weight * own.reshape(-1, *(1,) * (len(self.order) - along - 1))
            if feature.response and feature.name in unit.masks:
                axes = [feature.sets[p] for p in node.plates]
                mask = jnp.moveaxis(unit.masks[feature.name], axes, range(len(axes)))
                seen.append(jnp.any(mask.reshape(*shape, -1), axis=-1))
        responses = [f for f in self._along(node) if f.response]
        return weight * jnp.any(jnp.stack(seen), axis=0) if seen and len(seen) == len(responses) else weight


def _pooled(pool: AbstractPool, rows: Array, weight: Array, inside: list[int]) -> list[Array]:
    """Elements pooled along the axes `inside`, and how many they are: (*grid of the parent, ...) each."""
    last = range(weight.ndim - len(inside), weight.ndim)
    rows, weight = jnp.moveaxis(rows, inside, last), jnp.moveaxis(weight, inside, last)
    outside = weight.shape[: last[0]]
    weight = weight.reshape(math.prod(outside), -1)
    rows = jnp.where(weight[..., None] > 0, rows.reshape(*weight.shape, -1), 0.0)
    count = jnp.sum(weight, axis=1)
    counts = jnp.stack([jnp.log1p(count), jax.lax.rsqrt(1.0 + count)], axis=-1)
    found = [jax.vmap(pool)(rows, weight).reshape(*outside, -1), counts.reshape(*outside, -1)]
    return [jnp.expand_dims(x, inside) for x in found]
