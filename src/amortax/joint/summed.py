"""How are a unit's discrete sites summed out, drawn, and read from given values? The program at every assignment.

`evaluate` runs the program at one value of every discrete site and returns the log density of every site; here it is
run once, with one vmapped axis for each level of discrete sites (see `levels`), and reduced by `eliminate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from .._types import Terms
from .assignments import Choices
from .eliminate import draw, eliminate, own_elements
from .levels import Level, levels_of
from .structure import DENSE, Structure

Evaluate = Callable[[Choices], dict[str, Array]]


def summed_log_prob(structure: Structure, evaluate: Evaluate, known: Choices, lengths: Mapping[str, Array]) -> Terms:
    """Log density of one unit, summed over all assignments of its discrete sites but `known` ones."""
    levels = _levels(structure, known)
    log_probs, outside = _at_all_assignments(structure, levels, evaluate, known)
    return Terms(eliminate(structure, levels, log_probs, lengths)[0], outside)


def draw_choices(
    key: Array, structure: Structure, evaluate: Evaluate, known: Choices, lengths: Mapping[str, Array]
) -> Choices:
    """A draw of one unit's discrete sites from their exact conditional given all else, `known` ones among it."""
    levels = _levels(structure, known)
    log_probs, _ = _at_all_assignments(structure, levels, evaluate, known)
    numbers = draw(key, levels, eliminate(structure, levels, log_probs, lengths)[1])
    chosen = dict(known)
    for level, number in zip(levels, numbers, strict=True):
        for name, values in level.table().items():
            ndim = log_probs[name].ndim - len(levels)
            chosen[name] = jnp.asarray(values)[jnp.reshape(number, number.shape[number.ndim - ndim :])]
    return chosen


def given_choices(
    structure: Structure, values: Mapping[str, Array], lengths: Mapping[str, Array]
) -> tuple[Choices, Array]:
    """The discrete sites among constrained `values` (unit axis dropped) in the model's layout, and if possible.

    Those that are not, and padding, are replaced by one that is.
    """
    found, possible = {}, jnp.ones((), bool)
    for site in structure.summed:
        value, choices = site.unkeep(jnp.asarray(values[site.name])), jnp.asarray(site.choices)
        known = jnp.any(value[..., None] == choices, axis=-1)
        found[site.name] = jnp.where(known, value, choices[0]).astype(choices.dtype)
        known = jnp.all(known, axis=tuple(range(-site.event_dim, 0)))
        own = own_elements(structure, site.plates, known.shape, lengths)
        possible = possible & jnp.all(known if own is None else known | ~own)
    return found, possible


def _levels(structure: Structure, known: Choices) -> tuple[Level, ...]:
    return levels_of(structure, [site for site in structure.summed if site.name in known])


def _at_all_assignments(
    structure: Structure, levels: tuple[Level, ...], evaluate: Evaluate, known: Choices
) -> tuple[dict[str, Array], Array]:
    """Log densities of every site of the unit, with an axis for each level in front, and the sum of the shared ones."""

    def given(*values: Choices) -> dict[str, Array]:
        return evaluate(known | {name: value for level in values for name, value in level.items()})

    over: Callable = given
    for number in reversed(range(len(levels))):
        over = _along(over, number, levels)
    log_probs = over(*(jax.tree.map(jnp.asarray, level.table()) for level in levels))
    outside = jnp.zeros(())
    for site in structure.of(*DENSE):
        if not site.per_unit:
            outside = outside + jnp.sum(log_probs.pop(site.name)[(0,) * len(levels)])
    return log_probs, outside


def _along(function: Callable, number: int, levels: tuple[Level, ...]) -> Callable:
    """`function` of one dict of values per level, with an axis in front for all assignments of level `number`."""
    if not levels[number].sites:
        return lambda *values: jax.tree.map(lambda x: x[None], function(*values))
    return jax.vmap(function, in_axes=[0 if i == number else None for i in range(len(levels))])
