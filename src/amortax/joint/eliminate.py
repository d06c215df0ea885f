"""What is log p summed over discrete sites, and how are they drawn given the rest? Sums outwards, draws inwards.

With one axis per level in front, the log densities of the sites of level l and the sums that come from inside it add up
to `logits` over the assignments of l, for every assignment of its ancestors and every element of its plates;

    sum of l = logsumexp over its own axis, summed over the plates in which its parent is not,

is one more term of the parent. What is left at the unit is the density. Read inwards, each level's logits at the
assignments drawn for its ancestors are those of its own conditional distribution: exact draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from .levels import Level
from .structure import Structure


def eliminate(
    structure: Structure, levels: Sequence[Level], log_probs: Mapping[str, Array], lengths: Mapping[str, Array]
) -> tuple[Array, list[Array]]:
    """(log density of the unit summed over all levels, logits of every level).

    **Arguments**: `log_probs` of every site (one axis per level, then batch axes in the model's layout), zero under
    masks; `lengths` of one unit's ragged arguments.
    """
    dims = {plate.name: plate.dim for plate in structure.plates}
    width = max(x.ndim for x in log_probs.values()) - len(levels)
    logits: list[Array] = [jnp.zeros(())] * len(levels)
    inner: list[list[Array]] = [[] for _ in levels]
    for number in reversed(range(len(levels))):
        level = levels[number]
        known = {*level.ancestors, number}
        own = [_wide(_without(log_probs[site.name], known, len(levels)), width, len(levels)) for site in level.members]
        own = [
            jnp.sum(x, axis=[dims[p] for p in site.plates - level.plates], keepdims=True)
            for x, site in zip(own, level.members, strict=True)
        ]
        logits[number] = sum([*own, *inner[number]], jnp.zeros((1,) * (len(levels) + width)))
        if not level.ancestors:
            continue
        message = jax.nn.logsumexp(logits[number], axis=number, keepdims=True)
        inside = own_elements(structure, level.plates, message.shape, lengths)
        message = message if inside is None else jnp.where(inside, message, 0.0)
        parent = level.ancestors[-1]
        apart = [dims[p] for p in level.plates - levels[parent].plates]
        inner[parent].append(jnp.sum(message, axis=apart, keepdims=True))
    return jnp.reshape(jax.nn.logsumexp(logits[0], axis=0), ()), logits


def draw(key: Array, levels: Sequence[Level], logits: Sequence[Array]) -> list[Array]:
    """A draw of every level's assignment given the rest: numbers with the batch axes of its elements."""
    chosen: list[Array] = []
    for number, level in enumerate(levels):
        own = logits[number]
        for ancestor in level.ancestors:
            own = jnp.take_along_axis(own, chosen[ancestor], axis=ancestor)
        drawn = jax.random.categorical(jax.random.fold_in(key, number), own, axis=number)
        chosen.append(jnp.expand_dims(drawn, number))
    return [jnp.reshape(x, x.shape[len(levels) :]) for x in chosen]


def _without(log_prob: Array, known: set[int], depth: int) -> Array:
    """The first entry along the axes of levels on which a site does not depend."""
    for axis in range(depth):
        if axis not in known:
            log_prob = jax.lax.slice_in_dim(log_prob, 0, 1, axis=axis)
    return log_prob


def _wide(log_prob: Array, width: int, depth: int) -> Array:
    """Batch axes filled up with ones on the left, so that plates stand at the same place in all sites."""
    shape = log_prob.shape
    return jnp.reshape(log_prob, (*shape[:depth], *(1,) * (width + depth - len(shape)), *shape[depth:]))


def own_elements(
    structure: Structure, plates: frozenset[str], shape: tuple[int, ...], lengths: Mapping[str, Array]
) -> Array | None:
    """Which elements of ragged plates are the unit's own, broadcastable to a batch `shape`; None where all are."""
    found = None
    for plate in structure.plates:
        if plate.name in plates and plate.argument is not None and plate.argument in lengths:
            places = jnp.arange(shape[plate.dim]).reshape(-1, *(1,) * (-plate.dim - 1))
            own = places < lengths[plate.argument]
            found = own if found is None else found & own
    return found
