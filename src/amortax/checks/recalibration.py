"""What are functionals of units, of simulated ones and of real ones? The computed part of recalibration (see `levels`).

A functional is a site of the unit, or a function of one unit's values (site -> array, globals and deterministic sites
among them) to a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._errors import DataError
from .._types import Batch, Context
from ..chunks import chunks
from ..data import Units
from ..guide import Guide
from ..joint.assignments import Choices
from ..joint.joint import Joint
from ..joint.structure import Structure
from .simulated import is_near, limits_of, simulated_unit

Functional = tuple[str, str | Callable[[dict[str, Array]], Any]]  # what it is called, and a site or a function
Values = dict[str, Any]  # functional -> numbers, units first


def simulated_values(
    pair: tuple[Joint, Guide],
    data: Units,
    rows: np.ndarray,
    functionals: tuple[Functional, ...],
    *,
    key: Array,
    num_draws: int,
) -> tuple[Values, Values, Bool[np.ndarray, " n"]]:
    """(truth, draws, whether the simulation is of use) of units simulated in the stead of `rows` of `data`."""
    limits, parts = limits_of(data), []
    for chunk in chunks(data.take(rows), pair[0].structure, num_draws):
        found = _simulated(key, pair, chunk.batch, chunk.index, limits, functionals, num_draws)
        parts.append(jax.tree.map(lambda x, c=chunk: np.asarray(x)[: c.stop - c.start], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def drawn_values(
    pair: tuple[Joint, Guide], data: Units, functionals: tuple[Functional, ...], *, key: Array, num_draws: int
) -> Iterator[tuple[slice, Values]]:
    """Draws of the functionals of some units of `data` after others: which units, name -> (units, draws, ...)."""
    for chunk in chunks(data, pair[0].structure, num_draws):
        found = _drawn(key, pair, chunk.batch, chunk.index, functionals, num_draws)
        yield (
            slice(chunk.start, chunk.stop),
            {name: np.asarray(x)[: chunk.stop - chunk.start] for name, x in found.items()},
        )


@eqx.filter_jit
def _simulated(
    key: Array,
    pair: tuple[Joint, Guide],
    batch: Batch,
    index: Array,
    limits: dict[str, Array],
    functionals: tuple[Functional, ...],
    num_draws: int,
) -> tuple[Values, Values, Array]:
    joint, guide = pair
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
    local, chosen, shared, drawn = jax.vmap(lambda k, unit: simulated_unit(k, guide, joint, unit))(keys[:, 0], batch)
    true = jax.vmap(lambda *truth: _evaluate(functionals, joint, *truth))(local, shared, drawn, chosen)
    draws = _draws(keys[:, 1], pair, drawn, functionals, num_draws)
    return true, draws, jax.vmap(lambda unit: is_near(unit, limits))(drawn)


@eqx.filter_jit
def _drawn(
    key: Array,
    pair: tuple[Joint, Guide],
    batch: Batch,
    index: Array,
    functionals: tuple[Functional, ...],
    num_draws: int,
) -> Values:
    return _draws(jax.vmap(lambda i: jax.random.fold_in(key, i))(index), pair, batch, functionals, num_draws)


def _draws(
    keys: Array, pair: tuple[Joint, Guide], batch: Batch, functionals: tuple[Functional, ...], num_draws: int
) -> Values:
    """(units, draws, ...) of every functional, each draw at globals of its own."""
    joint, guide = pair

    def draw(key: Array, context: Context, unit: Batch) -> Values:
        shared_key, local_key, choice_key = jax.random.split(key, 3)
        shared, _ = guide.sample_shared(shared_key)
        local, _ = guide.sample_local(local_key, context, shared, unit, joint)
        return _evaluate(functionals, joint, local, shared, unit, joint.choose(choice_key, local, shared, unit))

    def one(key: Array, context: Context, unit: Batch) -> Values:
        return jax.vmap(draw, in_axes=(0, None, None))(jax.random.split(key, num_draws), context, unit)

    return jax.vmap(one)(keys, guide.encode(batch), batch)


def _evaluate(
    functionals: tuple[Functional, ...], joint: Joint, local: Array, shared: Array, unit: Batch, chosen: Choices
) -> Values:
    values = _own_values(joint, joint.constrain(local, shared, unit, chosen), unit)
    return {
        name: jnp.asarray(values[what] if isinstance(what, str) else what(values), jnp.float32)
        for name, what in functionals
    }


def _own_values(joint: Joint, values: Mapping[str, Array], unit: Batch) -> dict[str, Array]:
    """One unit's values by site, NaN in places that it hasn't, as draws of `sample` have them."""
    ragged = {plate.name: plate.argument for plate in joint.structure.plates if plate.ragged}
    found = dict(values)
    for site in joint.structure.sites:
        for axis, dim in enumerate(site.dims if site.name in values else ()):
            length = unit.lengths.get(ragged.get(dim or "") or "")
            if length is not None:
                value = found[site.name]
                inside = (jnp.arange(value.shape[axis]) < length).reshape(-1, *(1,) * (value.ndim - axis - 1))
                found[site.name] = jnp.where(inside, value.astype(jnp.result_type(value, float)), jnp.nan)
    return found


def check_functionals(joint: Joint, data: Units, functionals: Mapping[str, Any]) -> tuple[Functional, ...]:
    """The functionals, once each function has been evaluated in shapes.

    **Raises** `DataError` for what is neither, for a site with a number of elements of its own in every unit, and for
    functions that raise or give something else than one number.
    """
    if not functionals:
        raise DataError('recalibrate: no functionals; give name -> site or function, {"z": "z"}')
    found = tuple((str(name), what) for name, what in functionals.items())
    batch = jax.tree.map(lambda x: x[0], next(iter(chunks(data.take([0]), joint.structure, 1))).batch)
    for name, what in found:
        if callable(what):
            _check_function(joint, name, what, batch)
        else:
            _check_site(joint.structure, name, what)
    return found


def _check_function(joint: Joint, name: str, function: Callable, unit: Batch) -> None:
    local, shared = jnp.zeros(joint.at(unit).local_size), jnp.zeros(joint.shared_size)

    def evaluated() -> Values:
        chosen = joint.choose(jax.random.key(0), local, shared, unit)
        return _evaluate(((name, function),), joint, local, shared, unit, chosen)

    try:
        shape = jax.eval_shape(evaluated)[name].shape
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"recalibrate: functional '{name}' raised {type(error).__name__}: {reason}; it is given one unit's "
            "values, site -> array, and must compute with jax.numpy"
        ) from error
    if shape:
        raise DataError(
            f"recalibrate: functional '{name}' has shape {shape} for one unit; expected one number, shape ()"
        )


def _check_site(structure: Structure, name: str, site: Any) -> None:
    sites = {s.name: s for s in structure.sites if s.per_unit and s.role != "observed"}
    sites |= {s.name: s for s in structure.labels.values() if s.per_unit}
    if site not in sites:
        raise DataError(
            f"recalibrate: functional '{name}' is {site!r}; give a function of one unit's values, or one of the sites "
            f"{sorted(sites)} of plate '{structure.plate}'"
        )
    loose = {plate.name for plate in structure.plates if plate.ragged} | set(structure.loose)
    if along := [dim for dim in sites[site].dims if dim in loose]:
        raise DataError(
            f"recalibrate: site '{site}' has as many numbers as a unit has elements of plate '{along[0]}'; give a "
            f'function of them, {{"{name}": lambda unit: jnp.nanmean(unit["{site}"])}}'
        )
