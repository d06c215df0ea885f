"""What is a normal of very many dimensions? Small blocks that follow a few numbers on top, and a few shared directions.

The numbers stand in sites, and sites in plates. Those outside plates are the top block t, those of one element of a
plate (difficulty and discrimination of an item) are its block x_j:

    t = m + S U ε,                               U unit lower triangular, S diagonal: any covariance
    x_j = m_j + S_j U_j (ε_j + B_j ε + W_j η),   U_j unit lower triangular and small

The regression B_j on the top's own noise lets a block follow the hyperparameters: given t, mean and spread of items are
those of a linear-Gaussian regression. η are `rank` more normals that all blocks share: what persons don't tell apart (a
shift of all difficulties) moves items together. With T numbers on top, blocks of k and g numbers in all, a draw and a
density cost O(g (k + T + rank)), and no matrix has g rows and columns:

    log q(v) = log N(ε) + log N(y; 0, I + W Wᵀ) - Σ log S,     y_j = U_j⁻¹ S_j⁻¹ (x_j - m_j) - B_j ε,

by the matrix inversion and determinant lemmas. The precision given η is an arrow: blocks on the diagonal, and the rows
and columns of t. The posterior of a hierarchical linear-Gaussian model in which persons have `rank` numbers is such a
normal.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._linalg import cholesky, solve_lower
from .._recipe import Recipe
from .._types import Context
from .base import AbstractSingle, Component, Conditioner, bounded_log_scale, standard_log_prob, triangular
from .layout import Group, Place, groups_of


@dataclasses.dataclass(frozen=True)
class blocks(Recipe):
    """Recipe of `Blocks` with `rank` directions that all blocks share, at most as many as there are numbers in them.

    `layout` has for every site its plates, the shape of its unconstrained value and the axes that lie along the plates;
    None: filled in from the model by `amortize`. `depth` hidden layers of `width` between a context and the parameters.

    **Raises** `GuideError` when built without a layout, or with one of another size.
    """

    rank: int = 4
    width: int = 64
    depth: int | None = None
    layout: tuple[Place, ...] | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Blocks:
        """The family on R^size."""
        groups = self._groups(size)
        top, loose = groups[0].width, size - groups[0].width
        rank = min(self.rank, loose)
        inside = [below(group.width) * group.rows for group in groups]
        count = 2 * size + sum(inside) + (top + rank) * loose
        conditioner, start = jax.random.split(key)
        parameters = Conditioner(count, size, context_sizes, self.width, self.depth or 0, key=conditioner)
        family = Blocks(size, top, rank, groups, parameters)
        # Directions at zero would be a saddle point: their gradient vanishes together with them.
        directions = 0.05 * family.reach * jax.random.normal(start, (rank * loose,))
        first = 2 * size + inside[0] + top * loose
        offset = parameters.offset.at[first : first + len(directions)].set(directions)
        return eqx.tree_at(lambda f: f.parameters.offset, family, offset)

    def _groups(self, size: int) -> tuple[Group, ...]:
        if self.rank < 0:
            raise GuideError(f"am.blocks(rank={self.rank}): rank must be a whole number from 0")
        if self.layout is None:
            raise GuideError(
                "am.blocks() needs the sites and plates of a model to know which numbers belong together; give it as "
                "family= or shared_family= to am.amortize, or give layout=[(plates, shape, axes of the plates), ...]"
            )
        if (total := sum(math.prod(shape) for _, shape, _ in self.layout)) != size:
            raise GuideError(f"am.blocks(layout=...) has {total} numbers but stands for {size}; leave layout out")
        return groups_of(self.layout)


class Blocks(AbstractSingle):
    """A normal whose blocks follow the one on top, with a few directions in which all of them move together."""

    size: int = eqx.field(static=True)
    on_top: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    groups: tuple[Group, ...] = eqx.field(static=True)  # the first is the top
    parameters: Conditioner
    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """One normal for every number and one for every shared direction."""
        return self.size + self.rank

    @property
    def reach(self) -> float:
        """Free numbers per entry of U, B and W: a step of the optimizer moves a row as far as its scale."""
        return math.sqrt(self.on_top + self.rank + max((group.width for group in self.groups[1:]), default=0))

    def _split(self, context: Context) -> tuple[Array, Array, Array, Array, list[Array]]:
        """`m`, `log S`, `U` of the top, rows of B and W for all blocks, entries of their `U` below the diagonal."""
        loose, blocks = self.size - self.on_top, self.groups[1:]
        sizes = [self.size, self.size, below(self.on_top), (self.on_top + self.rank) * loose]
        sizes += [below(group.width) * group.rows for group in blocks]
        mean, log_scale, top, loads, *entries = _cut(self.parameters(context), sizes)
        unit = jnp.eye(self.on_top) + triangular(top, self.on_top) / self.reach
        loads = loads.reshape(self.on_top + self.rank, loose) / self.reach
        inside = [x.reshape(below(g.width), g.rows) / self.reach for x, g in zip(entries, blocks, strict=True)]
        return mean, bounded_log_scale(log_scale), unit, loads, inside

    def _rows(self, loose: Float[Array, " loose"]) -> list[Array]:
        """All blocks' numbers, group by group, as (width, rows)."""
        blocks = self.groups[1:]
        parts = _cut(loose, [group.width * group.rows for group in blocks])
        return [part.reshape(group.width, group.rows) for part, group in zip(parts, blocks, strict=True)]

    def _assemble(self, each: Sequence[Array]) -> Array:
        """Numbers of the top and of every group in the order of the sites."""
        found = {}
        for group, numbers in zip(self.groups, each, strict=True):
            widths = [part.width for part in group.parts]
            found |= {p.start: p.flat(own) for p, own in zip(group.parts, _cut(numbers, widths), strict=True)}
        return jnp.concatenate([found[start] for start in sorted(found)])

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        mean, log_scale, unit, loads, inside = self._split(context)
        top, own, common = jnp.split(noise, [self.on_top, self.size])
        rest = own + common @ loads[self.on_top :]
        rows = self._rows(rest + top @ loads[: self.on_top])
        scaled = [_multiply(entries, y) for entries, y in zip(inside, rows, strict=True)]
        value = mean + jnp.exp(log_scale) * self._assemble([(unit @ top)[:, None], *scaled])
        return value, self._density(top, rest, loads) - jnp.sum(log_scale)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        top, rest, loads, log_scale = self._noises(value, context)
        return self._density(top, rest, loads) - jnp.sum(log_scale)

    def _noises(self, value: Array, context: Context) -> tuple[Array, Array, Array, Array]:
        """`ε` of the top, `y` of all blocks, rows of B and W, `log S`."""
        mean, log_scale, unit, loads, inside = self._split(context)
        scaled = (value - mean) * jnp.exp(-log_scale)
        first, *others = self.groups
        top = solve_lower(unit, first.take(scaled)[:, 0]) if self.on_top else jnp.zeros(0)
        rows = [_solve(entries, group.take(scaled)) for entries, group in zip(inside, others, strict=True)]
        rest = jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, rows)]) - top @ loads[: self.on_top]
        return top, rest, loads, log_scale

    def _density(self, top: Array, rest: Array, loads: Array) -> Array:
        """Log density of `ε` and `y`."""
        independent = standard_log_prob(top) + standard_log_prob(rest)
        if not self.rank:
            return independent
        shared = loads[self.on_top :]
        factor = cholesky(jnp.eye(self.rank) + shared @ shared.T)
        explained = jnp.sum(solve_lower(factor, shared @ rest) ** 2)
        return independent + 0.5 * explained - jnp.sum(jnp.log(jnp.diagonal(factor)))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """`m`, and the root of the diagonal of the covariance."""
        mean, log_scale, unit, loads, inside = self._split(context)
        widths = [group.width for group in self.groups[1:]]
        total = [1.0 + _squares(entries, width) for entries, width in zip(inside, widths, strict=True)]
        for load in loads:
            rows = zip(inside, self._rows(load), strict=True)
            total = [found + _multiply(entries, y) ** 2 for found, (entries, y) in zip(total, rows, strict=True)]
        squares = self._assemble([jnp.sum(unit**2, axis=1)[:, None], *total])
        return mean, jnp.exp(log_scale) * jnp.sqrt(squares)

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """`ε`, and `y` divided by its marginal standard deviations."""
        top, rest, loads, _ = self._noises(value, context)
        return jnp.concatenate([top, rest / jnp.sqrt(1.0 + jnp.sum(loads[self.on_top :] ** 2, axis=0))])


