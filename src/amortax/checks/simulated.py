"""Where do the true latents of simulated units stand among draws of q? The computed part of calibration.

For every simulated unit, with the covariates, lengths and masks of a real one,

    v* ~ q(v),   (u*, d*) ~ p( . | v*),   u_1, ..., u_L ~ q(u | d*, v*),

with the same v* everywhere. If q(u | d, v) is the model's posterior, u* is one more draw, and for any function f of the
latents and the data the rank of f(u*) among f(u_1), ..., f(u_L) is uniform on 0, ..., L (Cook, Gelman and Rubin 2006;
Talts et al. 2018). Ties are broken at random: with U uniform on (0, 1),

    place = (#{f(u_l) < f(u*)} + U (#{f(u_l) = f(u*)} + 1)) / (L + 1)

is uniform on (0, 1), and floor((L + 1) place) is the rank. The functions are every unconstrained number and every
discrete value; the log density of the model, which depends on the data and sees what single numbers can't (Modrák et
al. 2023); and the distance from a random point, over all numbers together (TARP, Lemos et al. 2023). That point and
the scale of the distance come from all L + 1 values alike, so that u* stays one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import AnyArray, Batch, Context
from ..chunks import chunks
from ..data import Units
from ..guide import Guide
from ..joint.assignments import Choices
from ..joint.eliminate import own_elements
from ..joint.joint import Joint
from ..joint.structure import Site, Structure
from ..objectives.forward import FARTHEST

Parts = dict[str, AnyArray]  # by site: its unconstrained numbers, or its discrete values


class Places(eqx.Module):
    """Where the truth stands among the draws, by simulated unit."""

    sites: dict[str, AnyArray]  # (units, ...) in the model's layout
    own: dict[str, AnyArray]  # False in padding, and at labels that were seen
    density: Float[AnyArray, " units"]
    distance: Float[AnyArray, " units"]
    useful: Bool[AnyArray, " units"]  # False where the simulation itself is not finite, or too far out
    finite: Bool[AnyArray, " units"]  # False where draws of q, or the density there, are not


def simulated_places(
    joint: Joint, guide: Guide, data: Units, rows: np.ndarray, *, key: Array, num_draws: int
) -> Places:
    """Places of the truth in units simulated in the stead of `rows` of `data`, one for each, on the host."""
    limits, parts = limits_of(data), []
    for chunk in chunks(data.take(rows), joint.structure, num_draws):
        found = _places(key, guide, joint, chunk.batch, chunk.index, limits, num_draws)
        parts.append(jax.tree.map(lambda x, c=chunk: np.asarray(x)[: c.stop - c.start], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@eqx.filter_jit
def _places(
    key: Array, guide: Guide, joint: Joint, batch: Batch, index: Array, limits: dict[str, Array], num_draws: int
) -> Places:
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)

    local, chosen, shared, drawn = jax.vmap(lambda k, unit: simulated_unit(k, guide, joint, unit))(keys[:, 0], batch)

    def placed(
        key: Array, local: Array, chosen: Choices, shared: Array, context: Context, unit: Batch
    ) -> tuple[Parts, ...]:
        return _place(key, guide, joint, (local, chosen, shared), context, unit, num_draws)

    sites, own, rest = jax.vmap(placed)(keys[:, 1], local, chosen, shared, guide.encode(drawn), drawn)
    useful = jax.vmap(lambda unit: is_near(unit, limits))(drawn) & rest["useful"]
    return Places(sites, own, rest["density"], rest["distance"], useful, rest["finite"])


def simulated_unit(key: Array, guide: Guide, joint: Joint, unit: Batch) -> tuple[Array, Choices, Array, Batch]:
    """(locals, discrete values, globals, data) of one unit simulated in the place of `unit`, at a draw of q(v)."""
    globals_key, key = jax.random.split(key)
    shared, _ = guide.sample_shared(globals_key)
    local, chosen, responses = joint.simulate_complete(key, shared, unit)
    return local, chosen, shared, Batch({**unit.arrays, **responses}, unit.masks, unit.lengths)


def limits_of(data: Units) -> dict[str, Array]:
    """By argument: how far out a simulated number may be."""
    return {n: jnp.float32(FARTHEST * max(1.0, float(np.max(np.abs(x))))) for n, x in data.arrays.items()}


def is_near(unit: Batch, limits: dict[str, Array]) -> Bool[Array, ""]:
    """Whether all numbers of one unit's data are finite and within the limits."""
    return jnp.all(jnp.stack([jnp.all(jnp.abs(x) <= limits[name]) for name, x in unit.arrays.items()]))


