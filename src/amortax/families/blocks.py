"""What is a distribution of very many numbers? Small blocks that follow a few numbers on top, and shared directions.

The numbers stand in sites, and sites in plates. Those outside plates are the top t; those of one element of a plate
(difficulty and discrimination of an item) are its block x_j. With ε the top standardised,

    t = m + L ε,   x_j = m_j + s_j ⊙ (y_j + U_j y_j + B_j ε),   y = own normals + W η,   U_j strictly lower triangular,

which is one normal: given t, blocks are linear-Gaussian regressions on it. η are `rank` normals that all blocks share:
what persons don't tell apart (a shift of all difficulties) moves items together. The posterior of a hierarchical
linear-Gaussian model in which persons have `rank` numbers is such a normal.

Curved, blocks follow the top in spread too (funnels), by squares of ε in mean, and their own numbers likewise follow
each other (difficulties grow as discriminations shrink); every number is skewed by itself (see `triangular`). The top
is then one such block.

With T numbers on top, blocks of k and g numbers in all, a draw and a density cost O(g (k + T + rank)), and no matrix
has g rows and columns:

    log q(v) = log q(t) + log N(y; 0, I + W Wᵀ) - log |dx/dy|,

by the matrix inversion and determinant lemmas.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._linalg import LARGEST, cholesky, solve_lower
from .._recipe import Recipe
from .._types import Context
from .base import AbstractSingle, Component, Conditioner, bounded_log_scale, standard_log_prob
from .layout import Group, Place, groups_of
from .normal import FullNormal, full
from .triangular import Map, below, variances


@dataclasses.dataclass(frozen=True)
class blocks(Recipe, slots=("family", "shared_family")):
    """Recipe of `Blocks`.

    **Arguments:**

    - `rank`: directions that all blocks share; at most as many as there are numbers in blocks.
    - `curved`: whether numbers may be skewed, and follow each other by curves and in spread; three times the cost.
    - `layout`: for every site its plates, the shape of its unconstrained value and the axes that lie along the plates;
      None: filled in from the model by `amortize`.
    - `width`, `depth`: hidden layers between a context and the parameters.

    **Raises** `GuideError` when built without a layout, or with one of another size.
    """

    rank: int = 4
    curved: bool = False
    width: int = 64
    depth: int | None = None
    layout: tuple[Place, ...] | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Blocks:
        """The family on R^size."""
        first, *groups = self._groups(size)
        loose = size - first.width
        rank = min(self.rank, loose)
        top_key, loose_key, start = jax.random.split(key, 3)
        top = self._top(first.width).build(first.width, context_sizes, key=top_key) if first.width else None
        inside = sum(below(group.width) * group.rows for group in groups)
        kinds = 3 if self.curved else 1
        count = (2 + rank + self.curved + kinds * first.width) * loose + kinds * inside
        parameters = Conditioner(count, loose, context_sizes, self.width, self.depth or 0, key=loose_key)
        family = Blocks(size, rank, self.curved, (first, *groups), top, parameters)
        # Directions at zero would be a saddle point: their gradient vanishes together with them.
        directions = 0.05 * family.reach * jax.random.normal(start, (rank * loose,))
        offset = parameters.offset.at[2 * loose : (2 + rank) * loose].set(directions)
        return eqx.tree_at(lambda f: f.parameters.offset, family, offset)

    def _top(self, width: int) -> Recipe:
        """Curved, one block of its own where that is small."""
        if self.curved and width <= LARGEST:
            return dataclasses.replace(self, rank=0, layout=((("top",), (1, width), (0,)),))
        return full(width=self.width, depth=self.depth)

    def _groups(self, size: int) -> tuple[Group, ...]:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 0:
            raise GuideError(f"am.blocks(rank={self.rank}): rank must be a whole number from 0")
        if self.layout is None:
            raise GuideError(
                "am.blocks() needs the sites and plates of a model to know which numbers belong together; give it as "
                "family= or shared_family= to am.amortize, or give layout=[(plates, shape, axes of the plates), ...]"
            )
        if (total := sum(math.prod(shape) for _, shape, _ in self.layout)) != size:
            raise GuideError(f"am.blocks(layout=...) has {total} numbers but stands for {size}; leave layout out")
        return groups_of(self.layout)


class Follow(NamedTuple):
    """How one group of blocks follows the top and itself: one array each straight, three curved."""

    loads: list[Array]  # B, and curved those of ε² - 1 and of the spread: (T, width, rows)
    skew: Array | None  # free σ: (width, rows)
    inside: tuple[Array, ...]  # U, likewise: (entries, rows)


class Blocks(AbstractSingle):
    """A family of the top, and blocks of normals that follow it."""

    size: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    curved: bool = eqx.field(static=True)
    groups: tuple[Group, ...] = eqx.field(static=True)  # the first is the top
    top: FullNormal | Blocks | None
    parameters: Conditioner  # of all blocks, group by group
    cheap_log_prob: ClassVar[bool] = True

    @property
    def noise_size(self) -> int:
        """What the top takes, one normal for every number of blocks and one for every shared direction."""
        return self._top_noise + self._loose + self.rank

    @property
    def _top_noise(self) -> int:
        return 0 if self.top is None else self.top.noise_size

    @property
    def _loose(self) -> int:
        """Numbers in blocks."""
        return self.size - self.groups[0].width

    @property
    def reach(self) -> float:
        """Free numbers per entry of W, B and U: a step of the optimizer moves a row as far as its scale."""
        widest = max((group.width for group in self.groups[1:]), default=0)
        return math.sqrt(self.groups[0].width + self.rank + widest)

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One reparametrised draw and its log density in nats."""
        for_top, own, common = _cut(noise, [self._top_noise, self._loose, self.rank])
        top, log_top = jnp.zeros(0), jnp.zeros(())
        if self.top is not None:
            top, log_top = self.top.sample_and_log_prob(for_top, component, context)
        mean, log_scale, shared, follow = self._split(context)
        y = own + common @ shared
        maps = self._maps(self._standard_top(top, context), follow)
        moved = [one.forward(rows) for one, rows in zip(maps, self._rows(y), strict=True)]
        value = mean + jnp.exp(log_scale) * _joined([z for z, _ in moved])
        log_det = jnp.sum(log_scale) + sum(log_slope for _, log_slope in moved)
        return self._assemble([top[:, None], *self._rows(value)]), log_top + _density(y, shared) - log_det

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        top, _, y, shared, log_det = self._noises(value, context)
        log_top = jnp.zeros(()) if self.top is None else self.top.log_prob(top, context)
        return log_top + _density(y, shared) - log_det

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Those of the top, `m`, and the spread of the straight part of the maps."""
        mean, log_scale, shared, follow = self._split(context)
        top_mean, top_sd = (jnp.zeros(0), jnp.zeros(0)) if self.top is None else self.top.mean_and_sd(context)
        rows = zip(follow, self._rows(shared), strict=True)
        squares = [variances(one.inside[0], one.loads[0], common) for one, common in rows]
        sd = jnp.exp(log_scale) * jnp.sqrt(_joined(squares))
        means, sds = (self._assemble([x[:, None], *self._rows(y)]) for x, y in ((top_mean, mean), (top_sd, sd)))
        return means, sds

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """The top as its family does, and `y` divided by its standard deviations."""
        _, standard, y, shared, _ = self._noises(value, context)
        return jnp.concatenate([standard, y / jnp.sqrt(1.0 + jnp.sum(shared**2, axis=0))])

    def _noises(self, value: Array, context: Context) -> tuple[Array, Array, Array, Array, Array]:
        """The top, `ε`, `y` of all blocks, `W`, and the log determinant of the blocks' map there."""
        first, *others = self.groups
        top = first.take(value)[:, 0] if self.top is not None else jnp.zeros(0)
        standard = self._standard_top(top, context)
        mean, log_scale, shared, follow = self._split(context)
        scaled = (_joined([group.take(value) for group in others]) - mean) * jnp.exp(-log_scale)
        maps = self._maps(standard, follow)
        found = [one.inverse(rows) for one, rows in zip(maps, self._rows(scaled), strict=True)]
        log_det = jnp.sum(log_scale) + sum(log_slope for _, log_slope in found)
        return top, standard, _joined([y for y, _ in found]), shared, log_det

    def _standard_top(self, top: Array, context: Context) -> Array:
        return top if self.top is None else self.top.standardize(top, context)

    def _split(self, context: Context) -> tuple[Array, Array, Array, list[Follow]]:
        """`m`, `log s`, `W`, and how every group follows."""
        loose, on_top, kinds = self._loose, self.groups[0].width, 3 if self.curved else 1
        sizes = [loose, loose, self.rank * loose, *[loose] * self.curved, *[on_top * loose] * kinds]
        sizes += [below(group.width) * group.rows for group in self.groups[1:]] * kinds
        mean, log_scale, shared, *rest = _cut(self.parameters(context), sizes)
        rest = [numbers / self.reach for numbers in rest]
        skew = self._rows(rest.pop(0)) if self.curved else [None] * len(self.groups)
        loads = [self._rows(numbers.reshape(on_top, loose)) for numbers in rest[:kinds]]
        found, groups = [], self.groups[1:]
        for i, group in enumerate(groups):
            entries = rest[kinds + i :: len(groups)]
            inside = tuple(numbers.reshape(below(group.width), group.rows) for numbers in entries)
            found.append(Follow([load[i] for load in loads], skew[i], inside))
        return mean, bounded_log_scale(log_scale), shared.reshape(self.rank, loose) / self.reach, found

    def _maps(self, standard: Float[Array, " top"], follow: list[Follow]) -> list[Map]:
        """The maps of all groups given the top standardised."""
        found = []
        for loads, skew, inside in follow:
            shift, stretch = jnp.tensordot(standard, loads[0], 1), None
            if self.curved:
                shift += jnp.tensordot(standard**2 - 1.0, loads[1], 1)
                stretch = jnp.tensordot(standard, loads[2], 1)
            found.append(Map(shift, stretch, skew, inside))
        return found

    def _rows(self, loose: Float[Array, "*more loose"]) -> list[Array]:
        """All blocks' numbers, group by group, as (*more, width, rows); rows stand last, where loops are fast."""
        blocks = self.groups[1:]
        ends = list(itertools.accumulate(group.width * group.rows for group in blocks))
        parts = jnp.split(loose, ends[:-1], axis=-1) if blocks else []
        return [part.reshape(*loose.shape[:-1], g.width, g.rows) for part, g in zip(parts, blocks, strict=True)]

    def _assemble(self, each: Sequence[Array]) -> Array:
        """Numbers (width, rows) of the top and of every group in the order of the sites."""
        found = {}
        for group, numbers in zip(self.groups, each, strict=True):
            widths = [part.width for part in group.parts]
            found |= {p.start: p.flat(own) for p, own in zip(group.parts, _cut(numbers, widths), strict=True)}
        return jnp.concatenate([found[start] for start in sorted(found)])


def _density(y: Float[Array, " loose"], shared: Float[Array, "rank loose"]) -> Float[Array, ""]:
    """Log density of `y`, a normal with covariance `I + W Wᵀ`."""
    rank = shared.shape[0]
    if not rank:
        return standard_log_prob(y)
    factor = cholesky(jnp.eye(rank) + shared @ shared.T)
    explained = jnp.sum(solve_lower(factor, shared @ y) ** 2)
    return standard_log_prob(y) + 0.5 * explained - jnp.sum(jnp.log(jnp.diagonal(factor)))


def _joined(rows: Sequence[Array]) -> Float[Array, " loose"]:
    """Numbers (width, rows) of all groups, one after the other."""
    return jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, rows)])


def _cut(numbers: Array, sizes: Sequence[int]) -> list[Array]:
    """Parts of these sizes along the first axis."""
    ends = list(itertools.accumulate(sizes))
    return [numbers[end - size : end] for end, size in zip(ends, sizes, strict=True)]
