"""What is chosen where the user left it open? Encoder, head and families, by the structure of the model."""

from __future__ import annotations

import dataclasses
from typing import Any

from ._recipe import Recipe
from .beliefs import beliefs_of, is_filtering
from .encoders.base import Inputs
from .encoders.dense import dense
from .encoders.free import free
from .encoders.sequence import recurrent
from .encoders.sets import deep_set
from .families.blocks import blocks
from .families.discrete import categorical
from .families.nested import nested
from .families.normal import diagonal, full
from .heads import concatenate, newton
from .inputs import inputs_of
from .joint.levels import refuse_too_many
from .joint.structure import Structure
from .nesting import by_elements, goes_by_step, loosened, refuse_others
from .unsuited import check_head, check_latents, refuse_idle, refuse_without_numbers, with_choice

RECIPE_NAMES = ("encoder", "head", "family", "shared_family", "classifier")
FULL_LOCAL, FULL_SHARED, NEWTON_LOCAL = 8, 200, 16  # largest dimensions for which these are chosen


def choose(
    structure: Structure,
    *,
    encoder: Recipe | None,
    head: Recipe | None,
    family: Recipe | None,
    shared_family: Recipe | None,
    classifier: Recipe | None,
) -> tuple[Structure, Inputs, dict[str, Recipe | None]]:
    """The structure as the guide sees it, what the encoder sees, and all recipes; some checks on the way."""
    if is_filtering(family, classifier):
        return beliefs_of(structure, encoder, family, classifier)
    structure = with_choice(structure, encoder, classifier)
    refuse_too_many(structure)
    if split := by_elements(structure, family):
        structure = loosened(structure)
    inputs = inputs_of(structure, split, goes_by_step(structure, encoder, family))
    local, shared = structure.size("local"), structure.size("global")
    check_latents(structure)
    if not local:
        refuse_without_numbers(structure, encoder=encoder, family=family, head=head)
    if not shared:
        idle = {"shared_family": shared_family} | ({} if split else {"head": head})
        refuse_idle(idle, "the model has no global latents")
    if not structure.classified:
        refuse_idle({"classifier": classifier}, "no numeric local stands beside a discrete site of the unit")
    chosen: dict[str, Recipe | None] = dict.fromkeys(RECIPE_NAMES)
    chosen["head"] = _head(structure, encoder, head, split=split, by_step=inputs.by_step)
    if local or structure.drawn:
        chosen["encoder"] = encoder or _encoder(inputs, small=isinstance(chosen["head"], newton))
    if local:
        depth = 1 if shared or structure.classified or inputs.by_step else 0
        left_open = {"depth": depth, "layout": structure.layout("local"), "by_step": inputs.by_step}
        chosen["family"] = _with(family or _family(local, split=split), left_open)
    if structure.classified:
        chosen["classifier"] = classifier or categorical()
    if shared:
        left_open = {"layout": structure.layout("global"), "sites": structure.supports("global")}
        chosen["shared_family"] = _with(shared_family or (full() if shared <= FULL_SHARED else blocks()), left_open)
    return structure, inputs, chosen


def _family(size: int, *, split: bool) -> Recipe:
    """Of locals: by elements, or of all numbers of a unit."""
    if split:
        return nested()
    return full() if size <= FULL_LOCAL else diagonal()


def _head(
    structure: Structure, encoder: Recipe | None, head: Recipe | None, *, split: bool, by_step: bool
) -> Recipe | None:
    """How locals are placed: where there are globals to follow, or elements of their own."""
    local, shared = structure.size("local"), structure.size("global")
    if split:
        refuse_others(encoder, head)
        return head or newton()
    if not (local and shared):
        return None
    check_head(encoder, head, by_step=by_step)
    small = (local <= NEWTON_LOCAL or shared > 32 or isinstance(encoder, free)) and not by_step
    return head or (newton() if small else concatenate())


def _encoder(inputs: Inputs, *, small: bool) -> Recipe:
    """By the shape of the data; a small one for sets where a Newton step of the model does most of the work."""
    if not inputs.plates:
        return dense()
    if inputs.plates == inputs.ordered and not small:
        return recurrent()
    return deep_set(width=32, depth=1) if small else deep_set()


def _with(family: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with these values for options that it, or a recipe inside it, leaves open."""
    options = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
    inner = {name: _with(option, values) for name, option in options.items() if isinstance(option, Recipe)}
    own = {name: value for name, value in values.items() if options.get(name, 0) is None}
    return dataclasses.replace(family, **inner, **own)
