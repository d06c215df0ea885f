"""How are values of the learned discrete sites written? As a `choice`: the number of an assignment, or digits.

Of the sites of which the guide has a q, where it lists their assignments a choice is the number of one, a scalar. Where
it draws them instead (`Structure.sampled`), they may be too many to number, and a choice has a digit for each element
of each event: which of its values the element takes. After the unconstrained numbers of a unit's locals stand those of
its choice, as floats.

Digits that are floats are relaxed: elements of two values then have one in between, through which gradients pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._types import Batch
from .levels import levels_of
from .structure import Structure

Choices = dict[str, Array]  # values of discrete sites of one unit, in the model's layout


def element_counts(structure: Structure) -> tuple[int, ...]:
    """How many values each element of the learned sites can take."""
    return tuple(len(site.choices) for site in structure.learned for _ in range(math.prod(site.event_shape)))


def choice_size(structure: Structure) -> int:
    """Numbers of a choice, 0 where there is none."""
    return len(element_counts(structure)) if structure.sampled else int(bool(structure.learned))


def parts_of(structure: Structure, local: Array) -> tuple[Array, Array]:
    """(numbers, choice) of one unit's locals, where there is a choice."""
    numbers, choice = jnp.split(local, [structure.size("local")])
    choice = choice.astype(jnp.int32)
    return numbers, choice if structure.sampled else choice[0]


def standing(structure: Structure, local: Array, unit: Batch) -> tuple[Array, Batch]:
    """(numbers of one unit, the unit at its choice) from its locals."""
    if not structure.learned:
        return local, unit
    numbers, choice = parts_of(structure, local)
    return numbers, unit.at(choice)


def choice_values(structure: Structure, choice: Array) -> Choices:
    """The values of the learned sites at a choice."""
    if not structure.sampled:
        table = levels_of(structure)[0].table()
        return {site.name: jnp.asarray(table[site.name])[choice] for site in structure.learned}
    found, start = {}, 0
    for site in structure.learned:
        stop = start + math.prod(site.event_shape)
        digits, values = jnp.reshape(choice[start:stop], site.event_shape), jnp.asarray(site.choices)
        relaxed = jnp.issubdtype(digits.dtype, jnp.floating)
        found[site.name] = values[0] + (values[1] - values[0]) * digits if relaxed else values[digits]
        start = stop
    return found


def choice_of(structure: Structure, values: Mapping[str, Array]) -> Array:
    """The choice that has these possible `values` of the learned sites."""
    digits = [
        jnp.argmax(jnp.ravel(values[site.name])[:, None] == jnp.asarray(site.choices), axis=1)
        for site in structure.learned
    ]
    each = jnp.concatenate(digits).astype(jnp.int32)
    if structure.sampled:
        return each
    number = jnp.zeros((), jnp.int32)
    for digit, count in zip(each, element_counts(structure), strict=True):
        number = number * count + digit
    return number


def codes_of(structure: Structure, choice: Array) -> Array:
    """A choice as zeros and ones: one for the value of each element."""
    if not structure.sampled:
        return jnp.asarray(levels_of(structure)[0].codes())[choice]
    if jnp.issubdtype(choice.dtype, jnp.floating):
        return jnp.ravel(jnp.stack([1.0 - choice, choice], axis=1))
    counts = np.asarray(element_counts(structure))
    own = np.arange(counts.max()) < counts[:, None]
    return jax.nn.one_hot(choice, counts.max())[own]


def allowed_choices(structure: Structure, unit: Batch) -> Array:
    """Which assignments of the learned sites agree with the labels that one unit has; for those that are listed."""
    level = levels_of(structure)[0]
    allowed, table = jnp.ones(level.size, bool), level.table()
    for argument, site in structure.labels.items():
        if site in structure.learned:
            seen = jnp.reshape(unit.arrays[argument], (1, *site.event_shape)) == jnp.asarray(table[site.name])
            if argument in unit.masks:
                seen = seen | ~jnp.reshape(unit.masks[argument], (1, *site.event_shape))
            allowed = allowed & jnp.all(seen, axis=tuple(range(1, seen.ndim)))
    return allowed


def seen_digits(structure: Structure, unit: Batch) -> tuple[Array, Array]:
    """(digits of the labels that one unit has, whether it has them), by element; for sites that are drawn."""
    digits, seen = [], []
    for site in structure.learned:
        size = math.prod(site.event_shape)
        if site.argument is None:
            digits.append(jnp.zeros(size, jnp.int32))
            seen.append(jnp.zeros(size, bool))
            continue
        value = jnp.reshape(unit.arrays[site.argument], (size, 1))
        digits.append(jnp.argmax(value == jnp.asarray(site.choices), axis=1).astype(jnp.int32))
        mask = unit.masks.get(site.argument)
        seen.append(jnp.ones(size, bool) if mask is None else jnp.reshape(mask, size))
    return jnp.concatenate(digits), jnp.concatenate(seen)
