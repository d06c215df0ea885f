"""What are the draws of a unit? Sampling, prediction and density of a trained pair, compiled once per bucket.

Every function takes (joint, guide, checked units) and returns host arrays: globals with axes (sample, ...), per-unit
sites with axes (sample, unit, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import GuideError
from ._types import Batch, Context, Terms
from .chunks import Chunk, bucketed_lengths, chunks, draws_per_call
from .data import Units
from .guide import Guide
from .joint.inverse import unconstrain
from .joint.joint import Joint
from .joint.summed import given_choices

Arrays = dict[str, np.ndarray]


def split_keys(key: Array) -> tuple[Array, Array]:
    """(key of the globals, key of the units)."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def sample(
    joint: Joint, guide: Guide, data: Units, num_samples: int, key: Array, shared: Array | None = None
) -> tuple[Arrays, Arrays]:
    """(globals, per-unit sites) in the user's own space, deterministic sites included; at `shared` globals."""
    shared = draw_shared(guide, split_keys(key)[0], num_samples) if shared is None else shared
    return _collect(joint, guide, data, data, shared, key, _constrained)


def written(joint: Joint, data: Units, found: Arrays, draws: dict[int, np.ndarray], shared: Array, key: Array) -> None:
    """Puts unconstrained locals of some units, place in `data` -> (sample, d), into what `sample` found."""
    places = np.array(sorted(draws), np.int64)
    lengths, num_samples = bucketed_lengths(data), shared.shape[0]
    for chunk in chunks(data.take(places), joint.structure, num_samples, lengths) if len(places) else ():
        rows = places[np.asarray(chunk.index)]
        local = jnp.asarray(np.stack([draws[int(i)] for i in rows]))
        values = _placed(joint, split_keys(key)[1], local, shared, chunk.batch, jnp.asarray(rows))
        size = chunk.stop - chunk.start
        for name, value in values.items():
            found[name][:, rows[:size]] = np.swapaxes(np.asarray(value)[:size], 0, 1)


def predict(joint: Joint, guide: Guide, data: Units, at: Units, num_samples: int, key: Array) -> tuple[Arrays, Arrays]:
    """Posterior-predictive draws of the observed sites at the covariates of `at`, latents inferred from `data`."""
    shared = draw_shared(guide, split_keys(key)[0], num_samples)
    return _collect(joint, guide, data, at, shared, key, _predicted)


def log_prob(joint: Joint, guide: Guide, data: Units, values: Arrays) -> Terms:
    """log q of constrained values, Jacobian included; -inf outside the support.

    **Arguments**: globals (sample, ...), per-unit sites (sample, N, ...). **Returns** `Terms`, both parts by sample.
    """
    local = tuple(sorted(s.name for s in joint.structure.sites if s.per_unit and s.name in values))
    num_samples = next(iter(values.values())).shape[0]
    together = draws_per_call(data, joint.structure, num_samples)
    unit, shared = np.empty((num_samples, len(data))), np.empty(num_samples)
    lengths = bucketed_lengths(data)
    values = {name: _lengthened(x, name, joint, lengths) for name, x in values.items()}
    for chunk in chunks(data, joint.structure, num_samples):
        rows = np.asarray(chunk.index)
        for start in range(0, num_samples, together):
            draws = np.minimum(np.arange(start, start + together), num_samples - 1)
            part = {n: jnp.asarray(v[draws][:, rows] if n in local else v[draws]) for n, v in values.items()}
            terms = _log_prob(joint, guide, chunk.batch, part, local=local)
            stop = min(start + together, num_samples)
            unit[start:stop, chunk.start : chunk.stop] = np.asarray(terms.unit)[
                : stop - start, : chunk.stop - chunk.start
            ]
            shared[start:stop] = np.asarray(terms.shared)[: stop - start]
    return Terms(jnp.asarray(unit), jnp.asarray(shared))


