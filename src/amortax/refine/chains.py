"""How are draws of a density made that is near a standard normal? Many short chains of HMC that adapt together.

All chains take steps of one size, trajectories of one length (times a quasi-random share, since a fixed one may return
to where it began) and one diagonal metric, learned from all of them in windows: the step size by dual averaging, the
length by the change in the estimator of the expected square (ChEES), the metric by the spread over chains and steps.
Chains are an axis of arrays, so that one evaluation of the density serves all; a block of steps is compiled once.

Hoffman, Radul and Sountsov (2021), An adaptive MCMC scheme for setting trajectory lengths in HMC; by BlackJAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 50  # steps between two visits to the host
WINDOWS = (1, 1, 2, 2)  # blocks after which the metric is learned anew; after the last it stays
LEARNING_RATE = 0.05  # of the logarithm of the trajectory length
ACCEPTANCE = 0.75  # of trajectories; ChEES' own 0.65 leaves more divergences in a scale's tail
CAREFUL = 0.9  # the same of a second attempt
LONGEST = 256  # leapfrog steps of one trajectory
FIRST_LENGTH = 1.5  # of a trajectory in units of the metric: near a quarter of a normal's period, with jitter

Density = Callable[[Array], Array]


class Tuned(NamedTuple):
    """What all chains move by."""

    step_size: Float[Array, ""]
    num_steps: Float[Array, ""]  # mean leapfrog steps of a trajectory before jitter
    metric: Float[Array, " size"]  # variances


class Moments(NamedTuple):
    """Of the positions of all chains: their number, mean and summed squares about it."""

    count: Float[Array, ""]
    mean: Float[Array, " size"]
    square: Float[Array, " size"]


class Chains(NamedTuple):
    """All chains between two blocks; `state` is BlackJAX's, a leading axis of every part."""

    state: Any
    adaptation: Any
    moments: Moments
    metric: Float[Array, " size"]
    wanted: Float[Array, ""]  # acceptance of trajectories


@eqx.filter_jit
def first(
    problem: Any, candidates: Float[Array, "candidates size"], count: int, wanted: Float[Array, ""] | float = ACCEPTANCE
) -> Chains:
    """`count` chains at those candidates where the density is finite, as far as there are so many.

    **Arguments**: `wanted` acceptance of trajectories, an array where one program serves all.
    """
    from blackjax.mcmc import dynamic_hmc

    def at(position: Array) -> Any:
        return dynamic_hmc.init(position, problem.log_density, jnp.zeros((), jnp.int32))

    states = jax.lax.map(at, candidates, batch_size=count)
    slope = jnp.all(jnp.isfinite(states.logdensity_grad), axis=1)
    rows = jnp.argsort(~(jnp.isfinite(states.logdensity) & slope), stable=True)[:count]
    size = candidates.shape[1]
    state = jax.tree.map(lambda x: x[rows], states)
    return _strong(Chains(state, _restarted(0.5 / size**0.25), _no_moments(size), jnp.ones(size), jnp.asarray(wanted)))


class Drawn(NamedTuple):
    """A block of all chains: (block, chains, ...) each."""

    placed: Any  # where the problem puts their positions
    divergent: Array
    acceptance: Array
    gradients: Array


@eqx.filter_jit
def block(problem: Any, chains: Chains, key: Array, adapts: Array, ends: Array) -> tuple[Chains, Drawn]:
    """The chains after a block of steps, and these; they adapt, or not; where a window ends, to a new metric."""
    _, update = _adaptation(chains.wanted)

    def step(chains: Chains, key: Array) -> tuple[Chains, Drawn]:
        adaptation = chains.adaptation
        state, info = _move(problem.log_density, chains.state, _tuned(chains, adapts), key)
        seen = (info.proposal.position, info.proposal.momentum, chains.state.position)
        updated = update(adaptation, *seen, info.acceptance_rate, info.is_divergent, chains.metric)
        moments = _merged(chains.moments, state.position)
        updated = jax.tree.map(lambda new, old: jnp.where(adapts, new, old), updated, adaptation)
        placed = jax.vmap(problem.place)(state.position)
        found = Drawn(placed, info.is_divergent, info.acceptance_rate, info.num_integration_steps)
        return _strong(chains._replace(state=state, adaptation=updated, moments=moments)), found

    chains, found = jax.lax.scan(step, chains, jax.random.split(key, BLOCK))
    renewed = chains._replace(
        adaptation=_restarted(chains.adaptation.step_size),
        moments=_no_moments(chains.metric.shape[0]),
        metric=_metric(chains.moments),
    )
    return _strong(jax.tree.map(lambda new, old: jnp.where(ends, new, old), renewed, chains)), found


