"""What is one training step? Gradient and clipped update; many steps to a block, rolled back where not finite.

A block is one compiled loop whose trip count is data, so that neither another number of steps nor a second `fit` of
equal shapes compiles again. Floats leave the device only between blocks.

Almost every block is finite from end to end, and to guard each of its steps (every parameter and moment chosen between
old and new) costs 7% of the time of a step of a VAE. So a block runs unguarded first, and is thrown away and run
again from where it started, guarded, if anything in it was not finite.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._types import Batch, PyTree, trainable
from ..guide import Guide
from ..joint.joint import Joint
from ..objectives.base import AbstractObjective, Loss, Minibatch
from ..objectives.elbo import ELBO
from ..objectives.estimators import local_draws
from .natural import Losses, NaturalSteps, gradient_and_slopes
from .rows import gather, map_rows, renumbered, scatter
from .schedule import of_globals

APART = 20  # steps from one whose networks enter the average to the next: to add up costs, and neighbours hardly differ
MANY = 50_000  # numbers in an array of the model's own that is added up no more often either


Numbers = tuple[Float[Array, " steps"], Float[Array, " steps"]]  # losses and bounds of a block


class State(eqx.Module):
    """All that a step changes."""

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
    guarded: bool = eqx.field(static=True, default=False)  # whether a step that is not finite changes nothing
    on_pairs: bool = eqx.field(static=True, default=False)  # units come with the latents that made them
    by_rows: bool = eqx.field(static=True, default=False)  # units have own parameters, and a step only its units' rows


class BlockResult(eqx.Module):
    """What a block saw."""

    loss: Float[Array, " steps"]  # of every step, NaN where rolled back; zero beyond the trip count
    elbo_per_unit: Float[Array, " steps"]
    sum_of_params: PyTree  # over `num_summed` steps
    num_summed: Int[Array, ""]


def split_trainable(joint: Joint, guide: Guide) -> tuple[PyTree, PyTree]:
    """(trained arrays, everything else) of the pair."""
    pair = (joint, guide)
    return eqx.partition(pair, trainable(pair))


def take_step(setting: Setting, state: State, groups: tuple[Batch, ...]) -> tuple[State, Loss]:
    """(state, loss, NaN if anything is not finite) of one update; guarded, such a one changes nothing but the key."""
    key, noise = jax.random.split(state.key)

    def loss_of(params: PyTree, shared: Array | None) -> tuple[Array, Array]:
        joint, guide = eqx.combine(params, setting.rest)
        loss = setting.objective(noise, guide, joint, Minibatch(groups, setting.num_units, state.step, shared))
        return loss.value, loss.elbo_per_unit

    (value, elbo), gradient, told = _differentiate(setting, state, loss_of, noise)
    updates, optimizer = setting.optimizer.update(gradient, state.optimizer, state.params, value=value, **told)
    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
    params = optax.apply_updates(state.params, updates)
    if setting.guarded:
        finite &= _all_finite(updates)
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, optimizer), (state.params, state.optimizer)
        )
    return State(params, optimizer, key, state.step + 1), Loss(jnp.where(finite, value, jnp.nan), elbo)


def _differentiate(
    setting: Setting, state: State, loss_of: Losses, key: Array
) -> tuple[tuple[Array, Array], PyTree, dict[str, Array]]:
    """(loss and bound), gradient, and what the optimizer is told beside it."""
    if not isinstance(setting.optimizer, NaturalSteps):
        return *jax.value_and_grad(loss_of, has_aux=True)(state.params, None), {}
    assert isinstance(setting.objective, ELBO)
    guide, count = eqx.combine(state.params, setting.rest)[1], setting.objective.num_particles
    losses, gradient, seen = gradient_and_slopes(loss_of, state.params, guide, key, count, setting.num_units)
    return losses, gradient, seen._asdict()


def run_block(fixed: tuple[Setting, PyTree, Array], state: State) -> tuple[State, BlockResult]:
    """Runs `count` steps; `fixed` is (setting, indices (steps, B) or batches (steps, B, ...), count)."""
    setting, source, count = fixed
    after, result, finite = _run_block(setting, source, count, state)
    if not finite:
        after, result, _ = _run_block(dataclasses.replace(setting, guarded=True), source, count, state)
    return after, result


@eqx.filter_jit
def _run_block(setting: Setting, source: PyTree, count: Array, state: State) -> tuple[State, BlockResult, Array]:
    """(state, result, whether every step and the parameters at the end are finite)."""
    length = jax.tree.leaves(source)[0].shape[0]

    def parts(state: State) -> tuple[PyTree, PyTree]:
        return eqx.partition(_summed(setting, state), _every_step(state.params))

    def body(i: Array, carry: tuple[State, Numbers, PyTree]) -> tuple[State, Numbers, PyTree]:
        state, losses, total = carry
        rows = jax.tree.map(lambda x: x[i], source)
        groups = (rows,) if setting.data is None else _take(setting.data, rows)
        state, loss = _take_step_by_rows(setting, state, groups)
        losses = losses[0].at[i].set(loss.value), losses[1].at[i].set(loss.elbo_per_unit)
        return state, losses, jax.tree.map(jnp.add, total, parts(state)[0])

    def stretch(j: Array, carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        carried, total = carry
        carried = jax.lax.fori_loop(APART * j, jnp.minimum(APART * (j + 1), count), body, carried)
        return carried, jax.tree.map(jnp.add, total, parts(carried[0])[1])

    stretches = -(-count // APART)
    few, rest = jax.tree.map(jnp.zeros_like, parts(state))
    start = (state, (jnp.zeros(length), jnp.zeros(length)), few), rest
    (state, (losses, elbos), few), rest = jax.lax.fori_loop(0, stretches, stretch, start)
    total = eqx.combine(few, jax.tree.map(lambda x: x * (count / stretches), rest))
    # An update that is not finite leaves its mark on the parameters to the end, whatever the bounds after it say.
    finite = jnp.all(jnp.isfinite(losses)) & _all_finite(state.params)
    return state, BlockResult(losses, elbos, _with_rows(setting, state, total, count), count), finite


def _every_step(params: PyTree) -> PyTree:
    """True at what is added up at each step: numbers of q(v) and the model's own, if few.

    A minibatch moves them by much of the posterior's sd, and over an epoch these moves cancel: only if all are counted.
    """
    return jax.tree.map(lambda x: x.size <= MANY, params[0]), of_globals(params)[1]


def _all_finite(tree: PyTree) -> Array:
    return jnp.isfinite(optax.tree.norm(tree))


def _take(data: tuple[Batch, ...], rows: Int[Array, " batch"]) -> tuple[Batch, ...]:
    if rows.shape[0] == 0:  # every unit in every step
        return data
    return tuple(jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), batch) for batch in data)


def _take_step_by_rows(setting: Setting, state: State, groups: tuple[Batch, ...]) -> tuple:
    """`take_step`, which sees only the rows of its units where units have parameters of their own."""
    if not setting.by_rows:
        return take_step(setting, state, groups)
    rows = groups[0].rows
    assert rows is not None
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
    """The bound per unit on units that were not trained on, at fixed noise; `shared` counts as in training.

    Of pairs it is minus the loss, which is what more training on few of them would spoil.
    """
    joint, guide = eqx.combine(params, setting.rest)
    minibatch = Minibatch((batch,), setting.num_units, jnp.zeros((), jnp.int32))
    loss = setting.objective(key, guide, joint, minibatch)
    return -loss.value if setting.on_pairs else loss.elbo_per_unit


@eqx.filter_jit
def unit_elbos(params: PyTree, rest: PyTree, batch: Batch, key: Array) -> Array:
    """One draw of the bound of every unit: names the units that are not finite."""
    joint, guide = eqx.combine(params, rest)
    shared, _ = guide.sample_shared(jax.random.fold_in(key, 0))
    contexts = guide.encode(batch)
    at = guide.at_choices(jax.random.fold_in(key, 2), contexts, shared, batch, joint)
    draws = local_draws(jax.random.fold_in(key, 1), guide, joint, at, contexts, shared)
    return draws.elbo - guide.choices_log_prob(contexts, shared, at, joint)
