"""What is q where a unit's elements have numbers of their own? A family for every level, told what was drawn above.

    q(w) = Π_levels Π_elements q_level(w_m | context_m, w_ancestors, step_m, log scale_m, globals)

Every element of a level has the same family and, but for its context, the same parameters, so that a unit may have any
number of them. What is padding has density one. The numbers stand level by level, element by element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import Context
from .base import AbstractFamily, AbstractSingle, Component
from .normal import diagonal, full

FULL = 8  # largest number of an element for which a full normal is chosen


@dataclasses.dataclass(frozen=True)
class nested(Recipe, slots=("family",)):
    """Recipe of `Nested`: q of units whose elements have numbers of their own, element by element.

    **Arguments**: `family` recipe of q of one element, of every level; None: full normals up to 8 numbers, else
    diagonal ones.

    Chosen where inner plates are ragged, or a unit has many numbers. Elements must be independent given what stands
    above them. A dense q of a whole unit, of fixed plates, is any other family.
    """

    family: Recipe | None = None

    def build(
        self, widths: Sequence[int], ancestors: Sequence[tuple[int, ...]], told_sizes: Sequence[int], *, key: Array
    ) -> Nested:
        """The family of levels with so many numbers an element; `told_sizes` as those of `heads.NestedNewton`."""
        keys, families = jax.random.split(key, len(widths)), []
        shared = tuple(told_sizes[3 * len(widths) :])
        for number, (width, own) in enumerate(zip(widths, keys, strict=True)):
            recipe = self.family or (full(depth=1) if width <= FULL else diagonal(depth=1))
            above = (widths[a] for a in ancestors[number])
            sizes = (*told_sizes[3 * number : 3 * number + 3], *above, *shared)
            built = recipe.build(width, sizes, key=own)
            if built.num_components > 1:
                raise GuideError(
                    f"am.nested({type(recipe).__name__}): a family of several components has too many of them together "
                    "over all elements; use one with a single component, such as am.maf(2, transform=am.spline())"
                )
            families.append(built)
        return Nested(sum(widths), tuple(families), tuple(ancestors))


class Told(NamedTuple):
    """What the head says of one level: (*grid, numbers) each, and which elements are the unit's own."""

    context: Array
    step: Array
    log_scale: Array
    mask: Array


class Nested(AbstractSingle):
    """Families of one element, level by level; the context has four parts for each level, then the globals if told."""

    size: int = eqx.field(static=True)  # numbers of one element of every level
    families: tuple[AbstractFamily, ...]
    ancestors: tuple[tuple[int, ...], ...] = eqx.field(static=True)  # of every level, the levels above it

    @property
    def cheap_log_prob(self) -> bool:
        """As of its families."""
        return all(family.cheap_log_prob for family in self.families)

    @property
    def noise_size(self) -> int:
        """Of one element of every level."""
        return sum(family.noise_size for family in self.families)

    def draw_noise(self, key: Array, rows: Sequence[int], count: tuple[int, ...]) -> Float[Array, "*count noise"]:
        """Noise for so many elements of each level; that of an element doesn't change with the padding after it."""
        keys = jax.random.split(key, len(self.families))
        parts = [
            jax.random.normal(k, (*count, n, family.noise_size)).reshape(*count, -1)
            for k, n, family in zip(keys, rows, self.families, strict=True)
        ]
        return jnp.concatenate(parts, axis=-1)

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw of all elements and its log density in nats."""
        found: list[Array] = []
        total, start = jnp.zeros(()), 0
        for number, (family, told) in enumerate(self._levels(context)):
            stop = start + told.mask.size * family.noise_size
            own = noise[start:stop].reshape(told.mask.size, family.noise_size)

            def draw(noise: Array, seen: Context, q: AbstractFamily = family) -> tuple[Array, Array]:
                return q.sample_and_log_prob(noise, component, seen)

            value, log_q = self._over(draw, own, number, found, context)
            found.append(value.reshape(*told.mask.shape, -1))
            total, start = total + _of_own(log_q, told), stop
        return _flat(found), total

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of all numbers of the unit's own elements, in nats."""
        parts, total = self._split(value, context), jnp.zeros(())
        for number, (family, told) in enumerate(self._levels(context)):
            rows = parts[number].reshape(told.mask.size, -1)
            total = total + _of_own(self._over(family.log_prob, rows, number, parts, context), told)
        return total

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of every element where what stands above it is at its mean."""
        means: list[Array] = []
        sds: list[Array] = []
        for number, (family, told) in enumerate(self._levels(context)):
            rows = jnp.zeros((told.mask.size, 0))
            mean, sd = self._over(lambda _, seen, q=family: q.mean_and_sd(seen), rows, number, means, context)
            means.append(mean.reshape(*told.mask.shape, -1))
            sds.append(sd)
        return _flat(means), _flat(sds)

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """As the families do, element by element."""
        parts = self._split(value, context)
        found = [
            self._over(family.standardize, parts[number].reshape(told.mask.size, -1), number, parts, context)
            for number, (family, told) in enumerate(self._levels(context))
        ]
        return _flat(found)

    def _levels(self, context: Context) -> list[tuple[AbstractFamily, Told]]:
        parts = [Told(*context[4 * i : 4 * i + 4]) for i in range(len(self.families))]
        return list(zip(self.families, parts, strict=True))

    def _over(
        self, function: Callable[..., Any], rows: Array, number: int, above: Sequence[Array], context: Context
    ) -> Any:
        """`function(row, context)` of every element of a level, whose ancestors have the numbers `above`."""
        told = self._levels(context)[number][1]
        parts = [told.context, told.step, told.log_scale, *(above[a] for a in self.ancestors[number])]
        grid = told.mask.shape
        seen = [jnp.broadcast_to(x, (*grid, x.shape[-1])).reshape(told.mask.size, -1) for x in parts]
        shared = context[4 * len(self.families) :]
        return jax.vmap(lambda row, *own: function(row, (*own, *shared)))(rows, *seen)

    def _split(self, value: Float[Array, " d"], context: Context) -> list[Array]:
        """The numbers of every level: (*grid, width)."""
        found, start = [], 0
        for family, told in self._levels(context):
            stop = start + told.mask.size * family.size
            found.append(value[start:stop].reshape(*told.mask.shape, family.size))
            start = stop
        return found


def _of_own(log_prob: Float[Array, " rows"], told: Told) -> Float[Array, ""]:
    """The sum over the elements that are not padding."""
    return jnp.sum(jnp.where(jnp.ravel(told.mask), log_prob, 0.0))


def _flat(parts: Sequence[Array]) -> Float[Array, " d"]:
    return jnp.concatenate([jnp.ravel(x) for x in parts])
