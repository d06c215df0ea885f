"""Do components have names? Whether the model tells elements of its globals apart, and whether draws of q mix them.

If the density does not change when elements a and b of every global with a component axis change places, the posterior
has a copy for every order of the components, and "the mean of component 2" is not identified (Stephens 2000). That is
looked at, not read: at draws of q the elements are turned round in the user's own space, together with those of locals
along the same axis, and log p of some units must stay the same but for rounding.

A q that sits in one of the copies answers for that one order: its summaries are those of the components as they happen
to be called in this fit, which the report notes. Where draws of q put two components now in one order, now in the
other, their summaries are mixtures of both, and that is a warning.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Batch
from ..answer import draw_shared
from ..chunks import chunks, evenly
from ..data import Units
from ..guide import Guide
from ..joint.inverse import unconstrain
from ..joint.joint import Joint
from ..joint.structure import Structure
from .report import Reason

UNITS, DRAWS, ORDER_DRAWS = 4, 2, 200  # looked at for invariance; draws of the globals for the order of components
JITTER = 0.3  # added to unconstrained draws: components that q has in one place would hide that the model tells them
INVARIANT = 2e-5  # relative difference of log p: rounding
MIXED = 0.01  # share of draws in which two components may stand in the other order
MOST_AXES, MOST_COMPONENTS, MOST_PAIRED = 6, 1000, 20  # of one length, all subsets tried; of a model; compared


class Axis(NamedTuple):
    """An axis of a latent's value, as `Joint.constrain` gives it, without the unit axis."""

    site: str
    axis: int
    size: int
    shared: bool


def switching(joint: Joint, guide: Guide, data: Units, *, key: Array) -> tuple[list[Reason], str]:
    """A warning where draws of q mix components that the model doesn't tell apart; else a note on these, or nothing."""
    axes = component_axes(joint.structure)
    if guide.shared is None or joint.structure.sampled or not any(axis.shared for axis in axes):
        return [], ""
    some = data.take(evenly(len(data), UNITS))
    batch = next(iter(chunks(some, joint.structure, ORDER_DRAWS))).batch
    shared = draw_shared(guide, jax.random.fold_in(key, 0), ORDER_DRAWS)
    places = _drawn(joint, guide, batch, shared, jax.random.fold_in(key, 1), jnp.asarray(JITTER))
    summing = Joint(joint.model, dataclasses.replace(joint.structure, classified=False), joint.params)
    found = _invariant(summing, batch, {name: x[:DRAWS] for name, x in places.items()}, axes)
    if found is None:
        return [], ""
    values = _drawn(joint, guide, batch, shared, jax.random.fold_in(key, 1), jnp.asarray(0.0))
    parts = [_flat(np.asarray(values[axis.site])[:, 0], axis.axis) for axis in found if axis.shared]
    return reasons(sorted({axis.site for axis in found}), mixed_pairs(np.concatenate(parts, axis=2)), found[0].size)


def component_axes(structure: Structure) -> tuple[Axis, ...]:
    """All axes of two or more elements that latents have, if a global has one of that length."""
    axes = [
        Axis(site.name, number, size, not site.per_unit)
        for site in structure.of("global", "local")
        for number, size in enumerate(site.kept_shape)
        if 1 < size <= MOST_COMPONENTS
    ]
    sizes = {axis.size for axis in axes if axis.shared}
    return tuple(axis for axis in axes if axis.size in sizes)


