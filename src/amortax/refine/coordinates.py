"""In which numbers is the posterior of everything about a standard normal? Those in which the guide would be one.

Globals v and locals u_1, ..., u_N of all units are written as maps of w = (w_v, w_1, ..., w_N),

    v = m + L w_v,     u_i = T_i(w_i; v),

with m and L Lᵀ the mean and covariance of draws of q(v), and T_i the frame in which the guide places q of unit i given
v (`heads`): with a Newton head its center and factor follow the globals, so that a hierarchy has neither the funnel of
the centred form nor that of the other. Where the head's frame stands still, T_i is q's own map of noise, if it has one
and only one. The posterior of w has the log density

    log p(v, u, d) + log |dv / dw| + Σ_i log |du_i / dw_i|,

whatever the guide is like: a poor one costs time, and never exactness (Hoffman et al. 2019, arXiv 1903.03704).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import Batch, Context, Terms
from ..chunks import BYTES, bucketed, bytes_per_draw
from ..data import Units
from ..families.base import AbstractFamily, standard_log_prob
from ..families.nested import Nested
from ..guide import Guide
from ..heads import Concatenate
from ..importance import shared_draws
from ..intake import drop_full_masks, to_batch
from ..joint.joint import Joint
from ..joint.tree import own_numbers, tree_of
from ..train.groups import rows_by_length, trimmed

SHAPING_DRAWS = 2000  # of q(v), or twice as many as there are globals
DENSE = 2000  # globals up to which they are rotated, beyond which each is scaled by itself


class Group(eqx.Module):
    """Units padded alike, with their contexts; `log_prob` is theirs at w = 0, taken away to keep float32 exact."""

    batch: Batch
    contexts: Context
    log_prob: Float[Array, " units"]


class Coordinates(eqx.Module):
    """w ↔ (globals, locals), and the log density of w given all data, up to a constant."""

    joint: Joint
    guide: Guide
    center: Float[Array, " g"]
    factor: Float[Array, "g g"] | Float[Array, " g"]
    groups: tuple[Group, ...]
    pieces: int = eqx.field(static=True)  # in which a group is gone through, one after the other

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(units, numbers of each) by group."""
        return tuple((len(g.log_prob), self.joint.at(g.batch).structure.size("local")) for g in self.groups)

    @property
    def size(self) -> int:
        """Dimension of w."""
        return self.center.shape[0] + sum(n * d for n, d in self.sizes)

    def start(self, key: Array, count: int) -> Float[Array, "count size"]:
        """Where chains start: draws of q."""
        shared, _ = shared_draws(jax.random.fold_in(key, 0), self.guide, count)
        away = shared - self.center
        if self.factor.ndim == 1:
            free = away / self.factor
        else:
            free = jax.scipy.linalg.solve_triangular(self.factor, away.T, lower=True).T
        local = jax.random.normal(jax.random.fold_in(key, 1), (count, self.size - self.center.shape[0]))
        return jnp.concatenate([free, local], axis=1)

    def place(self, free: Float[Array, " size"]) -> tuple[Array, list[Array]]:
        """Globals (g,), and locals (units, d) of every group."""
        shared, parts = self._split(free)
        return shared, [
            self._over(_placed, part, shared, group)[0] for part, group in zip(parts, self.groups, strict=True)
        ]

    def own(self) -> Bool[np.ndarray, " size"]:
        """Which of the globals and locals that `place` gives, side by side, are no padding, which stands still."""
        each = [jax.vmap(lambda unit: own_numbers(self.joint.structure, unit))(g.batch) for g in self.groups]
        return np.concatenate([np.ones(self.center.shape[0], bool), *(np.asarray(x).ravel() for x in each)])

    def log_density(self, free: Float[Array, " size"]) -> Float[Array, ""]:
        """Log density of w in nats, up to a constant."""
        shared, parts = self._split(free)
        units, outside = [], jnp.zeros(())
        for part, group in zip(parts, self.groups, strict=True):
            unit, above = self._over(_density, part, shared, group)
            units.append(unit - group.log_prob)
            outside = above[0]
        return Terms(jnp.concatenate(units), outside).total()

    def _split(self, free: Array) -> tuple[Array, list[Array]]:
        ends = np.cumsum([self.center.shape[0], *(n * d for n, d in self.sizes)])[:-1]
        own, *parts = jnp.split(free, ends)
        moved = self.factor * own if self.factor.ndim == 1 else self.factor @ own
        return self.center + moved, [x.reshape(shape) for x, shape in zip(parts, self.sizes, strict=True)]

    def _over(self, function: Callable, free: Array, shared: Array, group: Group) -> tuple[Array, Array]:
        """`function` of every unit of a group, some at a time where they are many."""

        def one(free: Array, context: Context, unit: Batch) -> tuple[Array, Array]:
            return function(self, free, shared, context, unit)

        together = jax.vmap(one)
        if self.pieces == 1:
            return together(free, group.contexts, group.batch)
        count = free.shape[0]
        rows = np.minimum(np.arange(-(-count // self.pieces) * self.pieces), count - 1).reshape(self.pieces, -1)
        parts = jax.tree.map(lambda x: x[rows], (free, group.contexts, group.batch))
        found = jax.lax.map(jax.checkpoint(lambda part: together(*part)), parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

    def _frame(self, free: Array, shared: Array, context: Context, unit: Batch) -> tuple[Array, Array]:
        """One unit's locals and log |du / dw|."""
        guide = self.guide
        if guide.local is None:
            return free, jnp.zeros(())
        if through_family(guide):
            local, log_q = guide.place_local(free, 0, context, shared, unit, self.joint)
            return local, standard_log_prob(free) - log_q
        frame, _ = guide.frame_given(context, shared, unit, self.joint)
        padding = _padding(self.joint, guide, unit)
        return frame.place(free), frame.log_det - 0.5 * jnp.sum(padding * free**2)


def _placed(coordinates: Coordinates, free: Array, shared: Array, context: Context, unit: Batch) -> tuple[Array, Array]:
    return coordinates._frame(free, shared, context, unit)


def _density(
    coordinates: Coordinates, free: Array, shared: Array, context: Context, unit: Batch
) -> tuple[Array, Array]:
    local, log_det = coordinates._frame(free, shared, context, unit)
    terms = coordinates.joint.unit_log_prob(local, shared, unit)
    return terms.unit + log_det, terms.shared


def bijective(family: AbstractFamily) -> bool:
    """Whether a draw of the family is an invertible map of as many standard normals as it has numbers."""
    return family.num_components == 1 and family.noise_size == family.size


def through_family(guide: Guide) -> bool:
    """Whether locals are q's own map of noise: where the frame does not follow the globals by itself."""
    assert guide.local is not None
    return (guide.head is None or isinstance(guide.head, Concatenate)) and bijective(guide.local.family)


def _padding(joint: Joint, guide: Guide, unit: Batch) -> Float[Array, " d"]:
    """0 for the numbers of a unit's own elements, 1 for those of padding, in the order of its frame."""
    assert guide.local is not None
    own = own_numbers(joint.structure, unit)
    if isinstance(guide.local.family, Nested):
        tree = tree_of(joint.structure.at(unit))
        own = tree.by_level(tree.split(own))
    return 1.0 - own


def coordinates_of(
    joint: Joint, guide: Guide, training: Units, chains: int, key: Array
) -> tuple[Coordinates, np.ndarray]:
    """The coordinates, and for every unit its place among the units of the groups, one after the other."""
    center, factor = _shape(guide, key)
    whole = drop_full_masks(to_batch(bucketed(training)), joint.structure)
    split = bool(whole.lengths) and not joint.structure.stretches
    rows = rows_by_length(whole) if split else [np.arange(len(training))]
    groups = []
    for chosen in rows:
        batch = jax.tree.map(jnp.asarray, trimmed(whole, chosen) if split else whole)
        groups.append(Group(batch, _encode(guide, batch), jnp.zeros(len(chosen))))
    pieces = max(1, -(-chains * len(training) * bytes_per_draw(training, joint.structure) // BYTES))
    found = Coordinates(joint, guide, center, factor, tuple(groups), min(pieces, *map(len, rows)))
    return _centred(found), np.argsort(np.concatenate(rows))


@eqx.filter_jit
def _encode(guide: Guide, batch: Batch) -> Context:
    return guide.encode(batch)


@eqx.filter_jit
def _centred(coordinates: Coordinates) -> Coordinates:
    """With the log density of every unit at w = 0 taken away."""
    shared, parts = coordinates._split(jnp.zeros(coordinates.size))
    found = []
    for part, group in zip(parts, coordinates.groups, strict=True):
        unit, _ = coordinates._over(_density, part, shared, group)
        found.append(jnp.where(jnp.isfinite(unit), unit, 0.0))
    return eqx.tree_at(lambda c: [g.log_prob for g in c.groups], coordinates, found)


def _shape(guide: Guide, key: Array) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance of draws of q(v); sds where there are too many for a covariance."""
    if guide.shared is None:
        return jnp.zeros(0), jnp.zeros(0)
    size = guide.shared.family.size
    draws, _ = shared_draws(key, guide, max(SHAPING_DRAWS, 2 * size) if size <= DENSE else SHAPING_DRAWS)
    return _spread(np.asarray(draws, np.float64))


def _spread(draws: np.ndarray) -> tuple[Array, Array]:
    """Mean, and factor of the covariance or sds, of draws (n, g)."""
    found, size = draws[np.all(np.isfinite(draws), axis=1)], draws.shape[1]
    center, sd = found.mean(axis=0), found.std(axis=0)
    if size > DENSE:
        return jnp.asarray(center, jnp.float32), jnp.asarray(sd, jnp.float32)
    covariance = np.cov(found.T).reshape(size, size) + 1e-6 * np.diag(sd**2)
    return jnp.asarray(center, jnp.float32), jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)


def reshaped(coordinates: Coordinates, shared: np.ndarray) -> Coordinates:
    """The same with globals placed by the mean and covariance of other draws (n, g) of them."""
    if len(shared) <= 2 * shared.shape[1] or not np.all(shared.std(axis=0) > 0):
        return coordinates
    return _centred(eqx.tree_at(lambda c: (c.center, c.factor), coordinates, _spread(np.asarray(shared, np.float64))))
