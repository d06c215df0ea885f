"""Is the model separable by unit? Computed on a few real units, since reading the program can't tell.

At latents drawn from the prior, every site's log density in one call with three units must equal, element by element,
those of three calls with one unit; longer padding must change nothing; and elements of an inner plate are
exchangeable if permuting them changes no site's sum. Nothing of this raises by itself when it is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ModelError
from .._types import Batch, PyTree
from .layout import to_model, unit_slice
from .masks import masked_log_prob, site_log_prob
from .observe import reading
from .structure import InnerPlate, Structure
from .trace import run

RELATIVE = 1e-5  # float32 noise of the same arithmetic in another batch shape


@dataclasses.dataclass(frozen=True)
class _Run:
    """Arrays of one run: log densities by element, latents, as NumPy."""

    log_prob: dict[str, np.ndarray]
    latents: dict[str, np.ndarray]


def probe(model: Callable, structure: Structure, data: Batch, params: PyTree, key: jax.Array) -> Structure:
    """Checks separability and padding on up to three units of `data`; returns the structure with exchangeability probed."""
    axes = {a.name: a.axis for a in structure.arguments}
    units = _pick(data)
    density = _compiled(model, structure, axes)
    together = density(units, params, {}, key)
    dims = _dims(structure, together)
    for index in range(len(next(iter(units.arrays.values())))):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1], units)
        given = {n: unit_slice(v, index, *dims[n]) if n in dims else v for n, v in together.latents.items()}
        alone = density(one, params, given, key)
        _compare(together, alone, index, dims, structure)
        if data.lengths:
            _compare_padding(alone, density(_padded(one), params, given, key))
    plates = tuple(
        dataclasses.replace(p, exchangeable=_exchangeable(p, structure, units, density, params, together, key))
        for p in structure.plates
    )
    return dataclasses.replace(structure, plates=plates)


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
    """Three units that differ in length, where units do."""
    num = len(next(iter(data.arrays.values())))
    chosen = list(range(min(3, num)))
    if data.lengths and num > 3:
        order = np.argsort(next(iter(data.lengths.values())), kind="stable")
        chosen = [int(order[0]), int(order[num // 2]), int(order[-1])]
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chosen]), data)


def _compiled(model: Callable, structure: Structure, axes: Mapping[str, int]) -> Callable[..., _Run]:
    @jax.jit
    def program(units: Batch, params: PyTree, given: dict[str, Any], key: jax.Array) -> Any:
        masks = to_model(units.masks, axes)
        records = run(model, to_model(units.arrays, axes), key=key, given=given, params=params)
        found = {}
        for site in structure.of("local", "global", "observed", "factor"):
            record = records[site.name]
            if site.argument in masks:
                found[site.name] = masked_log_prob(record.fn, record.value, masks[site.argument])
            else:
                found[site.name] = site_log_prob(record, None)
        return found, {s.name: records[s.name].value for s in structure.of("local", "global")}

    def call(units: Batch, params: PyTree, given: dict[str, Any], key: jax.Array) -> _Run:
        with reading(model):
            log_prob, latents = program(units, params, given, key)
        return _Run(*jax.tree.map(np.asarray, (log_prob, latents)))

    return call


def _dims(structure: Structure, together: _Run) -> dict[str, tuple[int, int]]:
    """The unit plate's dim and the event dimension of every site in the plate."""
    found = {}
    for site in structure.sites:
        if site.per_unit and site.role != "deterministic":
            found[site.name] = (site.unit_dim, site.event_dim)
    return found


def _compare(together: _Run, alone: _Run, index: int, dims: Mapping, structure: Structure) -> None:
    for name, mine in alone.log_prob.items():
        whole = together.log_prob[name]
        part = unit_slice(whole, index, dims[name][0], 0) if name in dims else whole
        if part.shape == mine.shape and _close(part, mine):
            continue
        raise ModelError(
            f"site '{name}' is not separable by unit: with three units, unit {index} has log density {float(np.sum(part)):.6g}, "
            f"alone {float(np.sum(mine)):.6g}. Something in it mixes units of plate '{structure.plate}' (a mean over units, "
            "a literal count, an index into other units, a latent that depends on another unit's data); "
            "compute such quantities before and pass them as an argument per unit"
        )


def _compare_padding(alone: _Run, padded: _Run) -> None:
    for name, mine in alone.log_prob.items():
        if not _close(np.sum(mine), np.sum(padded.log_prob[name]), size=float(np.sum(np.abs(mine)))):
            raise ModelError(
                f"site '{name}' changes with padding: log density {float(np.sum(mine)):.6g}, "
                f"with two more padded elements {float(np.sum(padded.log_prob[name])):.6g}. It uses the ragged axis outside "
                "its plate (a mean or sum over elements); compute that before and pass it as an argument per unit"
            )


def _close(first: Any, second: Any, size: float = 0.0) -> bool:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        near = np.abs(first - second) <= RELATIVE * (1.0 + np.abs(first) + size)
    return bool(np.all(same | near))


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


def _exchangeable(
    plate: InnerPlate,
    structure: Structure,
    units: Batch,
    density: Callable,
    params: PyTree,
    together: _Run,
    key: jax.Array,
) -> bool:
    """Reverses the elements along the plate in every argument that lies along it."""
    arguments = {a.name: a.plate_axis + 1 for a in structure.arguments if a.plate == plate.name}
    inside = [s for s in structure.of("local", "global") if plate.name in s.dims]
    if inside or not arguments:
        return False

    def reverse(values: dict[str, Any]) -> dict[str, Any]:
        out = dict(values)
        for name, axis in arguments.items():
            if name in out:
                out[name] = _reverse(out[name], axis, units.lengths.get(name))
        return out

    flipped = density(Batch(reverse(units.arrays), reverse(units.masks), units.lengths), params, together.latents, key)
    return all(
        _close(np.sum(v), np.sum(flipped.log_prob[n]), size=float(np.sum(np.abs(v)))) for n, v in together.log_prob.items()
    )


def _reverse(values: Any, axis: int, lengths: Any) -> Any:
    size = values.shape[axis]
    position = np.arange(size)
    if lengths is None:
        return jnp.flip(values, axis)
    lengths = np.asarray(lengths)[:, None]
    order = np.where(position < lengths, np.maximum(lengths - 1 - position, 0), position)
    order = order.reshape(order.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, jnp.broadcast_to(order, values.shape), axis=1)
