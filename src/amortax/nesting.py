"""When does q of a unit go element by element, or step by step? Where its parts have numbers of their own.

By elements where its inner plates have numbers of their own and are ragged, or many. Then encoder, head and family
mirror the plates (`encoders.nested`, `heads.NestedNewton`, `families.nested`): their parameters don't depend on how
many elements there are, and a unit may have any number of them. By steps where an encoder of series is asked for and q
is a Markov chain as long as the series: every step then has a context of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import GuideError
from ._recipe import Recipe
from ._types import Batch
from .encoders.base import Inputs
from .encoders.nested import NestedEncoder
from .encoders.sequence import SEQUENCE, series_of
from .encoders.sets import attention_set, deep_set
from .families.markov import markov, steps_of
from .families.nested import Nested, nested
from .heads import NestedNewton, newton
from .inputs import inputs_of
from .joint.joint import Joint
from .joint.structure import Argument, Structure
from .joint.tree import tree_of
from .tree_frame import curvature

DENSE = 8  # largest dimension of a whole unit for which a dense normal over fixed inner plates is chosen
RELATIVE = 1e-3  # of the largest entry of a product with the curvature, in float32
CHECKED = 3  # units of which the curvature is looked at


def by_elements(structure: Structure, family: Recipe | None) -> bool:
    """Whether q goes element by element: asked for, needed, or chosen."""
    inner = any(site.plates for site in structure.of("local"))
    if isinstance(family, nested):
        why = structure.tied if inner else f"no numeric local of model '{structure.model}' is in an inner plate"
        if why:
            raise GuideError(f"family=am.nested() has nothing to go by: {why}; leave it out, or use am.full()")
    elif structure.stretches and family is not None:
        raise GuideError(
            f"family=am.{type(family).__name__}() has a fixed size, but units of plate '{structure.plate}' have "
            f"different numbers of elements with latents; give it for one element, family=am.nested({family})"
        )
    if structure.classified and inner and (structure.stretches or isinstance(family, nested)):
        raise GuideError(
            f"model '{structure.model}' has a discrete site of the unit beside numbers of its elements, which can't go "
            "element by element under a choice; put the discrete site into an inner plate, or sum it out"
        )
    many = structure.size("local") > DENSE and not structure.tied and not structure.classified
    return isinstance(family, nested) or structure.stretches or (family is None and inner and many)


def goes_by_step(structure: Structure, encoder: Recipe | None, family: Recipe | None) -> bool:
    """Whether q goes along a series, told step by step: an encoder of series reads as many steps as q has."""
    if not (isinstance(encoder, SEQUENCE) and isinstance(family, markov)) or structure.classified:
        return False
    series = series_of(inputs_of(structure), f"am.{type(encoder).__name__}()").features
    lengths = {f.shape[f.plate_axis] for f in series if f.plate is not None}
    return lengths == {len(steps_of(family.layout or structure.layout("local"), structure.size("local")))}


def refuse_others(encoder: Recipe | None, head: Recipe | None) -> None:
    """Recipes that give one context or one frame for a whole unit."""
    if not isinstance(encoder or deep_set(), deep_set | attention_set):
        raise GuideError(
            f"encoder=am.{type(encoder).__name__}() gives no context for the elements of a unit, which have latents of "
            "their own; use am.deep_set() or am.attention_set(), which pool every plate"
        )
    if not isinstance(head or newton(), newton):
        raise GuideError(
            f"head=am.{type(head).__name__}() places no elements of a unit; leave it out, am.newton() does by the model"
        )


def loosened(structure: Structure) -> Structure:
    """The structure of units whose elements' own elements may be any number too, along axes that are pooled."""
    pooled = {p.name for p in structure.plates if p.exchangeable}

    def shape(a: Argument) -> tuple[int | None, ...]:
        free = zip(a.dims, a.shape, strict=True)
        return tuple(None if name in pooled else n for name, n in free) if a.ragged and len(a.dims) > 1 else a.shape

    arguments = tuple(dataclasses.replace(a, shape=shape(a)) for a in structure.arguments)
    return dataclasses.replace(structure, arguments=arguments)


def build_nested(
    structure: Structure, inputs: Inputs, recipes: tuple[Any, Any, Any], *, keys: Array
) -> tuple[NestedEncoder, NestedNewton, Nested]:
    """Encoder, head and family by their recipes."""
    tree, shared_size = tree_of(structure), structure.size("global")
    encoder, head, family = recipes
    built = encoder.build(inputs, key=keys[0])
    placed = head.build_nested(tree, built.context_sizes, 2 * shared_size, key=keys[1])
    widths, ancestors = [x.width for x in tree.levels], [x.ancestors for x in tree.levels]
    return built, placed, family.build(widths, ancestors, placed.told_sizes, key=keys[2])


def elements_are_independent(joint: Joint, data: Batch) -> bool:
    """Whether the curvature of a few units is that of a tree: what couples siblings no reading of sites can tell."""
    units = jax.tree.map(lambda x: jnp.asarray(x[:CHECKED]), data)
    whole, by_blocks = _products(joint, units)
    whole, by_blocks = np.asarray(whole), np.asarray(by_blocks)
    return bool(np.all(np.abs(whole - by_blocks) <= RELATIVE * np.abs(whole).max(axis=1, keepdims=True)))


@eqx.filter_jit
def _products(joint: Joint, units: Batch) -> tuple[Array, Array]:
    """The curvature times a random vector, as it is and by the blocks of a tree: (units, d)."""

    @jax.vmap
    def one(key: Array, unit: Batch) -> tuple[Array, Array]:
        tree = tree_of(joint.structure.at(unit))
        at, direction, shared = (
            jax.random.normal(k, (n,))
            for k, n in zip(
                jax.random.split(key, 3), (joint.at(unit).local_size,) * 2 + (joint.shared_size,), strict=True
            )
        )

        def density(free: list[Array]) -> Array:
            return joint.unit_log_prob(tree.join(free), shared, unit).unit

        parts, along = tree.split(at), tree.split(direction)
        whole = [-x for x in jax.jvp(jax.grad(density), (parts,), (along,))[1]]
        _, blocks, cross = curvature(tree, density, parts)
        found = [jnp.sum(b * x[..., None, :], axis=-1) for b, x in zip(blocks, along, strict=True)]
        for (low, high), block in cross.items():
            found[low] = found[low] + jnp.sum(block * along[high][..., None, :], axis=-1)
            back = jnp.sum(block * along[low][..., :, None], axis=-2)
            axes = tuple(i for i, n in enumerate(tree.levels[high].grid) if n == 1)
            found[high] = found[high] + jnp.sum(back, axis=axes, keepdims=True)
        return tree.by_level(whole), tree.by_level(found)

    return one(jax.random.split(jax.random.key(0), jax.tree.leaves(units)[0].shape[0]), units)