def candidates(axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """Sets of axes of one length that may be those of components: the larger sets first."""
    for size in sorted({axis.size for axis in axes}):
        same = [axis for axis in axes if axis.size == size]
        for count in range(len(same), 0, -1) if len(same) <= MOST_AXES else [len(same)]:
            yield from (s for s in itertools.combinations(same, count) if any(axis.shared for axis in s))


def _invariant(joint: Joint, batch: Batch, places: dict[str, Array], axes: tuple[Axis, ...]) -> tuple[Axis, ...] | None:
    """The first set of axes along which elements may change places."""
    still = tuple(np.arange(axis.size) for axis in axes)
    before = np.asarray(_densities(joint, batch, places, axes, still), np.float64)
    for group in candidates(axes):
        own = [axis in group for axis in axes]
        orders = np.roll(np.arange(group[0].size), 1), np.r_[1, 0, 2 : group[0].size]  # these make all others
        for order in orders:
            turned = tuple(order if mine else old for mine, old in zip(own, still, strict=True))
            after = np.asarray(_densities(joint, batch, places, axes, turned), np.float64)
            if not np.all(np.abs(after - before) <= INVARIANT * (1.0 + np.abs(before))):
                break
        else:
            return group
    return None


@eqx.filter_jit
def _drawn(joint: Joint, guide: Guide, batch: Batch, shared: Array, key: Array, jitter: Array) -> dict[str, Array]:
    """Constrained values of all latents (draws, units, ...), their unconstrained ones moved by noise of sd `jitter`."""
    contexts = guide.encode(batch)

    def one(key: Array, v: Array, context: Any, unit: Batch) -> dict[str, Array]:
        local, _ = guide.sample_local(key, context, v, unit, joint)
        size = joint.structure.at(unit).size("local")  # after which stands a choice
        local = local.at[:size].add(jitter * jax.random.normal(jax.random.fold_in(key, 2), (size,)))
        v = v + jitter * jax.random.normal(jax.random.fold_in(key, 3), v.shape)
        return joint.constrain(local, v, unit, joint.choose(key, local, v, unit))

    units = jax.vmap(one, in_axes=(None, None, 0, 0))
    return jax.vmap(units, in_axes=(0, 0, None, None))(jax.random.split(key, len(shared)), shared, contexts, batch)


@eqx.filter_jit
def _densities(
    joint: Joint, batch: Batch, values: dict[str, Array], axes: tuple[Axis, ...], orders: tuple[Any, ...]
) -> Array:
    """(draws, units, 2) log p of unit and globals in the user's space, the elements along each axis in its order."""
    turned = dict(values)
    for axis, order in zip(axes, orders, strict=True):
        turned[axis.site] = jnp.take(turned[axis.site], order, axis=axis.axis + 2)

    def one(values: dict[str, Array], unit: Batch) -> Array:
        local, shared, jacobian = unconstrain(joint, values, unit)
        terms = joint.unit_log_prob(local, shared, unit) - jacobian
        return jnp.stack([terms.unit, terms.shared])

    return jax.vmap(jax.vmap(one), in_axes=(0, None))(turned, batch)


def _flat(values: np.ndarray, axis: int) -> np.ndarray:
    """(draws, components, numbers of one) of a global (draws, ...)."""
    moved = np.moveaxis(values, axis + 1, 1)
    return moved.reshape(*moved.shape[:2], -1).astype(np.float64)


def mixed_pairs(components: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of components (draws, components, numbers) in no one order, and the share of draws in the rarer one.

    The order of two is that along their mean difference, number by number in units of its sd.
    """
    scale = components.std(axis=(0, 1))
    z, found = components / np.where(scale > 0, scale, 1.0), []
    for a, b in itertools.combinations(range(min(z.shape[1], MOST_PAIRED)), 2):
        apart = z[:, a] - z[:, b]
        share = float(np.mean(apart @ apart.mean(axis=0) <= 0))
        if share > MIXED:
            found.append((a, b, share))
    return found


def reasons(names: list[str], mixed: list[tuple[int, int, float]], count: int) -> tuple[list[Reason], str]:
    """The warning, or the note."""
    which = ", ".join(f"'{name}'" for name in names)
    same = f"the model does not tell the {count} elements of {which} apart"
    if not mixed:
        return [], f"{same}; q is in one of their orders, and summaries by element are of that order in this fit alone"
    a, b, share = max(mixed, key=lambda pair: pair[2])
    text = (
        f"Component-wise summaries are not identified: {same}, and {share:.0%} of q's draws have "
        f"elements {a} and {b} in the other order (limit {MIXED:.0%})."
    )
    step = (
        "summarise what has no labels (predictions, densities), or order one of them in the model, e.g. "
        "dist.TransformedDistribution(..., OrderedTransform())"
    )
    return [Reason("label-switching", "WARN", text, step)], ""
