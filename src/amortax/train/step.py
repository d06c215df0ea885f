"""What is one training step? Gradient, clipped update, roll-back if anything is not finite; many steps to a block.

A block is one compiled loop whose trip count is data, so that neither another number of steps nor a second `fit` of
equal shapes compiles again. Floats leave the device only between blocks.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._types import Batch, PyTree, trainable
from ..guide import Guide
from ..joint.joint import Joint
from ..objectives.base import AbstractObjective, Minibatch
from ..objectives.estimators import local_draws
from .rows import gather, map_rows, renumbered, scatter

MANY_PARAMS, APART = 50_000, 10  # beyond so many, adding them up at each step costs, and one step in ten is averaged


class State(eqx.Module):
    """All that a step changes; donated from block to block."""

    params: PyTree  # trainable part of (joint, guide)
    optimizer: Any
    key: Array
    step: Int[Array, ""]


class Setting(eqx.Module):
    """All that stays: the untrained part of (joint, guide), the data if it is resident, and what to do."""

    rest: PyTree
    objective: AbstractObjective
    optimizer: optax.GradientTransformationExtraArgs = eqx.field(static=True)
    data: tuple[Batch, ...] | None  # groups of units, each padded to its own length
    num_units: Array
    safe_updates: bool = eqx.field(static=True, default=False)  # finite wherever gradients are: Adam's; saves a pass
    by_rows: bool = eqx.field(static=True, default=False)  # units have own parameters, and a step only its units' rows


class BlockResult(eqx.Module):
    """Of every step of the block (entries beyond the trip count are zero)."""

    elbo_per_unit: Float[Array, " steps"]
    finite: Array
    sum_of_params: PyTree  # over `num_summed` steps of the block, evenly apart
    num_summed: Int[Array, ""]


def split_trainable(joint: Joint, guide: Guide) -> tuple[PyTree, PyTree]:
    """(trained arrays, everything else) of the pair."""
    pair = (joint, guide)
    return eqx.partition(pair, trainable(pair))


def take_step(setting: Setting, state: State, groups: tuple[Batch, ...]) -> tuple[State, Array, Array]:
    """(state, elbo, finite) of one update; if loss, gradient or update is not finite nothing changes but the key."""
    key, noise = jax.random.split(state.key)

    def loss_of(params: PyTree) -> tuple[Array, Array]:
        joint, guide = eqx.combine(params, setting.rest)
        loss = setting.objective(noise, guide, joint, Minibatch(groups, setting.num_units, state.step))
        return loss.value, loss.elbo_per_unit

    (value, elbo), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer = setting.optimizer.update(gradient, state.optimizer, state.params, value=value)
    seen = gradient if setting.safe_updates else (gradient, updates)
    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(seen))
    params = optax.apply_updates(state.params, updates)
    params, optimizer = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, optimizer), (state.params, state.optimizer)
    )
    return State(params, optimizer, key, state.step + 1), elbo, finite


@eqx.filter_jit(donate="all-except-first")
def run_block(fixed: tuple[Setting, PyTree, Array], state: State) -> tuple[State, BlockResult]:
    """Runs `count` steps; `fixed` is (setting, indices (steps, B) or batches (steps, B, ...), count)."""
    setting, source, count = fixed
    length = jax.tree.leaves(source)[0].shape[0]
    apart = APART if sum(x.size for x in jax.tree.leaves(state.params)) > MANY_PARAMS else 1

    def body(i: Array, carry: tuple[State, BlockResult]) -> tuple[State, BlockResult]:
        state, result = carry
        rows = jax.tree.map(lambda x: x[i], source)
        groups = (rows,) if setting.data is None else _take(setting.data, rows)
        state, elbo, finite = _take_step_by_rows(setting, state, groups)
        chosen = i % apart == apart - 1
        total = jax.lax.cond(
            chosen,
            lambda: jax.tree.map(jnp.add, result.sum_of_params, _summed(setting, state)),
            lambda: result.sum_of_params,
        )
        elbos, finites = result.elbo_per_unit.at[i].set(elbo), result.finite.at[i].set(finite)
        return state, BlockResult(elbos, finites, total, result.num_summed + chosen)

    zeros = jax.tree.map(jnp.zeros_like, _summed(setting, state))
    empty = BlockResult(jnp.zeros(length), jnp.zeros(length, bool), zeros, jnp.zeros((), jnp.int32))
    state, result = jax.lax.fori_loop(0, count, body, (state, empty))
    total = _with_rows(setting, state, result.sum_of_params, result.num_summed)
    return state, BlockResult(result.elbo_per_unit, result.finite, total, result.num_summed)


def _take(data: tuple[Batch, ...], rows: Int[Array, " batch"]) -> tuple[Batch, ...]:
    if rows.shape[0] == 0:  # every unit in every step
        return data
    return tuple(jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), batch) for batch in data)


def _take_step_by_rows(setting: Setting, state: State, groups: tuple[Batch, ...]) -> tuple:
    """`take_step`, which sees only the rows of its units where units have parameters of their own."""
    rows = groups[0].rows
    if rows is None or not setting.by_rows:
        return take_step(setting, state, groups)
    part, *found = take_step(setting, gather(state, rows), (renumbered(groups[0]),))
    return scatter(state, part, rows), *found


def _summed(setting: Setting, state: State) -> PyTree:
    """What is added up from step to step: not the rows of all units."""
    return gather(state.params, jnp.zeros(0, jnp.int32)) if setting.by_rows else state.params


def _with_rows(setting: Setting, state: State, total: PyTree, count: Array) -> PyTree:
    """A sum of `count` terms, the rows of all units in it as they are at the end of the block."""
    return map_rows(lambda x, _: x * count, lambda _, x: x, state.params, total) if setting.by_rows else total


@eqx.filter_jit
def held_out_elbo(setting: Setting, params: PyTree, batch: Batch, key: Array) -> Array:
    """The bound per unit on units that were not trained on, at fixed noise; `shared` counts as in training."""
    joint, guide = eqx.combine(params, setting.rest)
    minibatch = Minibatch((batch,), setting.num_units, jnp.zeros((), jnp.int32))
    return setting.objective(key, guide, joint, minibatch).elbo_per_unit


@eqx.filter_jit
def unit_elbos(params: PyTree, rest: PyTree, batch: Batch, key: Array) -> Array:
    """One draw of the bound of every unit: names the units that are not finite."""
    joint, guide = eqx.combine(params, rest)
    shared, _ = guide.sample_shared(jax.random.fold_in(key, 0))
    return local_draws(jax.random.fold_in(key, 1), guide, joint, batch, guide.encode(batch), shared).elbo
