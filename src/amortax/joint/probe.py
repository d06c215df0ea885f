"""Is the model separable by unit? Computed on a few real units, since reading the program can't tell.

At standard normal unconstrained latents, every site's log density in one call with a few units must equal, element by
element, those of calls with one unit each; longer padding and other values under a mask must change nothing; and
elements of an inner plate are exchangeable if permuting them changes no site's sum. Nothing of this raises by itself
when it is wrong. Equal rows or parameters that start at zero would hide it: units are chosen to differ, covariates are
shrunk by other factors in each, and parameters are moved off where they start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ModelError
from .._types import Batch, PyTree
from .blanket import part_of, refuse_mixed
from .elements import choice_values, refuse_tied_elements
from .layout import to_model
from .masks import own_places, site_log_prob, site_masks
from .observe import reading
from .structure import DENSE, InnerPlate, Site, Structure
from .trace import run

MOST_UNITS = 8
RELATIVE = 1e-5  # float32 noise of the same arithmetic in another batch shape


Facts = dict[str, np.ndarray]  # by site: log densities of its elements, or its deterministic value
Density = Callable[[Batch, dict[str, np.ndarray]], Facts]


def probe(model: Callable, structure: Structure, data: Batch, params: PyTree, key: jax.Array) -> Structure:
    """Checks separability, masks and padding on a few units of `data`; returns what it learns of exchangeability."""
    units = _varied(_pick(data), structure)
    num_units = len(next(iter(units.arrays.values())))
    density = _compiled(model, structure, _moved(params, key), key)
    free = _latents(structure, num_units) | choice_values(structure, num_units)
    together = density(units, free)
    for plate in structure.plates:
        refuse_tied_elements(plate, structure, free, lambda values: density(units, values), _close)
    for other in _refilled(units):
        _compare_hidden(together, density(other, free), structure)
    axes = _latent_axes(structure)
    for index in range(num_units):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1], units)
        own = {n: np.take(x, [index], axis=axes[n]) if n in axes else x for n, x in free.items()}
        alone = density(one, own)
        if site := _differing(together, alone, index, structure):
            refuse_mixed(structure, (site, index), (together, alone), density, (units, free))
        if data.lengths:
            _compare_hidden(alone, density(_padded(one), _stretched(own, structure)), structure)
    plates = tuple(
        dataclasses.replace(p, exchangeable=_exchangeable(p, structure, units, free, density, together))
        for p in structure.plates
    )
    return dataclasses.replace(structure, plates=plates)


def _latents(structure: Structure, num_units: int) -> dict[str, np.ndarray]:
    """Standard normal unconstrained latents of some units, in the model's layout: possible for any prior."""
    random, free = np.random.default_rng(0), {}
    for site in structure.of("local", "global"):
        shape = list(site.free_shape)
        if site.per_unit:
            shape[site.unit_axis] = num_units
        free[site.name] = random.normal(size=shape).astype(np.dtype(jnp.result_type(float)))
    return free


def initial_params(model: Callable, structure: Structure, data: Batch, key: jax.Array) -> dict[str, PyTree]:
    """Free values of every `param` and module as the model initialises them."""
    if not structure.params:
        return {}
    from .trace import param_to_unconstrained

    axes = {a.name: a.axis for a in structure.arguments}
    one = jax.tree.map(lambda x: jnp.asarray(x[:1]), data)
    with reading(model):
        records = run(model, to_model(one.arrays, axes), key=key)
    found = {n: param_to_unconstrained(records[n], records[n].value) for n in structure.params}
    return jax.tree.map(jnp.asarray, found)


def _pick(data: Batch) -> Batch:
    """Units that differ: shortest and longest, least and greatest in every argument, one with missing values."""
    num = len(next(iter(data.arrays.values())))
    chosen = list(range(min(2, num)))
    for lengths in data.lengths.values():
        chosen += [int(np.argmin(lengths)), int(np.argmax(lengths))]
    holes = np.zeros(num, bool)
    for name, array in data.arrays.items():
        mask: Any = np.asarray(data.masks.get(name, np.ones(array.shape, bool)))
        holes |= (own_places(mask, data.lengths.get(name)) & ~mask).reshape(num, -1).any(axis=1)
        levels = np.where(mask, np.asarray(array, np.float64), 0.0).reshape(num, -1).sum(axis=1)
        chosen += [int(np.argmin(levels)), int(np.argmax(levels))]
    chosen += [int(np.argmax(holes))] if holes.any() else []
    rows = list(dict.fromkeys(chosen))
    rows = sorted({*rows[: MOST_UNITS - 1], rows[-1]})
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), data)


