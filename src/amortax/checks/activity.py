"""Which latents does q use? KL from the prior and activity of each, and whether an unused one is needed.

For unit i and draws v_r ~ q(v), on the scale of the unit's prior given v (ũ: prior mean 0 and sd 1, number by number),

    activity_j = Var_i( E_q[ũ_ij] )                        (Burda, Grosse and Salakhutdinov 2016),
    KL_j       = mean_i KL( N(E_q[ũ_ij], Var_q[ũ_ij]) ‖ N(0, 1) ),

both free of the bias of their draws: the variance is a covariance between two halves of them, and the KL of equal
distributions, 1/S + 1/P in the mean, is taken off. A coordinate is active if either exceeds 0.01. Elements of an inner
plate are pooled as units are. A rotation of the latents spreads a few active directions over all coordinates, so the
eigenvalues of the covariance of E_q[ũ_i] are counted too. The KL of a unit as a whole needs no normal.

An unused latent is no failure where the model does not need it. Some units get a q of their own, a diagonal normal that
starts off the prior: where its KL collapses too, the latent is not needed; where it stays away and the unit's bound
rises, training gave up. With learned parameters both are said given these: a decoder that ignores a latent needs none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Batch
from ..chunks import chunks, evenly
from ..data import Units
from ..guide import Guide
from ..importance import shared_draws
from ..joint.draws import prior_locals
from ..joint.joint import Joint
from ..joint.structure import Structure
from ..joint.tree import own_numbers
from .collapse import refine_few
from .report import Reason, Tables

GLOBAL_DRAWS, DRAWS, PRIOR_DRAWS = 4, 256, 512  # of q(v); per draw of these, of q and of the prior of each unit
ACTIVE = 0.01  # variance in prior sd², and nats
GAINED = 0.05  # nats that a refined q must stay away from the prior, and its bound must rise
MOST_ROWS, MOST_DIRECTIONS = 100, 200  # elements of a site that have rows of their own; numbers of a unit


class Activity(NamedTuple):
    """What was found, and why nothing was, or empty."""

    numbers: dict[str, float]
    reasons: list[Reason]
    tables: Tables
    skipped: str = ""


class Moments(NamedTuple):
    """Of the units' numbers, given each of r draws of the globals; arrays of JAX inside the pass, NumPy's after it."""

    halves: Any  # (units, r, 2, d) means of q over either half of the draws
    variance: Any  # (units, r, d) of q: zero for what is padded
    prior_mean: Any  # (units, r, d)
    prior_variance: Any  # (units, r, d)
    divergence: Any  # (units, r) KL(q ‖ prior) of the whole unit, nats; NaN where discrete sites are summed


def activity(joint: Joint, guide: Guide, data: Units, *, key: Array, most_units: int, refined_units: int) -> Activity:
    """Numbers, reasons, the table of latents, of at most `most_units` units, evenly spaced.

    Where some latents are idle, `refined_units` of the units get a q of their own.
    """
    if guide.local is None or not most_units:
        return Activity({}, [], {})
    if "improper prior" in joint.structure.cannot_simulate:
        return Activity({}, [], {}, joint.structure.cannot_simulate)
    data = data.take(evenly(len(data), most_units))
    shared, _ = shared_draws(jax.random.fold_in(key, 0), guide, GLOBAL_DRAWS)
    each, structure = _moments(joint, guide, data, shared, jax.random.fold_in(key, 1))
    seen = whitened(each)
    names, groups = coordinates(structure)
    table = {"latent": np.array(names), "kl": pooled(seen["kl"], groups), "activity": pooled_activity(seen, groups)}
    active = (table["kl"] > ACTIVE) | (table["activity"] > ACTIVE)
    numbers = {"latents": float(len(names)), "active_latents": float(active.sum())}
    if not np.isnan(each.divergence).any():
        numbers["kl_per_unit"] = float(each.divergence.mean())
    directions = None
    if not any(site.plates for site in joint.structure.of("local")) and _can_turn(len(data), len(groups)):
        values, directions = np.linalg.eigh(cross_covariance(seen["halves"]))
        numbers["active_directions"] = float(np.sum(values > ACTIVE))
        directions = directions[:, values <= ACTIVE]
    idle = not active.all() or (directions is not None and directions.shape[1] > 0)
    refined = None
    if idle and refined_units and not joint.structure.learned:
        refined = refine_few(joint, guide, data, shared[0], each, jax.random.fold_in(key, 2), refined_units)
    table["verdict"] = verdicts(active, table["kl"], groups, refined)
    turned = None if refined is None or directions is None else turned_away(refined["mean"], directions)
    return Activity(numbers, reasons(table, turned, refined), {"latents": table})


def _can_turn(units: int, size: int) -> bool:
    return 1 < size <= MOST_DIRECTIONS and units > 4 * size


def _moments(joint: Joint, guide: Guide, data: Units, shared: Array, key: Array) -> tuple[Moments, Structure]:
    parts, structure = [], joint.structure
    for chunk in chunks(data, joint.structure, GLOBAL_DRAWS * DRAWS):
        structure = structure.at(chunk.batch)  # chunks of one set of units are padded alike
        found = _chunk_moments(joint, guide, chunk.batch, chunk.index, shared, key)
        parts.append(jax.tree.map(lambda x, c=chunk: np.asarray(x, np.float64)[: c.stop - c.start], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), structure


@eqx.filter_jit
def _chunk_moments(joint: Joint, guide: Guide, batch: Batch, index: Array, shared: Array, key: Array) -> Moments:
    contexts, structure = guide.encode(batch), joint.structure
    prior_keys = jax.random.split(jax.random.fold_in(key, 1), (shared.shape[0], PRIOR_DRAWS))  # for all units alike

    def one(index: Array, context: Any, unit: Batch) -> Moments:
        size = structure.at(unit).size("local")
        own = own_numbers(structure, unit)

        def draw(key: Array, v: Array) -> tuple[Array, Array]:
            local, log_q = guide.sample_local(key, context, v, unit, joint)
            prior = jnp.nan if structure.summed else joint.unit_log_prior(local, v, unit)
            return local[:size], log_q - prior

        def given(key: Array, prior_keys: Array, v: Array) -> Moments:
            draws, divergence = jax.vmap(draw, in_axes=(0, None))(jax.random.split(key, DRAWS), v)
            prior = jax.vmap(lambda k: prior_locals(joint, k, v, unit))(prior_keys)
            halves = jnp.mean(draws.reshape(2, DRAWS // 2, size), axis=1)
            variance, prior_variance = jnp.var(draws, axis=0, ddof=1), jnp.var(prior, axis=0, ddof=1)
            variance = jnp.where(own, variance, 0.0)
            return Moments(halves, variance, jnp.mean(prior, axis=0), prior_variance, jnp.mean(divergence))

        unit_key = jax.random.fold_in(jax.random.fold_in(key, 0), index)
        return jax.vmap(given)(jax.random.split(unit_key, shared.shape[0]), prior_keys, shared)

    return jax.vmap(one)(index, contexts, batch)


def whitened(each: Moments) -> dict[str, np.ndarray]:
    """`halves` of the means on the prior's scale and `kl` of every coordinate; NaN where it is padding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.where(each.variance > 0, np.sqrt(each.prior_variance), np.nan)
        halves = (each.halves - each.prior_mean[:, :, None]) / sd[:, :, None]
        ratio, mean = each.variance / sd**2, halves.mean(axis=2)
        kl = 0.5 * (mean**2 + ratio - 1.0 - np.log(ratio)) - 1.0 / DRAWS - 1.0 / PRIOR_DRAWS
    return {"halves": halves, "kl": kl}


