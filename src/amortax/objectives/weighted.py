"""How are several draws of one unit weighted against each other? By a power mean of their weights.

Given one draw v of the globals, u_1 ... u_K ~ q(u | e_i, v) and w_k = p(d_i, u_k | v) / q(u_k | e_i, v),

    L_α = 1 / (1 - α) · log 1/K Σ_k w_k^(1 - α),     ∇L_α = Σ_k ŵ_k ∇log w_k,     ŵ_k ∝ w_k^(1 - α).

α = 0 is the importance-weighted bound, α → 1 the ELBO, and by Jensen no α ≥ 0 exceeds log p(d_i | v) in the mean.
Weights are normalised within each unit: summed over units first, one unit of the minibatch would take all the weight.

With several draws the path derivative alone is biased, since ŵ_k depends on the draws too. Seen through the draws a
second time (Tucker, Lawson, Gu and Maddison 2019, for α = 0; the same integration by parts for any α), the parameters
of q have the gradient

    Σ_k ŵ_k (α + (1 - α) ŵ_k) ∂log w_k/∂u_k ∂u_k/∂φ,

whose noise vanishes at the exact posterior. That holds for the role that a parameter has in q and there alone: the
model's parameters, and the globals in it, keep Σ_k ŵ_k ∂log p. The globals, of which q of the locals is a function,
have the plain gradient in both roles: at the exact posterior its noise cancels between log p and log q.

Draws of the globals may be weighted against each other too, W_r = p(v_r) / q(v_r) Π_i L_α of unit i given v_r, over all
units of the data (see `data_bound`). The weight of one draw of a unit is then the product of both, ŵ_r ŵ_rk, in the
gradient of q of the locals, and ŵ_r in that of q(v), by the same integration by parts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Batch, Context, Terms
from ..guide import Guide
from ..joint.joint import Joint
from .base import Minibatch, batch_size
from .estimators import Draws, path_share, split_key, stopped


def data_bound(
    key: Array,
    guide: Guide,
    minibatch: Minibatch,
    units: Callable,
    *,
    count: int,
    alpha: float,
    doubly_reparametrised: bool,
) -> Float[Array, ""]:
    """L_α of the whole data per unit, by `count` weighted draws of the globals from each component of q(v).

        1/N · 1/(1-α) log mean_r [ p(v_r) / q(v_r) Π_i exp(bound_i(v_r)) ]^(1-α)

    `units` takes (key, batch, contexts, v, weight of v) and gives those bounds for a batch, and log p(v). The minibatch
    must hold all units. Draws are made twice: for their weights, then seen through with those.
    """
    contexts = tuple(guide.encode(batch) for batch in minibatch.groups)
    shared_key, local_key = jax.random.split(key)
    log_shares = guide.shared_log_shares() - jnp.log(count)
    doubly = doubly_reparametrised and guide.cheap_log_prob and len(log_shares) == 1

    def log_weight(noise: Array, key: Array, component: Array, weight: Float[Array, ""]) -> Float[Array, ""]:
        shared, log_q = guide.place_shared(noise, component)
        if doubly:
            shared = _scaled(shared, alpha + (1.0 - alpha) * weight)
            log_q = stopped(guide).shared_log_prob(shared)
        keys = split_key(key, len(contexts))
        groups = zip(keys, minibatch.groups, contexts, strict=True)
        found = [units(*group, shared, weight) for group in groups]
        return Terms(jnp.concatenate([bounds for bounds, _ in found]), found[0][1] - log_q).total()

    draws = guide.shared_noise(shared_key, count), jax.random.split(local_key, count)

    def all_weights(weights: Float[Array, "draws components"]) -> Float[Array, "draws components"]:
        each = jax.vmap(jax.vmap(log_weight, in_axes=(None, None, 0, 0)), in_axes=(0, 0, None, 0))
        return each(*draws, jnp.arange(len(log_shares)), weights)

    shares = jnp.broadcast_to(log_shares, (count, len(log_shares)))
    first = jax.lax.stop_gradient(all_weights(jnp.ones_like(shares)))
    power = jax.nn.softmax(jnp.ravel((1.0 - alpha) * first + jax.lax.stop_gradient(shares))).reshape(shares.shape)
    bound = power_mean(jnp.ravel(all_weights(power))[:, None], jnp.ravel(shares)[:, None], alpha)
    return bound[0] / minibatch.num_units


def power_mean(
    log_weight: Float[Array, "draws units"], log_share: Float[Array, "draws units"], alpha: float
) -> Float[Array, " units"]:
    """log (Σ share · w^(1-α)) / (1-α) of every unit; shares sum to one. Finite and exact to rounding for any α."""
    share = jnp.exp(log_share)
    if alpha == 1.0:
        return jnp.sum(share * log_weight, axis=0)
    end = jax.lax.stop_gradient((jnp.max if alpha < 1.0 else jnp.min)(log_weight, axis=0))
    less = jnp.expm1((1.0 - alpha) * (log_weight - end))  # in (-1, 0]: close to α = 1 no digits are lost
    return end + jnp.log1p(jnp.sum(share * less, axis=0)) / (1.0 - alpha)


def unit_bounds(
    key: Array,
    guide: Guide,
    joint: Joint,
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    count: int,
    alpha: float,
    doubly_reparametrised: bool,
    outer: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, " units"], Float[Array, ""]]:
    """(L_α of every unit by `count` draws of its locals given the globals, log p(v)).

    `outer` is the weight of this draw of the globals among others, 1 if they are not weighted.

    The plain gradient serves where the local family's density is dear at other than its own draws, and for mixtures:
    they draw from every component, and a draw of one component is none of another.
    """
    noise = guide.local_noise(key, joint, batch, count, batch_size(batch))
    local = guide.local
    if doubly_reparametrised and local is not None and guide.local_components == 1 and local.family.cheap_log_prob:
        log_weight, log_prior = _doubly(noise, guide, joint, batch, context, shared, alpha=alpha, outer=outer)
        return power_mean(log_weight, jnp.full(log_weight.shape, -jnp.log(count)), alpha), log_prior
    each = plain_weights(noise, guide, (joint, joint), batch, context, shared)
    return power_mean(each.log_weight, each.log_share, alpha), each.log_prior


def plain_weights(
    noise: Float[Array, "draws units noise"],
    guide: Guide,
    joints: tuple[Joint, Joint],
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
) -> Draws:
    """`draws` draws from each component, with all of their gradient; `joints` are the one in p and the one in q.

    They are `Draws` of draws x components "components"; shares sum to one over all of a unit.
    """
    components, (joint, in_guide) = guide.local_components, joints

    def draw(noise: Array, component: Array) -> tuple[Array, Array, Array, Array]:
        local, log_q = guide.place_locals(noise, component, context, shared, batch, in_guide)
        log_p = joint.log_prob(local, shared, batch)
        return local, log_q, log_p.unit - log_q, log_p.shared

    inner = jax.vmap(draw, in_axes=(None, 0), out_axes=(0, 0, 0, None))
    outer = jax.vmap(inner, in_axes=(0, None), out_axes=(0, 0, 0, None))
    local, log_q, log_weight, log_prior = outer(noise, jnp.arange(components))
    log_share = jax.vmap(guide.local_log_shares, in_axes=(0, None, 0, None))(context, shared, batch, in_guide).T
    log_share = jnp.broadcast_to(log_share - jnp.log(noise.shape[0]), log_weight.shape)
    local, log_q, log_weight, log_share = map(together, (local, log_q, log_weight, log_share))
    return Draws(local, log_q, log_weight, log_share, log_prior)


def together(x: Array) -> Array:
    """The axes of draws and of components as one; a unit may have no numbers, so that no length can be left open."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _doubly(
    noise: Float[Array, "draws units noise"],
    guide: Guide,
    joint: Joint,
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    alpha: float,
    outer: float | Float[Array, ""],
) -> tuple[Float[Array, "draws units"], Float[Array, ""]]:
    """(log weights whose gradient under `power_mean` is the one above, log p(v)).

    As with one draw (see `estimators`), each unit takes a share of it and the rest of the plain gradient.
    """
    still_guide, still_joint, still_context, still_shared = stopped((guide, joint, context, shared))

    def drawn(noise: Array) -> tuple[Array, Array, Array, Array]:
        """A draw and its log q: as the parameters of q move them, and what the globals add to that, which is 0."""
        local, log_q = guide.place_locals(noise, 0, context, still_shared, batch, joint)
        if guide.shared is None:
            return local, log_q, jnp.zeros_like(local), jnp.zeros_like(log_q)
        moved, log_moved = still_guide.place_locals(noise, 0, still_context, shared, batch, still_joint)
        return local, log_q, moved - jax.lax.stop_gradient(moved), log_moved - jax.lax.stop_gradient(log_moved)

    def log_density(local: Array) -> Array:
        return jnp.sum(still_guide.locals_log_prob(local, still_context, still_shared, batch, still_joint))

    local, log_q, moved, log_moved = jax.vmap(drawn)(noise)
    first = stopped(local)
    log_p = jax.vmap(lambda u: still_joint.log_prob(u, still_shared, batch).unit)(first)
    power = outer * jax.nn.softmax((1.0 - alpha) * jax.lax.stop_gradient(log_p - log_q), axis=0)
    factor = alpha + (1.0 - alpha) * power
    share = path_share(*stopped((joint, batch, first[0], shared, jax.grad(log_density)(first[0]))))

    def weight(local: Array, log_q: Array, moved: Array, log_moved: Array, factor: Array) -> tuple[Array, Array]:
        seen = still_guide.locals_log_prob(_scaled(local, factor) + moved, still_context, shared, batch, still_joint)
        log_p = joint.log_prob(_scaled(local, share * factor + 1.0 - share) + moved, shared, batch)
        return log_p.unit - share * seen - (1.0 - share) * (log_q + log_moved), log_p.shared

    return jax.vmap(weight, out_axes=(0, None))(local, log_q, moved, log_moved, factor)


def _scaled(value: Float[Array, "*units d"], factor: Float[Array, "*units"]) -> Float[Array, "*units d"]:
    """`value`, whose gradient is multiplied by `factor`."""
    still = jax.lax.stop_gradient(value)
    return still + factor[..., None] * (value - still)