def _varied(units: Batch, structure: Structure) -> Batch:
    """Every unit's numeric covariates shrunk by a factor of its own, which keeps their signs and bounds around zero."""
    arrays = dict(units.arrays)
    for argument in structure.arguments:
        array = arrays[argument.name]
        if argument.role == "covariate" and jnp.issubdtype(array.dtype, jnp.floating):
            factors = 1.0 - 0.3 * np.random.default_rng(1).random(array.shape[0])
            arrays[argument.name] = array * factors.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)
    return Batch(arrays, units.masks, units.lengths)


def _moved(params: PyTree, key: jax.Array) -> PyTree:
    """Free parameters a tenth of their size off where they start, so that a start at zero hides nothing."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def moved(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        size = jnp.sqrt(jnp.mean(leaf**2))
        return leaf + 0.1 * jnp.where(size > 0, size, 1.0) * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(treedef, [moved(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def _compiled(model: Callable, structure: Structure, params: PyTree, key: jax.Array) -> Density:
    axes = {a.name: a.axis for a in structure.arguments}

    @jax.jit
    def program(units: Batch, free: dict[str, Any]) -> dict[str, Any]:
        data = Batch(to_model(units.arrays, axes), to_model(units.masks, axes), units.lengths)
        for argument, site in structure.labels.items():  # here a latent like any other
            value = site.as_argument(jnp.asarray(free[site.name]))
            data.arrays[argument] = jnp.broadcast_to(value, data.arrays[argument].shape)
            data.masks.pop(argument)
        given = {s.name: free[s.name] for s in structure.of("discrete")}
        numbers = {s.name: free[s.name] for s in structure.of("local", "global")}
        records = run(model, data.arrays, key=key, unconstrained=numbers, given=given, params=params)
        masks = site_masks(model, structure, records, data, params)
        densities = structure.of(*DENSE)
        facts = {s.name: site_log_prob(records[s.name], masks.get(s.name)) for s in densities}
        return facts | {s.name: records[s.name].value for s in structure.of("deterministic")}

    def call(units: Batch, free: dict[str, np.ndarray]) -> Facts:
        with reading(model):
            return jax.tree.map(np.asarray, program(units, free))

    return _one_by_one(call, structure) if structure.whole else call


def _one_by_one(call: Density, structure: Structure) -> Density:
    """Data sets never meet in one run of the model: theirs are put together."""
    axes = _latent_axes(structure)

    def together(units: Batch, free: dict[str, np.ndarray]) -> Facts:
        size = len(next(iter(units.arrays.values())))
        facts = []
        for i in range(size):
            own = {n: np.take(x, [i], axes[n]) for n, x in free.items()}
            facts.append(call(jax.tree.map(lambda x, i=i: x[i : i + 1], units), own))
        found = {}
        for site in structure.of(*DENSE, "deterministic"):
            values = [each[site.name] for each in facts]
            axis = values[0].ndim - (site.event_dim if site.role == "deterministic" else 0) + site.unit_dim
            found[site.name] = np.concatenate(values, axis=axis)
        return found

    return together


def _latent_axes(structure: Structure) -> dict[str, int]:
    return {s.name: s.unit_axis for s in (*structure.of("local"), *structure.summed)}


def _differing(together: Facts, alone: Facts, index: int, structure: Structure) -> Site | None:
    """The first site, in the model's order, whose densities or values of a unit among others are not those alone."""
    for site in structure.sites:
        part, mine = part_of(together[site.name], site, index), alone[site.name]
        size = float(np.max(np.abs(part), initial=0.0)) if site.role == "deterministic" else 0.0
        if part.shape != mine.shape or not _close(part, mine, size):
            return site
    return None


def _compare_hidden(seen: Facts, other: Facts, structure: Structure) -> None:
    """Densities and values before and after a change that no site may see: of padding, or of what fills a gap."""
    ragged = {p.name for p in structure.plates if p.ragged}
    for site in structure.sites:
        first, second = seen[site.name], other[site.name]
        if site.role == "deterministic" and (ragged & set(site.dims) or first.shape != second.shape):
            continue
        if _close(np.sum(first), np.sum(second), float(np.sum(np.abs(first)))):
            continue
        what = "value" if site.role == "deterministic" else "log density"
        raise ModelError(
            f"site '{site.name}' changes with padding, or with what stands in missing "
            f"places: {what} {np.sum(first):.6g}, then {np.sum(second):.6g}. It uses a ragged or "
            f"partly missing argument outside its plate (a mean or sum "
            "over elements, an element before or after); compute that before and pass it as an argument per unit"
        )