def coordinates(structure: Structure) -> tuple[list[str], list[np.ndarray]]:
    """Names of the latents, and the places of each among a unit's numbers: elements of inner plates are one latent."""
    names, groups, start = [], [], 0
    for site in structure.of("local"):
        shape = np.array(site.free_shape, int)
        places = start + np.arange(site.free_size).reshape(tuple(shape))
        axes = sorted(site.plate_axes.values())
        rows = np.moveaxis(places, axes, range(len(axes))).reshape(math.prod(shape[axes].tolist()), -1)
        start += site.free_size
        if rows.shape[1] == 1 or rows.shape[1] > MOST_ROWS:
            names.append(site.name)
            groups.append(rows.ravel())
            continue
        kept = [n for axis, n in enumerate(shape) if axis not in axes and n > 1]
        for place, column in zip(np.ndindex(*kept), rows.T, strict=True):
            names.append(f"{site.name}[{', '.join(map(str, place))}]")
            groups.append(column)
    return names, groups


def pooled(values: Float[np.ndarray, "units r d"], groups: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each latent over units, draws of the globals and elements."""
    return np.array([np.nanmean(values[..., places]) for places in groups])


def pooled_activity(seen: dict[str, np.ndarray], groups: Sequence[np.ndarray]) -> np.ndarray:
    """Covariance between the means of either half, over units and elements, given each draw of the globals."""
    found = []
    for places in groups:
        parts = np.moveaxis(seen["halves"][..., places], (1, 2), (0, 1)).reshape(seen["halves"].shape[1], 2, -1)
        centred = parts - np.nanmean(parts, axis=2, keepdims=True)
        count = np.sum(~np.isnan(parts[:, 0]), axis=1)
        product = np.nansum(centred[:, 0] * centred[:, 1], axis=1)
        found.append(float(np.mean(product / np.maximum(count - 1, 1))))
    return np.array(found)


def cross_covariance(halves: Float[np.ndarray, "units r 2 d"]) -> Float[np.ndarray, "d d"]:
    """Covariance over units of the means of q, unbiased: between either half of the draws."""
    centred = halves - halves.mean(axis=0)
    found = np.einsum("nri,nrj->ij", centred[:, :, 0], centred[:, :, 1]) / (halves.shape[1] * (len(halves) - 1))
    return 0.5 * (found + found.T)


def verdicts(
    active: np.ndarray, kl: np.ndarray, groups: Sequence[np.ndarray], refined: dict[str, Any] | None
) -> np.ndarray:
    """active; not needed (a refined q collapses too); gave up (it doesn't, and is better); undecided; not tested."""
    if refined is None:
        return np.where(active, "active", "not tested")
    stays = np.array([np.nanmean(refined["kl"][:, places]) for places in groups]) - kl > GAINED
    better = "gave up" if gained(refined) else "undecided"
    return np.select([active, ~stays], ["active", "not needed"], better)


def gained(refined: dict[str, Any]) -> bool:
    """Whether the units' own q have a higher bound, beyond three standard errors."""
    return bool(refined["gain"] > GAINED + 3.0 * refined["gain_se"])


def turned_away(mean: Float[np.ndarray, "units d"], directions: Float[np.ndarray, "d k"]) -> int:
    """How many of the inactive directions the refined means leave by more than chance: ½ E[(w'm)²] above the limit."""
    return int(np.sum(0.5 * np.mean((mean @ directions) ** 2, axis=0) > GAINED))


def reasons(table: dict[str, np.ndarray], turned: int | None, refined: dict[str, Any] | None) -> list[Reason]:
    """A warning where training gave up on a latent, or on a direction of several; none where it is not needed."""
    lost = table["verdict"] == "gave up"
    if refined is None or not gained(refined) or not (lost.any() or turned):
        return []
    names = [f"'{name}' (KL {kl:.3f} nats)" for name, kl in zip(table["latent"][lost], table["kl"][lost], strict=True)]
    which = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
    which = f"latent {which}" if names else f"{turned} direction{'s' * (turned != 1)} of the latents"
    text = (
        f"q leaves {which} at the prior (limit {ACTIVE} nats), though {refined['units']} units with a q of their own "
        f"move away and gain {refined['gain']:.2f} ± {refined['gain_se']:.2f} nats each: training gave up on it."
    )
    step = (
        "am.fit(plan, data, objective=am.ELBO(kl_weight=am.warm_up(1000)), key=...), or am.ELBO(free_bits=...); other "
        "keys; a wider encoder"
    )
    return [Reason("collapse", "WARN", text, step)]
