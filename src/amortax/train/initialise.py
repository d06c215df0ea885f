"""Where does training start? Parameters drawn, inputs standardised on the training data, latents whitened by the prior.

Whitening uses medians and quartiles of draws from the prior, not means and deviations: a Cauchy prior has neither.
"""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Batch, Fixed
from ..encoders.base import training_statistics
from ..families.exponential import ExponentialFamily
from ..families.filtering import Filtering
from ..families.nested import nested
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.levels import levels_of
from ..joint.probe import initial_params
from ..joint.tree import Tree, tree_of
from ..plan import Plan

PRIOR_DRAWS, FEWEST_DRAWS = 1000, 100  # in all, and given one choice or where globals are very many
MOST_NUMBERS = 10_000_000  # of globals in all draws: 40 MB
QUARTILE = 0.6744897501960817  # of the standard normal
VAGUE = 3.0  # e-folds


def initialise(plan: Plan, data: Batch, key: Array) -> tuple[Joint, Guide]:
    """The pair before the first step; `data` are all training units (host arrays)."""
    param_key, build_key, prior_key = jax.random.split(key, 3)
    joint = Joint(plan.model, plan.structure, initial_params(plan.model, plan.structure, data, param_key))
    guide = jax.jit(lambda k: eqx.filter(plan.build(k), eqx.is_array))(build_key)
    guide = eqx.combine(guide, plan.skeleton())
    if guide.encoder is not None:
        statistics = training_statistics(guide.encoder.features.inputs, data)
        guide = eqx.tree_at(
            lambda g: g.encoder.features.statistics, guide, Fixed(jax.tree.map(jnp.asarray, statistics))
        )
    family = None if guide.shared is None else guide.shared.family
    fitted = isinstance(family, ExponentialFamily)
    options = {"by_elements": isinstance(plan.family, nested), "globals_too": not (fitted and family.ignores_prior)}
    shared, local = prior_whitening(joint, data, prior_key, **options)
    if guide.shared is not None:
        framed = family.own_frame(shared) if fitted else shared
        guide = eqx.tree_at(lambda g: g.shared.whitening, guide, Fixed(framed))
    if guide.local is not None:
        tied = guide.local.family.tied(Fixed(local)) if isinstance(guide.local.family, Filtering) else Fixed(local)
        guide = eqx.tree_at(lambda g: g.local.whitening, guide, tied)
    return joint, guide


def prior_whitening(
    joint: Joint, data: Batch, key: Array, *, by_elements: bool = False, globals_too: bool = True
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Center and scale of globals and of locals, unconstrained, over draws of the prior at the data's covariates.

    Neutral ones of globals, which are not drawn either, unless `globals_too`. Those of locals that follow a learned
    choice are given that choice, one row for each if they are listed: a q of them that starts where they can't be under
    a choice would never learn that it is possible. With `by_elements` all elements of a level share theirs.
    """
    size = len(next(iter(data.arrays.values())))
    count = int(np.clip(MOST_NUMBERS // max(joint.shared_size, 1), FEWEST_DRAWS, PRIOR_DRAWS))
    rows = np.resize(np.arange(min(count, size)), count)
    units = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), data)
    listed = joint.structure.learned and not joint.structure.drawn
    choices = levels_of(joint.structure)[0].size if listed else None
    tree = tree_of(joint.structure)
    if "improper" in joint.structure.cannot_simulate:
        own = _neutral(sum(x.width for x in tree.levels) if by_elements else joint.structure.size("local"))
        return _neutral(joint.shared_size), own if choices is None else _stacked([own] * choices)
    local, shared = _simulate(joint, jax.random.split(key, count), units, globals_too=globals_too)
    whole = _quartiles(np.asarray(shared), _bent(joint, "global")) if globals_too else _neutral(joint.shared_size)
    if by_elements:
        return whole, _pooled(tree_of(joint.structure.at(data)), np.asarray(local), joint.at(data))
    if choices is None:
        return whole, _quartiles(np.asarray(local), _bent(joint, "local"))
    few = max(count // choices, FEWEST_DRAWS)
    unlabelled = {n: jnp.zeros_like(m) if n in joint.structure.labels else m for n, m in units.masks.items()}
    units = jax.tree.map(lambda x: x[:few], Batch(units.arrays, unlabelled, units.lengths))
    each = _simulate_choices(joint, jax.random.split(key, few), units, jnp.arange(choices))
    return whole, _stacked([_quartiles(local, _bent(joint, "local")) for local in np.asarray(each)])


@eqx.filter_jit
def _simulate(joint: Joint, keys: Array, units: Batch, *, globals_too: bool) -> tuple[Array, Array]:
    """(locals, globals) of draws; what is not returned, and no local needs, XLA leaves out."""
    local, shared = jax.vmap(joint.draw_latents)(keys, units)
    return local, shared if globals_too else shared[:, :0]


@eqx.filter_jit
def _simulate_choices(joint: Joint, keys: Array, units: Batch, choices: Array) -> Array:
    """Draws (choices, draws, d) of locals given each choice."""
    return jax.vmap(
        lambda choice: jax.vmap(lambda key, unit: joint.draw_latents(key, unit.at(choice))[0])(keys, units)
    )(choices)


def _pooled(tree: Tree, draws: np.ndarray, joint: Joint) -> dict[str, Array]:
    """One center and scale for each number of an element, over all elements of its level."""
    bent, found = _bent(joint, "local"), []
    for level in tree.levels:
        index = level.index().reshape(-1, level.width)
        found.append(_quartiles(draws[:, index].reshape(-1, level.width), bent[index[0]]))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *found)


def _stacked(each: list[dict[str, Array]]) -> dict[str, Array]:
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def _neutral(size: int) -> dict[str, Array]:
    return {"center": jnp.zeros(size), "scale": jnp.ones(size)}


def _bent(joint: Joint, role: Literal["local", "global"]) -> np.ndarray:
    """True at coordinates whose support is not all reals, where an unconstrained unit is a factor of e or so."""
    sites = joint.structure.of(role)
    return np.concatenate([np.zeros(0, bool), *(np.full(s.free_size, "Real" not in s.support) for s in sites)])


def _quartiles(draws: np.ndarray, bent: np.ndarray) -> dict[str, Array]:
    """Medians and quartile spreads; a prior so vague that its draws overflow, Gamma(0.001, 0.001), is not followed."""
    draws = np.where(np.isfinite(draws), draws.astype(np.float64), np.nan)
    draws = np.where(np.isnan(draws).all(axis=0, keepdims=True), 0.0, draws)
    quantile = np.nanquantile if np.isnan(draws).any() else np.quantile  # which is faster by far
    low, middle, high = quantile(draws, [0.25, 0.5, 0.75], axis=0) if draws.shape[1] else np.zeros((3, 0))
    scale = (high - low) / (2 * QUARTILE)
    vague = bent & (scale > VAGUE)
    middle, scale = np.where(vague, np.clip(middle, -VAGUE, VAGUE), middle), np.where(vague, VAGUE, scale)
    return {"center": jnp.asarray(middle), "scale": jnp.asarray(np.where(scale > 1e-8, scale, 1.0))}