def _lengthened(value: np.ndarray, name: str, joint: Joint, lengths: dict[str, int]) -> np.ndarray:
    """Values (sample, unit, ...) of a site with ragged axes cut or padded to the data's padded lengths."""
    site = next(s for s in joint.structure.sites if s.name == name)
    for plate in joint.structure.plates:
        if plate.ragged and plate.name in site.dims and plate.argument in lengths:
            axis, size = 2 + site.dims.index(plate.name), lengths[plate.argument]
            value = np.take(value, np.minimum(np.arange(size), value.shape[axis] - 1), axis=axis)
    return value


def encode(joint: Joint, guide: Guide, data: Units) -> np.ndarray:
    """Contexts, all parts side by side (units, context).

    **Raises** `GuideError` where every element has one, and units may have any number of elements.
    """
    if joint.structure.stretches:
        raise GuideError(
            f"encode: units of plate '{joint.structure.plate}' have a context for each of their elements, as many as "
            "they have, and no one vector; compare draws of the unit's own latents instead (posterior.sample)"
        )
    parts = []
    for chunk in chunks(data, joint.structure, 1):
        context = [np.asarray(x) for x in _encode(guide, chunk.batch)]
        flat = [np.zeros((chunk.index.shape[0], 0)), *(x.reshape(len(x), -1) for x in context)]
        parts.append(np.concatenate(flat, axis=1)[: chunk.stop - chunk.start])
    return np.concatenate(parts)


@eqx.filter_jit
def _encode(guide: Guide, batch: Batch) -> Context:
    return guide.encode(batch)


@eqx.filter_jit
def _log_prob(joint: Joint, guide: Guide, batch: Batch, values: dict[str, Array], local: tuple[str, ...]) -> Terms:
    contexts = guide.encode(batch)

    def one(context: Context, unit: Batch, values: dict[str, Array]) -> tuple[Array, Array]:
        free, shared, jacobian = unconstrain(joint, values, unit)
        chosen, _ = given_choices(joint.structure, values, unit.lengths)
        local_log_q = guide.local_log_prob(free, context, shared, unit, joint)
        local_log_q = local_log_q + joint.log_choice(chosen, free, shared, unit)
        log_q = Terms(local_log_q, guide.shared_log_prob(shared))
        terms = log_q - jacobian
        return terms.unit, terms.shared

    axes = {name: 0 if name in local else None for name in values}
    units = jax.vmap(one, in_axes=(0, 0, axes), out_axes=(0, None))
    return Terms(*jax.vmap(units, in_axes=(None, None, 0))(contexts, batch, values))


def _collect(
    joint: Joint, guide: Guide, data: Units, at: Units, shared: Array, key: Array, what: Callable
) -> tuple[Arrays, Arrays]:
    unit_key, num_samples = split_keys(key)[1], shared.shape[0]
    together = draws_per_call(at, joint.structure, num_samples)
    globals_found: Arrays = {}
    units_found: Arrays = {}
    for chunk, where in _aligned(at, joint, data, num_samples):
        for start in range(0, num_samples, together):
            draws = jnp.minimum(jnp.arange(start, start + together), num_samples - 1)
            values = _draw(joint, guide, unit_key, shared[draws], draws, chunk.batch, where, chunk.index, what)
            _store(units_found, values[0], chunk, start, (num_samples, len(data)))
            if chunk.start == 0:
                _store_shared(globals_found, values[1], start, num_samples)
    return globals_found, units_found


def _aligned(at: Units, joint: Joint, data: Units, num_samples: int) -> Iterator[tuple[Chunk, Batch | None]]:
    """Chunks of `data`, one at a time, each with the same units of `at`, padded alike; None where `at` is `data`."""
    lengths = bucketed_lengths(at)
    for chunk in chunks(data, joint.structure, num_samples):
        if at is data:
            yield chunk, None
            continue
        inner = list(chunks(at.take(slice(chunk.start, chunk.stop)), joint.structure, 1, lengths))
        whole = jax.tree.map(lambda *x: jnp.concatenate(x), *[c.batch for c in inner])
        rows = jnp.minimum(jnp.arange(chunk.index.shape[0]), chunk.stop - chunk.start - 1)
        yield chunk, jax.tree.map(lambda x, r=rows: x[r], whole)


