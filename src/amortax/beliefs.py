"""Which latents belong to which step of a series? What `am.filtering()` is built of, and which models have no beliefs.

Time is the first axis, after the units', of every observed argument. A site whose own first axis has that length lies
along it; sites without one come from a loop over the steps, and as many belong to each step, in the model's order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._errors import GuideError
from ._recipe import Recipe
from ._types import Fixed
from .encoders.base import Inputs
from .encoders.causal import along_time, causal
from .families.filtering import Index, filtering
from .guide import Block, Guide
from .inputs import inputs_of
from .joint.assignments import element_counts
from .joint.levels import refuse_too_many
from .joint.structure import Structure


class Part(NamedTuple):
    """What one step has of one site (or of one in every round of a loop)."""

    name: str
    shape: tuple[int, ...]


class Steps(NamedTuple):
    """The latents of every step."""

    index: Index  # positions (T, k) among all numbers, or elements of the choice
    parts: tuple[Part, ...]  # what the k are, in their order


def length_of(structure: Structure) -> int:
    """The steps of a series.

    **Raises** `GuideError` unless all observed arguments agree on them.
    """
    found = {a.name: a.shape for a in structure.arguments if a.role == "observed"}
    sizes = {shape[:1] for shape in found.values()}
    if len(sizes) != 1 or sizes == {()}:
        raise GuideError(
            f"am.filtering(): time is the first axis of every observed argument after the units', but their shapes per "
            f"{structure.plate} are {found}; give every observation of a step along that axis"
        )
    size = next(iter(sizes))[0]
    if size is None:
        raise GuideError(
            f"am.filtering(): {sorted(found)} differ in length by {structure.plate}; pad them to one length with NaN "
            "(steps not observed), and covariates by repeated values: beliefs of the steps before don't change by it"
        )
    return size


def _steps(structure: Structure, sites: dict[str, tuple[int, ...]]) -> Steps:
    """Where the numbers of every step stand, of sites with values of these shapes, one after the other."""
    length = length_of(structure)
    by_step: list[list[int]] = [[] for _ in range(length)]
    along = {name: shape for name, shape in sites.items() if shape[:1] == (length,)}
    looped = {name: shape for name, shape in sites.items() if name not in along}
    if len(along) >= length > 1 and len({_stem(name) for name in along}) < len(along):
        raise GuideError(
            f"am.filtering(): {list(along)[:3]} look like a loop over steps, but each has {length} numbers, as many as "
            "there are steps, and may be a series itself; read the model with series of another length"
        )
    rounds = _rounds(structure, looped, length)
    ends = dict(zip(sites, itertools.accumulate(math.prod(shape) for shape in sites.values()), strict=True))
    for name in [*along, *looped]:
        places = range(ends[name] - math.prod(sites[name]), ends[name])
        if name in along:
            for t, own in enumerate(by_step):
                own += places[t * (len(places) // length) : (t + 1) * (len(places) // length)]
        else:
            by_step[list(looped).index(name) // len(rounds)] += places
    parts = [Part(name, shape[1:]) for name, shape in along.items()]
    return Steps(tuple(map(tuple, by_step)), (*parts, *rounds))


def _rounds(structure: Structure, looped: dict[str, tuple[int, ...]], length: int) -> list[Part]:
    """What every round of a loop over steps draws."""
    each, over = divmod(len(looped), length)
    names, shapes = list(looped), list(looped.values())
    if over or shapes != shapes[:each] * length:
        raise GuideError(
            f"am.filtering(): a series of model '{structure.model}' has {length} steps, but the latents {names[:5]} "
            "have no axis of that length, and are not as many in each step; a belief is of what every step has: bind "
            "other latents as known numbers (functools.partial)"
        )
    stems = [_stem(name) for name in names[:each]]
    return [Part(n, s) for n, s in zip(stems if len(set(stems)) == each else names, shapes[:each], strict=False)]


def _stem(name: str) -> str:
    """The name of a site without the number of its step."""
    return re.sub(r"[_\-]*\d+$", "", name) or name


def numbers_of(structure: Structure) -> Steps:
    """The numeric latents of every step."""
    shapes = {s.name: s.free_shape[: s.unit_axis] + s.free_shape[s.unit_axis + 1 :] for s in structure.of("local")}
    return _steps(structure, shapes)


def choices_of(structure: Structure) -> Steps:
    """The discrete latents of every step."""
    return _steps(structure, {site.name: site.event_shape for site in structure.learned})


def is_filtering(*recipes: Recipe | None) -> bool:
    """Whether one of them is `am.filtering()`."""
    return any(isinstance(recipe, filtering) for recipe in recipes)


def beliefs_of(
    structure: Structure, encoder: Recipe | None, family: Recipe | None, classifier: Recipe | None
) -> tuple[Structure, Inputs, dict[str, Recipe | None]]:
    """What a plan of beliefs holds; those of discrete states are drawn, never listed.

    **Raises** `GuideError` where there are none to learn by simulation.
    """
    own = any(not site.plates for site in structure.summed)
    if why := _unfit(structure, encoder) or _no_latents(structure, own=own):
        raise GuideError(f"am.filtering(): {why}")
    recipe = family or classifier
    structure = dataclasses.replace(structure, classified=own, sampled=own)
    refuse_too_many(structure)
    numbers, choices = (None, recipe) if own else (recipe, None)
    recipes = {"encoder": encoder or causal(), "family": numbers, "classifier": choices}
    return structure, inputs_of(structure), {"head": None, "shared_family": None, **recipes}


def _unfit(structure: Structure, encoder: Recipe | None) -> str:
    """Why beliefs can't be learned, or empty."""
    if not isinstance(encoder or causal(), causal):
        return f"encoder=am.{type(encoder).__name__}() sees later steps too; leave it out, or give am.causal()"
    if shared := [site.name for site in structure.of("global")]:
        return (
            f"{shared} of model '{structure.model}' are outside plate '{structure.plate}'; a belief takes as known "
            "what all units share: bind its values with functools.partial"
        )
    if structure.params:
        return (
            f"{sorted(structure.params)} of model '{structure.model}' are learned, and simulations don't teach them; "
            "fit them with another family first, and bind what was found with functools.partial"
        )
    if structure.cannot_simulate:
        return (
            f"beliefs learn from simulations, but model '{structure.model}' can't be simulated: "
            f"{structure.cannot_simulate}; write it so that it can, or use am.markov()"
        )
    if structure.labels:
        return (
            f"{sorted(structure.labels)} may be missing, and other sites depend on them; leave out units that miss "
            "them, or what depends on them"
        )
    return ""


