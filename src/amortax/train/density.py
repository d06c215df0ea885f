"""How is a density fitted to numbers alone? A family without context, by maximum likelihood.

    maximise mean_i log q((x_i - m) / s) - Σ log s,     m, s: such that the training rows have the family's first spread

Adam with a cosine step size on minibatches in one compiled loop per block; a share of the rows is held out, the
parameters that serve it best are kept, and fitting stops when it has gained nothing for a while.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .._errors import DataError, FitError
from .._recipe import Recipe
from .._types import Fixed, PyTree, check_key, trainable, whole_number
from ..families.base import AbstractFamily, draw_noise

BLOCK = 100  # steps between looks at the held-out rows
PATIENCE = 10  # blocks without a gain before fitting stops
HELD_OUT = 0.1  # share of the rows, at most 10,000 of them
FEWEST = 20  # rows
RESOLVED = 1e-5  # smallest spread, as a share of the largest number: about 100 steps of float32
ADAM = optax.chain(optax.clip_by_global_norm(5.0), optax.scale_by_adam(b2=0.99))


class Density(eqx.Module):
    """A density on R^d, fitted by `fit_density`."""

    family: AbstractFamily
    whitening: Fixed  # {"center": (d,), "scale": (d,)}
    held_out_log_prob: float = eqx.field(static=True)  # mean over rows that were not fitted to, in nats

    def log_prob(self, values: Float[Any, "*rows d"]) -> Float[Array, "*rows"]:
        """Log densities in nats of `values` of shape (d,) or (rows, d).

        **Raises** `DataError` if the last axis is not d long.
        """
        values = jnp.asarray(values, jnp.float32)
        if values.ndim not in (1, 2) or values.shape[-1] != self.family.size:
            expected = f"(rows, {self.family.size}) or ({self.family.size},)"
            raise DataError(f"log_prob: values have shape {values.shape}; expected {expected}")
        return _log_prob(self.family, self.whitening, values)

    def sample(self, num: int, *, key: Array) -> Float[Array, "num d"]:
        """`num` independent draws.

        **Raises** `DataError` if `num` is no whole number from 1 or `key` no key.
        """
        check_key(key)
        return _sample(self.family, self.whitening, whole_number("sample: num", num), key)


def fit_density(
    data: Any,
    family: Recipe,
    *,
    key: Array,
    num_steps: int = 3000,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
) -> Density:
    """Fits `family` to the rows of `data`.

    **Arguments:**

    - `data`: numbers of shape (rows, d), or (rows,) for d = 1.
    - `family`: a recipe, `am.maf(4, am.spline())` or `am.mixture(am.full())`; those whose densities are cheap are
      quick: not `am.iaf`, not `am.planar`.
    - `num_steps`: most steps of `batch_size` rows; fitting stops before when the held-out tenth gains nothing.

    **Returns** a `Density` with `log_prob(values)` and `sample(num, key=...)` in the units of `data`.

    **Raises** `DataError` for numbers that can't be used, `GuideError` for a family that doesn't fit d, `FitError`
    if no step gave a finite density.
    """
    check_key(key)
    rows = _checked(data)
    num_steps, batch_size = whole_number("num_steps", num_steps), whole_number("batch_size", batch_size)
    build_key, split_key, step_key = jax.random.split(key, 3)
    order = np.random.default_rng(np.asarray(jax.random.key_data(split_key))).permutation(len(rows))
    count = min(max(int(HELD_OUT * len(rows)), 1), 10_000)
    held_out, training = rows[order[:count]], rows[order[count:]]
    built = eqx.filter_jit(_build)(family, rows.shape[1], build_key)
    # In these units the rows have the spread with which the family starts.
    mean, sd = (np.asarray(x, np.float64) for x in built.mean_and_sd(()))
    scale = training.std(axis=0) / sd
    center = training.mean(axis=0) - scale * mean
    whitening = Fixed({"center": jnp.asarray(center, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)})
    training, held_out = (jnp.asarray((x - center) / scale, jnp.float32) for x in (training, held_out))
    rates = _step_sizes(num_steps, learning_rate)
    best, reached = _climb(built, rates, training, held_out, step_key, batch_size)
    return Density(best, whitening, reached - float(np.log(scale).sum()))


def _build(recipe: Recipe, size: int, key: Array) -> AbstractFamily:
    return recipe.build(size, (), key=key)


def _step_sizes(num_steps: int, largest: float) -> np.ndarray:
    """Linear warm-up, then a cosine to a hundredth."""
    steps = np.arange(num_steps)
    warm = np.minimum((steps + 1) / min(100, max(num_steps // 10, 1)), 1.0)
    return largest * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * steps / num_steps)))


def _climb(
    family: AbstractFamily, rates: np.ndarray, training: Array, held_out: Array, key: Array, batch_size: int
) -> tuple[AbstractFamily, float]:
    """The family at its best on the held-out rows, and its mean log density there."""
    params, rest = eqx.partition(family, trainable(family))
    state = ADAM.init(params)
    best, reached, since = params, -np.inf, 0
    for start in range(0, len(rates), BLOCK):
        steps = jnp.asarray(min(BLOCK, len(rates) - start))
        sizes = jnp.asarray(np.resize(rates[start : start + BLOCK], BLOCK), jnp.float32)
        block_key = jax.random.fold_in(key, start)
        params, state = _run_block(params, rest, state, training, block_key, (sizes, steps), batch_size)
        now = float(_mean_log_prob(params, rest, held_out))
        best, reached, since = (params, now, 0) if now > reached else (best, reached, since + 1)
        if since == PATIENCE:
            break
    if not np.isfinite(reached):
        raise FitError("am.fit_density: no step gave a finite density of the held-out rows; lower learning_rate")
    return eqx.combine(best, rest), reached


@eqx.filter_jit
def _run_block(
    params: PyTree,
    rest: PyTree,
    state: Any,
    training: Array,
    key: Array,
    steps: tuple[Array, Array],
    batch_size: int,
) -> tuple[PyTree, Any]:
    """Updates with `steps` = (step sizes, how many); one whose gradient is not finite changes nothing."""
    size = min(batch_size, training.shape[0])

    def step(i: Array | int, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, i), (size,), 0, training.shape[0])
        loss, gradient = jax.value_and_grad(lambda p: -_mean_log_prob(p, rest, training[rows]))(params)
        updates, moved = ADAM.update(gradient, state, params)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
        after = jax.tree.map(lambda p, u: p - steps[0][i] * u, params, updates)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), (after, moved), (params, state))

    return jax.lax.fori_loop(0, steps[1], step, (params, state))


@eqx.filter_jit
def _mean_log_prob(params: PyTree, rest: PyTree, rows: Array) -> Array:
    family = eqx.combine(params, rest)
    return jnp.mean(jax.vmap(lambda row: family.log_prob(row, ()))(rows))


@eqx.filter_jit
def _log_prob(family: AbstractFamily, whitening: Fixed, values: Array) -> Array:
    center, scale = whitening.value["center"], whitening.value["scale"]
    free = ((values - center) / scale).reshape(-1, family.size)
    log_prob = jax.vmap(lambda row: family.log_prob(row, ()))(free) - jnp.sum(jnp.log(scale))
    return log_prob.reshape(values.shape[:-1])


@eqx.filter_jit
def _sample(family: AbstractFamily, whitening: Fixed, num: int, key: Array) -> Array:
    noise_key, component_key = jax.random.split(key)
    components = jax.random.categorical(component_key, family.log_shares(()), shape=(num,))
    draw = jax.vmap(lambda noise, component: family.sample_and_log_prob(noise, component, ())[0])
    free = draw(draw_noise(noise_key, family, (num,)), components)
    return whitening.value["center"] + whitening.value["scale"] * free


def _checked(data: Any) -> np.ndarray:
    """`data` as float64 (rows, d)."""
    try:
        rows = np.asarray(data, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"am.fit_density: data are not numbers of one shape ({error}); give (rows, d)") from None
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"am.fit_density: data have shape {rows.shape}; expected (rows, d) or (rows,)")
    if len(rows) < FEWEST:
        raise DataError(f"am.fit_density: data have {len(rows)} rows; a density needs at least {FEWEST}")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"am.fit_density: data have {len(bad)} numbers that are not finite, the first {rows[row, column]} in row "
            f"{row}, column {column}; drop or fill such rows"
        )
    _check_spread(rows)
    return rows


def _check_spread(rows: np.ndarray) -> None:
    """Columns that vary, and by more than the float32 of draws and densities resolves."""
    with np.errstate(all="ignore"):
        spread, largest = rows.std(axis=0), np.abs(rows).max(axis=0)
    for column in np.flatnonzero(spread <= RESOLVED * largest):
        if np.ptp(rows[:, column]) == 0:
            raise DataError(f"am.fit_density: column {column} of data is constant and has no density; leave it out")
        raise DataError(
            f"am.fit_density: column {column} of data varies by {spread[column]:.3g} around numbers up to "
            f"{largest[column]:.3g}, which float32 does not resolve; subtract a constant first"
        )
