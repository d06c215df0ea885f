"""How does q of a drawn choice learn? By the score function, with a unit's other draws as the baseline of each.

Given one draw v of the globals, a unit has K draws c_k ~ q(c | e, v), each with numbers u_k ~ q(u | e, c_k, v) if it
has any. Of the weights w_k = p(d, u_k, c_k | v) / q(u_k, c_k | e, v) a power mean L is the bound (see `weighted`; α = 1
is the ELBO, α = 0 the importance-weighted bound). No draw of c is differentiated; instead

    ∇ E[L] = E[ Σ_k ŵ_k ∇log w_k + Σ_k (L - L_-k) ∇log q(c_k | e, v) ],      ŵ_k ∝ w_k^(1 - α),

where L_-k is L with log w_k replaced by the mean of the others: c_k has no part in it, so that it changes no mean, only
noise. For the ELBO this is the leave-one-out baseline (Mnih and Rezende 2016; Kool, van Hoof and Welling 2019), since
L - L_-k = 1/K (log w_k - mean of the others); for α = 0 it is VIMCO (Mnih and Rezende 2016).

Of -Σ_k ŵ_k ∇log q(c_k), which is part of the first sum, -1/K Σ_k ∇log q(c_k) has mean zero and is left out of what the
parameters of q see: at the exact posterior all weights are equal, and nothing is left but noise-free gradients. Through
the globals it stays: there its noise cancels that of log p.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import FitError, ModelError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import batch_size
from .estimators import Draws, local_draws, stopped
from .weighted import plain_weights, power_mean, together


def check_choices(name: str, count: int) -> None:
    """Raises `FitError` unless `count` draws of a choice can be one another's baseline."""
    if whole_number(name, count, FitError) < 2:
        raise FitError(
            f"{name}={count}: the score function takes the other draws of a unit as the baseline of each, and one draw "
            "has no other; give 2 or more"
        )


def check_relaxable(structure: Structure) -> None:
    """Raises `FitError` unless the model has drawn sites, all of two values and none of them a label."""
    name = "am.ELBO(straight_through=...)"
    if not structure.drawn:
        raise FitError(f"{name} has nothing to do: q draws no discrete site of the model; leave it out")
    for site in structure.drawn:
        if len(site.choices) != 2:
            raise FitError(
                f"{name}: site '{site.name}' takes {len(site.choices)} values, and only between two is there a number "
                "for a gradient to pass through; leave it out: the score function needs none"
            )
        if site.argument is not None:
            raise FitError(f"{name}: site '{site.name}' is observed in some units, and labels are no relaxed numbers")


def drawn_bounds(
    key: Array,
    guide: Guide,
    joint: Joint,
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    count: int,
    alpha: float,
) -> tuple[Float[Array, " units"], Float[Array, ""]]:
    """(L of every unit by `count` draws of its choice given the globals, log p(v)).

    Families of several components give the mean over all of them at each draw.
    """
    still_guide, still_context = stopped((guide, context))

    def draw(key: Array) -> tuple[Array, Array, Array, Array]:
        choice_key, key = jax.random.split(key)
        at = guide.at_choices(choice_key, context, shared, batch, joint)
        draws = local_draws(key, guide, joint, at, context, shared, path_derivative=alpha == 1.0)
        by_parameters = guide.choices_log_prob(context, stopped(shared), at, joint)
        by_globals = still_guide.choices_log_prob(still_context, shared, at, joint)
        each = power_mean(draws.log_weight, draws.log_share, alpha) - by_globals
        return each, by_parameters, by_globals, draws.log_prior

    axes = (0, 0, 0, None)
    each, by_parameters, by_globals, log_prior = jax.vmap(draw, out_axes=axes)(jax.random.split(key, count))
    return scored(each, by_parameters, by_globals, alpha), log_prior