def _close(first: Any, second: Any, size: float = 0.0) -> bool:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        near = np.abs(first - second) <= RELATIVE * (1.0 + np.abs(first) + size)
    return bool(np.all(same | near))


def _refilled(units: Batch) -> list[Batch]:
    """The units with other real values under their masks: the smallest and the largest there are."""
    if all(np.all(mask) for mask in units.masks.values()):
        return []

    def fill(name: str, choose: Callable) -> jax.Array:
        values, mask = units.arrays[name], units.masks.get(name)
        if mask is None or not np.any(mask):
            return values
        return jnp.where(mask, values, choose(np.asarray(values)[np.asarray(mask)]).astype(values.dtype))

    return [
        Batch({name: fill(name, choose) for name in units.arrays}, units.masks, units.lengths)
        for choose in (np.min, np.max)
    ]


def _padded(one: Batch) -> Batch:
    def longer(values: dict[str, Any], fill_false: bool) -> dict[str, Any]:
        out = {}
        for name, x in values.items():
            if name in one.lengths:
                tail = jnp.repeat(x[:, -1:], 2, axis=1)
                x = jnp.concatenate([x, jnp.zeros_like(tail) if fill_false else tail], axis=1)
            out[name] = x
        return out

    return Batch(longer(one.arrays, False), longer(one.masks, True), one.lengths)


def _stretched(free: dict[str, np.ndarray], structure: Structure) -> dict[str, np.ndarray]:
    """Latents of ragged plates with numbers for two more elements."""
    ragged, found = {p.name for p in structure.plates if p.ragged}, dict(free)
    for site in structure.of("local"):
        for axis in (axis for name, axis in site.plate_axes.items() if name in ragged):
            tail = np.take(found[site.name], [0, 0], axis=axis)
            found[site.name] = np.concatenate([found[site.name], tail], axis=axis)
    return found


def _exchangeable(
    plate: InnerPlate,
    structure: Structure,
    units: Batch,
    free: dict[str, np.ndarray],
    density: Density,
    together: Facts,
) -> bool:
    """Reverses and shuffles the elements along the plate in every argument and local that lies along it."""
    arguments = {a.name: a.dims.index(plate.name) + 1 for a in structure.arguments if plate.name in a.dims}
    places = {s.name: (s.unit_axis, s.plate_axes[plate.name]) for s in structure.of("local") if plate.name in s.plates}
    if not arguments or any(plate.name in s.plates for s in structure.of("global")):
        return False
    shuffled = np.random.default_rng(0)

    def agree(order: Callable[[int], np.ndarray]) -> bool:
        def permuted(values: dict[str, Any]) -> dict[str, Any]:
            return {n: _permute(x, arguments[n], orders) if n in arguments else x for n, x in values.items()}

        size = units.arrays[next(iter(arguments))].shape[arguments[next(iter(arguments))]]
        lengths = next((units.lengths[n] for n in arguments if n in units.lengths), None) if plate.ragged else None
        own = [size] * len(next(iter(units.arrays.values()))) if lengths is None else np.asarray(lengths).tolist()
        orders = np.stack([np.concatenate([order(n), np.arange(n, size)]) for n in own]).astype(int)
        moved = {n: _permute(jnp.moveaxis(free[n], at, (0, 1)), 1, orders) for n, at in places.items()}
        local = {n: np.asarray(jnp.moveaxis(x, (0, 1), places[n])) for n, x in moved.items()}
        other = density(Batch(permuted(units.arrays), permuted(units.masks), units.lengths), free | local)
        pairs = ((together[s.name], other[s.name]) for s in structure.of(*DENSE))
        return all(_close(np.sum(x), np.sum(y), float(np.sum(np.abs(x)))) for x, y in pairs)

    return agree(lambda n: np.arange(n)[::-1]) and agree(shuffled.permutation)


def _permute(values: Any, axis: int, orders: np.ndarray) -> Any:
    orders = orders.reshape(len(orders), *(1,) * (axis - 1), -1, *(1,) * (values.ndim - axis - 1))
    return jnp.take_along_axis(values, jnp.broadcast_to(orders, values.shape), axis=axis)