def _place(
    key: Array,
    guide: Guide,
    joint: Joint,
    truth: tuple[Array, Choices, Array],
    context: Context,
    unit: Batch,
    num_draws: int,
) -> tuple[Parts, Parts, Parts]:
    """(places by site, which are the unit's own, the rest of `Places`) of one simulated unit."""
    local, chosen, shared = truth
    structure = joint.structure.at(unit)
    draw_key, tie_key, point_key, distance_key = jax.random.split(key, 4)

    def evaluated(local: Array, chosen: Choices) -> tuple[Parts, Array]:
        numbers = structure.unpack("local", local[: structure.size("local")])
        values = {site.name: chosen[site.name].astype(jnp.float32) for site in structure.summed}
        return {**numbers, **values}, joint.complete_log_prob(chosen, local, shared, unit).unit

    def draw(key: Array) -> tuple[Parts, Array]:
        local_key, choice_key = jax.random.split(key)
        drawn, _ = guide.sample_local(local_key, context, shared, unit, joint)
        return evaluated(drawn, joint.choose(choice_key, drawn, shared, unit))

    draws, densities = jax.vmap(draw)(jax.random.split(draw_key, num_draws))
    true, density = evaluated(local, chosen)
    shapes = {name: x.shape for name, x in true.items()}
    own = {name: _own(joint, structure, name, shape, unit) for name, shape in shapes.items()}
    distances = _distances(point_key, true, draws, own)
    functions = {**true, "": density}, {**draws, "": densities}
    ties = dict(zip(functions[0], jax.random.split(tie_key, len(functions[0])), strict=True))
    places = {n: among(jax.random.uniform(ties[n], x.shape), x, functions[1][n]) for n, x in functions[0].items()}
    rest = {
        "density": places.pop(""),
        "distance": among(jax.random.uniform(distance_key), distances[0], distances[1:]),
        "useful": _all_finite(true, own),
        "finite": _all_finite(draws, own) & ~jnp.any(jnp.isnan(densities)),
    }
    return places, own, rest


def among(uniform: Array, true: Array, draws: Array) -> Array:
    """The place of `true` among `draws` (leading axis) in (0, 1), ties broken by `uniform` numbers.

    It is uniform if the truth is one of them, as their order says nothing then.
    """
    lower, equal = jnp.sum(draws < true, axis=0), jnp.sum(draws == true, axis=0)
    return (lower + uniform * (equal + 1)) / (draws.shape[0] + 1)


def _distances(key: Array, true: Parts, draws: Parts, own: Mapping[str, Array]) -> Float[Array, " draws"]:
    """Of the truth, then of every draw, from a random point near all of them; in standard deviations."""
    every = {name: jnp.concatenate([true[name][None], draws[name]]) for name in true}
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in every.values()], axis=1)
    mask = jnp.concatenate([jnp.ravel(own[name]) for name in every])
    spread = jnp.std(flat, axis=0)
    scaled = (flat - jnp.mean(flat, axis=0)) / jnp.where(spread > 0, spread, 1.0)
    point = jax.random.normal(key, mask.shape)
    return jnp.sum(jnp.where(mask, (scaled - point) ** 2, 0.0), axis=1)


def _all_finite(values: Parts, own: Mapping[str, Array]) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x) | ~own[name]) for name, x in values.items()]))


def _own(joint: Joint, structure: Structure, name: str, shape: tuple[int, ...], unit: Batch) -> Array:
    """Which of a site's numbers in the model's layout are the unit's own latents."""
    site = next(site for site in structure.sites if site.name == name)
    own = _without_padding(structure, site, shape, unit)
    if site.argument is None:
        return own
    if site.argument not in unit.masks:
        return jnp.zeros(shape, bool)
    seen = jnp.expand_dims(unit.masks[site.argument], structure.argument(site.argument).axis)
    return own & ~jnp.expand_dims(seen, site.added)


def _without_padding(structure: Structure, site: Site, shape: tuple[int, ...], unit: Batch) -> Array:
    own = jnp.ones(shape, bool)
    if site.role != "local":
        batch_shape = shape[: len(shape) - site.event_dim]
        inside = own_elements(structure, site.plates, batch_shape, unit.lengths)
        return own if inside is None else own & inside.reshape(*inside.shape, *(1,) * site.event_dim)
    arguments = {plate.name: plate.argument for plate in structure.plates}
    for name, axis in site.plate_axes.items():
        length = unit.lengths.get(arguments[name] or "")
        if length is not None:
            own &= (jnp.arange(shape[axis]) < length).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return own