def _tuned(chains: Chains, adapts: Array) -> Tuned:
    """What chains move by: while they adapt the latest, then the averages."""
    adaptation = chains.adaptation
    step_size = jnp.where(adapts, adaptation.step_size, jnp.exp(adaptation.log_step_size_moving_average))
    average = jnp.exp(adaptation.log_trajectory_length_moving_average)
    length = jnp.where(adapts, adaptation.trajectory_length, average)
    return Tuned(step_size, jnp.clip(length / step_size, 1.0, LONGEST), chains.metric)


def _strong(tree: Any) -> Any:
    """Of the same types without weak ones, so that a block is compiled once."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


def warm_blocks() -> list[bool]:
    """For every block of the adaptation, whether a window ends with it."""
    found: list[bool] = []
    for number, blocks in enumerate(WINDOWS):
        found += [False] * (blocks - 1) + [number + 1 < len(WINDOWS)]
    return found


def _move(log_density: Density, state: Any, tuned: Tuned, key: Array) -> tuple[Any, Any]:
    from blackjax.mcmc import dynamic_hmc

    def steps(index: Int[Array, ""], mean: Array) -> Array:
        return jnp.ceil(_jitter(index) * mean).astype(int)

    kernel: Callable = dynamic_hmc.build_kernel(next_random_arg_fn=lambda index: index + 1, integration_steps_fn=steps)

    def one(key: Array, state: Any) -> tuple[Any, Any]:
        return kernel(key, state, log_density, tuned.step_size, tuned.metric, (tuned.num_steps,))

    return jax.vmap(one)(jax.random.split(key, state.logdensity.shape[0]), state)


def _jitter(index: Int[Array, ""]) -> Float[Array, ""]:
    """A share in (0, 1) of a trajectory: quasi-random, and the same for all chains."""
    from blackjax.mcmc import dynamic_hmc

    return jnp.asarray(dynamic_hmc.halton_sequence(index, 10))


def _adaptation(wanted: Any = ACCEPTANCE) -> tuple[Callable, Callable]:
    import optax
    from blackjax.adaptation import chees_adaptation

    return chees_adaptation.base(_jitter, lambda index: index + 1, optax.adam(LEARNING_RATE), wanted, 0.5, LONGEST)


def _restarted(step_size: float | Array) -> Any:
    """Adaptation at the beginning of a window."""
    init, _ = _adaptation()
    step_size = jnp.asarray(step_size, float)
    state = init(jnp.zeros((), jnp.int32), step_size)
    length = jnp.full((), FIRST_LENGTH)
    return jax.tree.map(
        jnp.asarray,
        state._replace(
            trajectory_length=length,
            log_trajectory_length_moving_average=jnp.log(length),
            log_step_size_moving_average=jnp.log(step_size),
        ),
    )


def _no_moments(size: int) -> Moments:
    return Moments(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def _merged(moments: Moments, positions: Float[Array, "chains size"]) -> Moments:
    """With the positions of one more step (Chan, Golub and LeVeque 1979)."""
    count, mean = positions.shape[0], jnp.mean(positions, axis=0)
    square = jnp.sum((positions - mean) ** 2, axis=0)
    total, away = moments.count + count, mean - moments.mean
    return Moments(
        total,
        moments.mean + away * count / total,
        moments.square + square + away**2 * moments.count * count / total,
    )


def _metric(moments: Moments) -> Float[Array, " size"]:
    """Variances, drawn a little towards one as Stan does."""
    variance = moments.square / jnp.maximum(moments.count - 1.0, 1.0)
    share = moments.count / (moments.count + 5.0)
    return share * variance + 1e-3 * (1.0 - share)