def scored(
    each: Float[Array, "draws units"],
    by_parameters: Float[Array, "draws units"],
    by_globals: Float[Array, "draws units"],
    alpha: float,
) -> Float[Array, " units"]:
    """L of every unit from the log weights of its draws, with what is learned from the score.

    **Arguments**: log q(c_k | e, v) twice, as the parameters of q move it and as the globals do.
    """
    bound = power_mean(each, _equal(each), alpha)
    weight = jax.nn.softmax((1.0 - alpha) * each, axis=0)
    gain, excess = stopped((bound - baselines(each, alpha), weight - 1.0 / each.shape[0]))
    learned = jnp.sum((gain - excess) * by_parameters + gain * by_globals, axis=0)
    return bound + learned - jax.lax.stop_gradient(learned)


def baselines(each: Float[Array, "draws units"], alpha: float) -> Float[Array, "draws units"]:
    """L_-k of every draw and unit."""
    count = each.shape[0]
    others = (jnp.sum(each, axis=0) - each) / (count - 1)
    own = jnp.eye(count, dtype=bool)[:, :, None]
    without = jnp.where(own, others[:, None], each)
    return jax.vmap(lambda values: power_mean(values, _equal(values), alpha))(without)


def _equal(each: Float[Array, "draws units"]) -> Float[Array, "draws units"]:
    """Log shares of draws that count the same."""
    return jnp.full(each.shape, -jnp.log(each.shape[0]))


def drawn_weights(
    key: Array,
    guide: Guide,
    joints: tuple[Joint, Joint],
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    count: int,
) -> Draws:
    """`plain_weights` at one draw of the numbers for each of `count` draws of the choice, which stand with the numbers.

    Nothing is learned from the score: for objectives in which q of the locals is as if given.
    """

    def draw(key: Array) -> Draws:
        choice_key, key = jax.random.split(key)
        at = guide.at_choices(choice_key, context, shared, batch, joints[1])
        noise = guide.local_noise(key, joints[1], batch, 1, batch_size(batch))
        each = plain_weights(noise, guide, joints, at, context, shared)
        log_choice = guide.choices_log_prob(context, shared, at, joints[1])
        digits = jnp.asarray(at.choice, each.local.dtype)
        choice = jnp.broadcast_to(digits, (*each.log_q.shape, digits.shape[-1]))
        local = jnp.concatenate([each.local, choice], axis=-1)
        share = each.log_share - jnp.log(count)
        return Draws(local, each.log_q + log_choice, each.log_weight - log_choice, share, each.log_prior)

    every = jax.vmap(draw)(jax.random.split(key, count))
    parts = every.local, every.log_q, every.log_weight, every.log_share
    local, log_q, log_weight, log_share = map(together, parts)
    return Draws(local, log_q, log_weight, log_share, every.log_prior[0])


def relaxed_bounds(
    key: Array,
    guide: Guide,
    joint: Joint,
    batch: Batch,
    context: Context,
    shared: Float[Array, " g"],
    *,
    temperature: float,
) -> tuple[Float[Array, " units"], Float[Array, ""]]:
    """(ELBO of every unit by one draw of its choice, log p(v)), with the straight-through gradient, which is biased.

    The draw itself is exact, and so is the bound: Gumbel-softmax at `temperature` stands in its gradient alone.
    """
    choice_key, key = jax.random.split(key)
    at = guide.at_choices(choice_key, context, shared, batch, joint, temperature)
    try:
        draws = local_draws(key, guide, joint, at, context, shared)
    except ModelError as error:
        names = [site.name for site in joint.structure.drawn]
        raise FitError(
            f"am.ELBO(straight_through={temperature:g}): the model can't take {names} "
            f"as numbers between two values: {error}; write what depends on them by arithmetic (a + b * c), or leave "
            "straight_through out: the score function asks nothing of the model"
        ) from error
    return draws.elbo - guide.choices_log_prob(context, shared, at, joint), draws.log_prior