@eqx.filter_jit
def draw_shared(guide: Guide, key: Array, count: int) -> Array:
    """`count` draws of the unconstrained globals."""
    keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.arange(count))
    return jax.vmap(lambda k: guide.sample_shared(k)[0])(keys)


@eqx.filter_jit
def _draw(
    joint: Joint,
    guide: Guide,
    key: Array,
    shared: Array,
    draws: Array,
    batch: Batch,
    where: Batch | None,
    index: Array,
    what: Callable,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(per-unit values (sample, unit, ...), shared values (sample, ...))."""
    contexts = guide.encode(batch)

    def one(shared: Array, draw: Array, index: Array, context: Context, unit: Batch, place: Any) -> tuple[dict, dict]:
        sample_key, next_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), draw))
        local, _ = guide.sample_local(sample_key, context, shared, unit, joint)
        values = what(joint, next_key, local, shared, unit, place)
        per_unit = {s.name: values[s.name] for s in joint.structure.sites if s.per_unit and s.name in values}
        return per_unit, {n: v for n, v in values.items() if n not in per_unit}

    over_units = jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0), out_axes=(0, None))
    return jax.vmap(over_units, in_axes=(0, 0, None, None, None, None))(shared, draws, index, contexts, batch, where)


@eqx.filter_jit
def _placed(joint: Joint, key: Array, local: Array, shared: Array, batch: Batch, index: Array) -> dict[str, Array]:
    """Per-unit sites (unit, sample, ...) at locals (unit, sample, d)."""

    def one(index: Array, local: Array, unit: Batch) -> dict[str, Array]:
        def at(key: Array, local: Array, shared: Array) -> dict[str, Array]:
            values = _constrained(joint, key, local, shared, unit, None)
            return {s.name: values[s.name] for s in joint.structure.sites if s.per_unit and s.name in values}

        return jax.vmap(at)(jax.random.split(jax.random.fold_in(key, index), local.shape[0]), local, shared)

    return jax.vmap(one)(index, local, batch)


def _constrained(
    joint: Joint, key: Array, local: Array, shared: Array, unit: Batch, place: Batch | None
) -> dict[str, Array]:
    return joint.constrain(local, shared, unit, joint.choose(key, local, shared, unit))


def _predicted(
    joint: Joint, key: Array, local: Array, shared: Array, unit: Batch, place: Batch | None
) -> dict[str, Array]:
    """Discrete sites are inferred from the unit, but for those of ragged elements elsewhere, which are other ones."""
    choice_key, key = jax.random.split(key) if joint.structure.summed else (key, key)
    chosen = joint.choose(choice_key, local, shared, unit)
    others = set() if place is None else {p.name for p in joint.structure.plates if p.ragged}
    kept = {s.name: chosen[s.name] for s in joint.structure.summed if not s.plates & others}
    return joint.predict(key, local, shared, unit if place is None else place, kept)


def _store(found: Arrays, values: dict[str, Array], chunk: Chunk, start: int, shape: tuple[int, int]) -> None:
    for name, value in values.items():
        part = np.asarray(value)[: shape[0] - start, : chunk.stop - chunk.start]
        if name not in found:
            found[name] = np.empty((*shape, *part.shape[2:]), part.dtype)
        found[name][start : start + part.shape[0], chunk.start : chunk.stop] = part


def _store_shared(found: Arrays, values: dict[str, Array], start: int, num_samples: int) -> None:
    for name, value in values.items():
        part = np.asarray(value)[: num_samples - start]
        if name not in found:
            found[name] = np.empty((num_samples, *part.shape[1:]), part.dtype)
        found[name][start : start + part.shape[0]] = part
