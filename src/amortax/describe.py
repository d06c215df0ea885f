"""How does a plan look in print? What is amortized, and one row per block."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax

from ._recipe import Recipe
from ._types import PyTree
from .joint.assignments import choice_size
from .joint.levels import levels_of
from .joint.structure import Structure
from .unsuited import unheard

SUMMED = "summed exactly"
BELIEFS = "; beliefs of a step given the steps up to it, no posterior of a whole series"


def _count(tree: PyTree) -> int:
    return sum(x.size for x in jax.tree.leaves(eqx.filter(tree, lambda x: hasattr(x, "size"))))


def describe(plan: Any) -> str:
    """A `Plan` as text."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    structure, skeleton = plan.structure, plan.skeleton()
    table = Table("block", "sites", "dim", "encoder", "family", "parameters", box=SIMPLE_HEAD, pad_edge=False)
    names = {role: ", ".join(s.name for s in structure.of(role)) for role in ("global", "local", "observed")}
    if plan.shared_family is not None:
        size = str(structure.size("global"))
        table.add_row("globals", names["global"], size, "-", _show(plan.shared_family), f"{_count(skeleton.shared):,}")
    if plan.family is not None:
        count = f"{_count((skeleton.encoder, skeleton.head, skeleton.local)):,}"
        if plan.free:
            count = " x ".join(f"{n:,}" for n in skeleton.encoder.own_rows.shape)
        how = _show(plan.family) + (f" placed by {_show(plan.head)}" if plan.head is not None else "")
        size = str(structure.size("local"))
        table.add_row(f"per {structure.plate}", names["local"], size, _show(plan.encoder), how, count)
    for row in _discrete(plan, _count(skeleton.classifier)):
        table.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=110, force_terminal=False)
    seen = [f.name + (f" (set along {f.plate})" if f.plate else "") for f in plan.inputs.features]
    sees = ", ".join(seen) + BELIEFS * plan.filters
    over = "whole data sets" if structure.whole else f"plate '{structure.plate}'"
    console.print(f"model {structure.model}, amortized over {over}; observes {names['observed']}", highlight=False)
    console.print(table)
    encodes = "no continuous local latents: nothing to encode" if plan.encoder is None else f"the encoder sees {sees}"
    if plan.free:
        encodes = f"free: {count} own parameters, no encoder; answers for these units only"
    gap = unheard(structure, plan.encoder) if plan.inputs.by_step else ""
    console.print(encodes + f"\n{gap}" * bool(gap), highlight=False)
    if structure.params:
        console.print(f"learned by maximum likelihood: {', '.join(structure.params)}", highlight=False)
    for line in _lacks(structure):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _lacks(structure: Structure) -> Iterator[str]:
    """What the model can't do."""
    if structure.cannot_simulate:
        yield f"the model can't be simulated: {structure.cannot_simulate}"
    if structure.no_density:
        yield f"no bound, check or evidence: {structure.no_density}; fit it on pairs"


def _discrete(plan: Any, count: int) -> Iterator[tuple[str, ...]]:
    """A row for each level of discrete sites; `count` parameters are in q of the unit's own."""
    for level in levels_of(plan.structure):
        if level.sites:
            where = " and ".join([f"per {plan.structure.plate}", *sorted(level.plates)])
            sites, size = ", ".join(site.name for site in level.sites), f"{level.size} values"
            learned = plan.classifier is not None and not level.plates
            if learned and plan.structure.drawn:
                size = f"{choice_size(plan.structure)} elements"
            shown = (_show(plan.encoder), _show(plan.classifier), f"{count:,}") if learned else ("-", SUMMED, "0")
            yield where, sites, size, *shown


def _show(recipe: Recipe | None) -> str:
    if recipe is None:
        return "-"
    shown = [f.name for f in dataclasses.fields(recipe) if f.name in {"rank", "curved"}]
    options = [f"{name}={getattr(recipe, name)}" for name in shown]
    return f"{type(recipe).__name__}({', '.join(options)})"
