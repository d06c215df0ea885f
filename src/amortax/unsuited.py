"""What doesn't suit: a model without latents, recipes without use, or that don't go together? Errors that name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import GuideError, ModelError
from ._recipe import Recipe
from .encoders.causal import causal
from .encoders.free import free
from .encoders.sequence import temporal_convolution
from .families.discrete import factorised
from .heads import concatenate, newton
from .joint.arguments import unplanned
from .joint.structure import Structure


def check_slots(recipes: Mapping[str, Any]) -> None:
    """Every argument of `amortize` that takes a recipe must have one of its own; a user's own recipes go anywhere."""
    from .recipes import RECIPES

    for slot, given in recipes.items():
        foreign = isinstance(given, Recipe) and type(given) not in RECIPES.values()
        if given is None or foreign or (isinstance(given, Recipe) and slot in given.slots):
            continue
        fitting = ", ".join(f"am.{name}()" for name, recipe in RECIPES.items() if slot in recipe.slots)
        if isinstance(given, Recipe):
            own = " or ".join(f"{name}=" for name in given.slots) or "am.coupling(transform=...)"
            raise GuideError(f"{slot}={given}: am.{type(given).__name__}() is for {own}; {slot}= takes {fitting}")
        by_name = given.__name__ if isinstance(given, type) else given
        hint = f"; write am.{by_name}(...)" if isinstance(by_name, str) and by_name in RECIPES else ""
        raise GuideError(
            f"{slot}={by_name!r}: expected one recipe for all that is in the block, of {fitting}{hint}; or leave it "
            "out, and one is chosen by the model"
        )


def with_choice(structure: Structure, encoder: Recipe | None, classifier: Recipe | None) -> Structure:
    """The structure as the guide will see it: with a q of the unit's own discrete sites or not, listed or drawn."""
    if isinstance(encoder, causal):
        raise GuideError(
            "encoder=am.causal() has a context for every step and none for the whole series; leave it out, or give "
            "family=am.filtering() for beliefs step by step"
        )
    own, drawn = any(not site.plates for site in structure.summed), isinstance(classifier, factorised)
    if not drawn:
        classified = own and structure.size("local") > 0 and not isinstance(encoder, free)
        return dataclasses.replace(structure, classified=classified)
    if not own:
        raise GuideError(
            f"classifier=am.factorised() has nothing to do: model '{structure.model}' has no discrete latent in plate "
            f"'{structure.plate}' itself (those of plates inside it are summed element by element); leave it out, or "
            "write elements that are too many or tied together as one event of the unit (.to_event)"
        )
    if isinstance(encoder, free):
        raise GuideError(
            "encoder=am.free() with classifier=am.factorised(): a unit's own parameters hold no q of its choice; leave "
            "out the encoder, and one is chosen by the data"
        )
    return dataclasses.replace(structure, classified=True, sampled=True)


def check_latents(structure: Structure) -> None:
    """There must be something to learn."""
    if not (structure.size("local") or structure.size("global") or structure.summed):
        why = "".join(f"; {a.needed}" for a in structure.arguments if a.needed == unplanned(a.name))
        raise ModelError(f"model '{structure.model}' has no latent site: there is no posterior to learn{why}")


def check_head(encoder: Recipe | None, head: Recipe | None, *, by_step: bool) -> None:
    """Parameters of a unit's own are not told the globals: only some heads place them; nor do all place a series."""
    if by_step and not isinstance(head or concatenate(), concatenate):
        raise GuideError(
            f"head=am.{type(head).__name__}() places a unit as a whole, and encoder=am.{type(encoder).__name__}() "
            "tells am.markov() of step after step; leave out the head, or give encoder=am.dense()"
        )
    if isinstance(encoder, free) and not isinstance(head or newton(), newton):
        raise GuideError(
            f"encoder=am.free() with head=am.{type(head).__name__}(): parameters of a unit's own are not told the "
            "globals, and its locals would ignore them; leave out the head, am.newton() places them by the model"
        )


def unheard(structure: Structure, encoder: Recipe | None) -> str:
    """What steps of a series are not told, though their latents may depend on it; empty where they hear of all."""
    if not isinstance(encoder, temporal_convolution):
        return ""
    reach, length = 2**encoder.layers - 1, _steps(structure)
    if length is None or reach >= length - 1:
        return ""
    return (
        f"structural gap: each step of q is told of {reach} steps before and after it, of {length}; what lies further "
        f"away is lost to it at any width. am.temporal_convolution(layers={(length - 1).bit_length()}), am.recurrent() "
        "and am.attention_sequence() hear of all"
    )


def _steps(structure: Structure) -> int | None:
    """The length of a series, if all units have the same."""
    ordered = {plate.name for plate in structure.plates if not plate.exchangeable}
    along = [n for a in structure.arguments for n, name in zip(a.shape, a.dims, strict=False) if name in ordered]
    along += [a.shape[0] for a in structure.arguments if a.role == "observed" and a.shape]
    return along[0] if along else None


def check_missing(structure: Structure, missing: Sequence[str]) -> None:
    """Only labels may be missing later where none is in training."""
    if isinstance(missing, str):
        raise GuideError(f"missing: expected a list of names, got the text {missing!r}; write [{missing!r}]")
    for name in missing:
        if name not in structure.labels:
            raise GuideError(
                f"missing={list(missing)}: '{name}' of model '{structure.model}' is no label (observed by a discrete "
                "site of finite support on which other sites depend), and where nothing is missing in training no "
                "encoder learns to read what misses it; give data of which some lacks it, or leave it out"
            )


def refuse_without_numbers(structure: Structure, **given: Recipe | None) -> None:
    """Recipes that are about a unit's numbers, of which the model has none."""
    if structure.drawn:
        given["encoder"] = None  # which q of the choice has use for
    how = f" but discrete ones, which are {'drawn' if structure.drawn else 'summed exactly'}" * bool(structure.summed)
    refuse_idle(given, f"the model has no local latents{how}")


def refuse_idle(given: dict[str, Recipe | None], why: str) -> None:
    """A recipe that has nothing to do."""
    for name, recipe in given.items():
        if recipe is not None:
            raise GuideError(f"{name}={recipe} has nothing to do: {why}; leave it out")