def _no_latents(structure: Structure, *, own: bool) -> str:
    """Why the latents are none to have beliefs of, or empty; `own` whether the unit itself has discrete ones."""
    numbers = structure.of("local")
    if own and numbers:
        return (
            f"model '{structure.model}' has discrete latents beside the numbers {[s.name for s in numbers][:3]}, and "
            "beliefs are of one kind; sum the discrete ones out, or put those of a step into a plate inside the unit"
        )
    if bent := [site.name for site in numbers if "Real" not in site.support]:
        return (
            f"{bent[:3]} of model '{structure.model}' are not on all reals, and one step alone is not told their "
            "bounds; make the latent an unbounded number and transform it in the model"
        )
    if not (own or numbers):
        return f"model '{structure.model}' has no latent of a step in plate '{structure.plate}' itself"
    return ""


def build_beliefs(
    structure: Structure, inputs: Inputs, encoder: Recipe | None, recipe: Recipe | None, *, key: Array
) -> Guide:
    """The guide: an encoder, and q of numbers or of discrete states."""
    assert isinstance(encoder, causal)
    assert isinstance(recipe, filtering)
    encoder_key, key = jax.random.split(key)
    built = encoder.build(along_time(inputs, length_of(structure)), key=encoder_key)
    if not structure.learned:
        family = recipe.build(numbers_of(structure).index, built.context_sizes, key=key)
        whitening = Fixed({"center": jnp.zeros(family.size), "scale": jnp.ones(family.size)})
        return Guide(None, Block(family, whitening), built, None)
    index, counts = choices_of(structure).index, element_counts(structure)
    by_step = {tuple(counts[i] for i in one) for one in index}
    if len(by_step) > 1:
        raise GuideError(
            f"am.filtering(): discrete latents of model '{structure.model}' have other numbers of values in other "
            f"steps ({sorted(by_step)[:3]}); give them the same support at every step"
        )
    return Guide(None, None, built, None, recipe.build_choices(counts, index, built.context_sizes, key=key))
