"""How is a bound differentiated? Log weights of draws of q, whose gradients are seen through the draws.

For v ~ q(v) shared by the batch and u_i ~ q(u_i | e_i, v), the weight of unit i is

    log w_i = log p(d_i, u_i | v) - log q(u_i | e_i, v).

The gradient is the path derivative ("sticking the landing", Roeder, Wu and Duvenaud 2017): log q is evaluated again
with the guide's parameters stopped and the draws not, which leaves out a term of mean zero whose variance does not
vanish at the optimum. Far from the optimum that term may be the smaller noise, so each unit's locals get a share of it
(see `path_share`). Where a family's density is dear elsewhere than at its own draws, the plain estimator serves.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch, Context, PyTree, Terms
from ..families.base import Component
from ..guide import Guide
from ..joint.joint import Joint
from .base import Minibatch, batch_size, weighed

SHARE_UNITS = 32  # of a minibatch, by which the share of the path derivative is chosen


class Draws(eqx.Module):
    """One draw of the locals of every unit from each component of its q; shares sum to one over the components."""

    local: Float[Array, "components units d"]
    log_q: Float[Array, "components units"]
    log_weight: Float[Array, "components units"]
    log_share: Float[Array, "components units"]
    log_prior: Float[Array, ""]  # log p(v), which comes with them

    @property
    def elbo(self) -> Float[Array, " units"]:
        """The mean log weight of every unit."""
        return jnp.sum(jnp.exp(self.log_share) * self.log_weight, axis=0)


def shared_noises(key: Array, guide: Guide, count: int) -> Float[Array, "count noise"]:
    """Noise of the globals of `count` particles, in pairs of opposite sign.

    What is linear in v, among it all noise of the choice of a minibatch, cancels between the two from the gradient of
    the spread of q(v).
    """
    noise = guide.shared_noise(key, (count + 1) // 2)
    return jnp.stack([noise, -noise], axis=1).reshape(2 * noise.shape[0], noise.shape[1])[:count]


def shared_draw(
    noise: Float[Array, " noise"], component: Component, guide: Guide, *, path_derivative: bool = False
) -> tuple[Float[Array, " g"], Float[Array, ""]]:
    """The globals at `noise` and their log q, with `path_derivative` seen through the globals only."""
    shared, log_q = guide.place_shared(noise, component)
    if path_derivative and guide.cheap_log_prob:
        log_q = stopped(guide).shared_log_prob(shared)
    return shared, log_q


UnitBounds = Callable[[Array, Batch, Context, Array], tuple[Array, Array]]


def mean_bound(
    key: Array, guide: Guide, minibatch: Minibatch, units: UnitBounds, *, count: int, path_derivative: bool
) -> Float[Array, ""]:
    """The bound per unit by `count` draws of the globals, from bounds of log p(d_i | v) of each unit given them.

        mean over v ~ q(v) of  [ log p(v) - log q(v) + N/B Σ_i bound_i(v) ] / N

    `units` takes (key, batch, contexts, v) and gives those bounds for a batch, and log p(v), which comes along. Where
    the minibatch has draws of the globals, these are taken, and the bound is seen through them alone.
    """
    contexts = tuple(guide.encode(batch) for batch in minibatch.groups)
    shared_key, local_key = jax.random.split(key)

    def place(at: Array, component: Component) -> tuple[Array, Array]:
        if minibatch.shared is not None:
            return at, stopped(guide).shared_log_prob(at)
        return shared_draw(at, component, guide, path_derivative=path_derivative)

    def particle(at: Array, key: Array) -> Array:
        def given(component: Component) -> Array:
            shared, log_shared = place(at, component)
            keys = split_key(key, len(contexts))
            found = [units(*group, shared) for group in zip(keys, minibatch.groups, contexts, strict=True)]
            each = zip(found, minibatch.groups, strict=True)
            unit = jnp.concatenate([weighed(bounds, batch) for (bounds, _), batch in each])
            return Terms(unit, found[0][1] - log_shared).total(minibatch.scale) / minibatch.num_units

        return over_components(guide.shared_log_shares(), given)

    points = shared_noises(shared_key, guide, count) if minibatch.shared is None else minibatch.shared
    return mean_over(particle, points, split_key(local_key, points.shape[0]))


def mean_over(value: Callable[..., Array], *particles: Array) -> Array:
    """The mean of `value` over particles; a single one is not worth an axis, which costs 10% of small models."""
    if particles[0].shape[0] == 1:
        return value(*(x[0] for x in particles))
    return jnp.mean(jax.vmap(value)(*particles))


def split_key(key: Array, count: int) -> Array:
    """`count` keys; a single one is `key` itself: to split it would cost as much as a layer of a small model."""
    return key[None] if count == 1 else jax.random.split(key, count)


def over_components(log_shares: Float[Array, " components"], value: Callable[[Component], Array]) -> Array:
    """The mean of `value` over components with these shares; a single one is not worth an axis."""
    count = log_shares.shape[0]
    return value(0) if count == 1 else jnp.exp(log_shares) @ jax.vmap(value)(jnp.arange(count))


def local_draws(
    key: Array,
    guide: Guide,
    joint: Joint,
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    path_derivative: bool = False,
) -> Draws:
    """Log weights of the units of `batch` at one draw of their locals from each component, given the globals.

    With `path_derivative`, log q is seen through its draws only, as far as `path_share` says.
    """
    noise = guide.local_noise(key, joint, batch, batch_size(batch))
    path = path_derivative and guide.cheap_log_prob and guide.local is not None

    def of(component: Component) -> tuple[Array, ...]:
        local, log_q = guide.place_locals(noise, component, context, shared, batch, joint)
        log_p, seen, share = joint.log_prob(local, shared, batch), log_q, jnp.zeros(())
        if path:
            still_guide, still_joint, still_context = stopped((guide, joint, context))
            seen, slope = seen_through_draws(still_guide, still_joint, batch, still_context, local, shared)
            share = path_share(*stopped((joint, batch, local, shared, slope)))
        return local, log_p.unit, log_q, seen, share, log_p.shared

    if guide.local_components == 1:
        local, log_p, log_q, seen, share, log_prior = (x[None] for x in of(0))
        log_shares = jnp.zeros_like(log_q)
    else:
        axes = (0, 0, 0, 0, 0, None)
        local, log_p, log_q, seen, share, log_prior = jax.vmap(of, out_axes=axes)(jnp.arange(guide.local_components))
        log_shares = jax.vmap(guide.local_log_shares, in_axes=(0, None, 0, None))(context, shared, batch, joint).T
        # One share for all components: the score has mean zero over the whole of q, not within one of them.
        share = jnp.sum(stopped(jnp.exp(log_shares)) * share, axis=0) if path else share
    log_q = share * seen + (1.0 - share) * log_q if path else log_q
    return Draws(local, log_q, log_p - log_q, log_shares, jnp.reshape(log_prior, ()))


def seen_through_draws(
    guide: Guide, joint: Joint, batch: Batch, context: Context, local: Float[Array, "units d"], shared: Array
) -> tuple[Float[Array, " units"], Float[Array, "units d"]]:
    """log q of every unit at its draw, and its slope by the locals, through which no gradient passes.

    Without globals the locals are all that log q is seen through, and its slope all that the backward pass needs: log q
    is then a number plus slope · (local - its own value), which saves a second pass through the family.
    """
    seen, pull = jax.vjp(lambda u: guide.locals_log_prob(u, context, shared, batch, joint), local)
    slope = jax.lax.stop_gradient(pull(jnp.ones_like(seen))[0])
    if shared.size:
        return seen, slope
    moved = jnp.sum(slope * (local - jax.lax.stop_gradient(local)), axis=1)
    return jax.lax.stop_gradient(seen) + moved, slope


def path_share(
    joint: Joint,
    batch: Batch,
    local: Float[Array, "units d"],
    shared: Float[Array, " g"],
    slope: Float[Array, "units d"],
) -> Float[Array, " units"]:
    """Share of the path derivative in the gradient of every unit's log q, 0 to 1; no gradient passes through it.

    The score that the path derivative leaves out has mean zero given v, so any share that does not depend on the
    unit's own noise is unbiased. The best one is the slope of the regression of ∇_u log p on ∇_u log q: 1 at the
    optimum, (sd of q / sd of p)² where q is too narrow, and there the path derivative alone, with noise of order
    1 / sd of q, would drown all else and training would diverge. About `SHARE_UNITS` units, evenly spaced, enter two
    regressions in turns; units next to one of the first use the slope over the second, and the other way round. A
    single unit takes 1.
    """
    size = local.shape[0]
    if size < 2:
        return jnp.ones(size)
    spacing = -(-size // SHARE_UNITS)
    slope, batch, local = jax.tree.map(lambda x: x[::spacing], (slope, batch, local))
    along = jax.jvp(lambda u: joint.log_prob(u, shared, batch).unit, (local,), (slope,))[1]
    square = jnp.sum(slope**2, axis=1)
    second = jnp.arange(local.shape[0]) % 2 == 1

    def regression(chosen: Array) -> Array:
        across, within = jnp.sum(jnp.where(chosen, along, 0.0)), jnp.sum(jnp.where(chosen, square, 0.0))
        return jax.lax.stop_gradient(jnp.clip(across / jnp.maximum(within, 1e-30), 0.0, 1.0))

    beside_second = (jnp.arange(size) // spacing) % 2 == 1
    return jnp.where(beside_second, regression(~second), regression(second))


def stopped(tree: PyTree) -> PyTree:
    """The same values, through which no gradient passes."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