def _cut(numbers: Array, sizes: Sequence[int]) -> list[Array]:
    """Parts of these sizes along the first axis."""
    ends = list(itertools.accumulate(sizes))
    return [numbers[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def below(width: int) -> int:
    """Entries below the diagonal."""
    return width * (width - 1) // 2


def _multiply(entries: Float[Array, "entries rows"], y: Float[Array, "width rows"]) -> Float[Array, "width rows"]:
    """`U y` in every row, by loops over the width; entries stand row by row of U."""
    found, first = [], 0
    for i in range(y.shape[0]):
        found.append(sum((entries[first + j] * y[j] for j in range(i)), y[i]))
        first += i
    return jnp.stack(found)


def _solve(entries: Float[Array, "entries rows"], z: Float[Array, "width rows"]) -> Float[Array, "width rows"]:
    """`U⁻¹ z` in every row."""
    found, first = [], 0
    for i in range(z.shape[0]):
        found.append(z[i] - sum((entries[first + j] * found[j] for j in range(i)), jnp.zeros(())))
        first += i
    return jnp.stack(found)


def _squares(entries: Float[Array, "entries rows"], width: int) -> Float[Array, "width rows"]:
    """Sums over the rows of U of its squared entries below the diagonal."""
    ends = [below(i) for i in range(width + 1)]
    return jnp.stack([jnp.sum(entries[ends[i] : ends[i + 1]] ** 2, axis=0) for i in range(width)])
