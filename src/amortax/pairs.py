"""What are (latents, data) pairs? Whole data sets with the latents that made them, simulated here or elsewhere.

Forward KL trains q on such pairs alone, -log q(u | d) in the mean, so that the number of simulations is the number of
pairs; their simulator may have no density. Pairs are finitely many: a tenth of them is held out, and the loss of that
tenth chooses the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._errors import DataError, FitError, ModelError
from ._types import Batch, check_key, whole_number
from .data import Units
from .intake import conform, drop_full_masks, to_batch
from .interop import values_of
from .joint.inverse import unconstrain
from .joint.joint import Joint
from .joint.structure import Structure
from .plan import Plan

HELD_OUT, MOST_HELD_OUT = 0.1, 2000
CHUNK = 4096  # pairs in one compiled call


def simulate(guide: Plan, num_units: int, *, key: Array, like: Any = None) -> tuple[dict[str, np.ndarray], Units]:
    """(latents, data) of `num_units` data sets drawn from the model: what `fit` takes as pairs.

    **Arguments**: `guide` from `amortize(..., plate=None)`; `like` data sets whose covariates, lengths and gaps the
    simulated ones have, in turn; not needed where the model has none of these.

    **Raises** `ModelError` where the model can't be simulated, or units are no whole data sets; `DataError` without
    `like` where it is needed.
    """
    check_key(key)
    if not isinstance(guide, Plan):
        raise DataError(
            f"am.simulate(guide, num_units): guide must be what am.amortize(model, data, plate=None) returned, got "
            f"{guide!r}; of a posterior it is posterior.plan"
        )
    structure, count = guide.structure, whole_number("num_units", num_units)
    _check_simulated(structure)
    joint = Joint(guide.model, structure, {})
    template = _empty(structure) if like is None else conform(like, joint)
    found = template.take(np.resize(np.arange(len(template)), count))
    found = dataclasses.replace(found, labels=np.arange(count), schema=None)
    latents, responses = [], []
    for start, rows in _pieces(count):
        batch = jax.tree.map(jnp.asarray, to_batch(found.take(rows)))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(len(rows)))
        drawn = jax.tree.map(lambda x, n=count - start: np.asarray(x)[:n], _simulate(joint, keys, batch))
        latents.append(drawn[0])
        responses.append(drawn[1])
    data = dataclasses.replace(found, arrays={**found.arrays, **_joined(responses)})
    return _joined(latents), data


def _pieces(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Where each piece of so many pairs starts, and its rows; of few sizes, so that other counts compile nothing."""
    chunk = min(CHUNK, 1 << (count - 1).bit_length())
    for start in range(0, count, chunk):
        yield start, np.minimum(np.arange(start, start + chunk), count - 1)


@eqx.filter_jit
def _simulate(joint: Joint, keys: Array, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    names = [site.name for site in joint.structure.sites if site.role == "local"]

    def one(key: Array, unit: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
        local, responses = joint.simulate(key, jnp.zeros(0), unit)
        values = joint.constrain(local, jnp.zeros(0), unit)
        return {name: values[name] for name in names}, responses

    return jax.vmap(one)(keys, batch)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_simulated(structure: Structure) -> None:
    what = f"model '{structure.model}'"
    if not structure.whole:
        raise ModelError(f"am.simulate makes whole data sets, and {what} was read along plate '{structure.plate}'")
    if structure.params or structure.summed:
        raise ModelError(f"am.simulate: {what} has learned parameters or discrete latents; simulate it with NumPyro")
    if structure.cannot_simulate:
        raise ModelError(f"am.simulate: {what} can't be simulated: {structure.cannot_simulate}")


def _empty(structure: Structure) -> Units:
    """One data set whose values are nobody's: all of them will be drawn."""
    for argument in structure.arguments:
        if argument.role == "covariate" or argument.ragged:
            why = "differs in length" if argument.ragged else "is a covariate"
            raise DataError(f"am.simulate: data['{argument.name}'] {why}; give like=, data sets that say what it is")
    arrays = {a.name: np.zeros((1, *(n or 0 for n in a.shape)), a.dtype) for a in structure.arguments}
    return Units(arrays, {}, {}, np.arange(1), structure.plate)


def parts_of(data: Any, structure: Structure) -> tuple[Mapping[str, Any] | None, Any]:
    """(latents, data) of pairs, a tuple of two of which the first names latents; (None, data) of data alone.

    **Raises** `DataError` for what must be meant as pairs, and is none.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping):
        _check_order(data[0], structure)
        return data
    if isinstance(data, tuple | list) and any(isinstance(part, Units) for part in data):
        kinds = ", ".join(type(part).__name__ for part in data)
        raise DataError(
            f"data: (latents, data) pairs are a tuple of two, a dict of latents first, got a {type(data).__name__} of "
            f"{kinds}; give am.fit(guide, (latents, data), key=key)"
        )
    return None, data


def _check_order(latents: Mapping[str, Any], structure: Structure) -> None:
    """Raises where the data stand first."""
    arguments, sites = {a.name for a in structure.arguments}, {s.name for s in structure.of("local", "discrete")}
    if latents and set(latents) <= arguments and not set(latents) & sites:
        raise DataError(
            f"(latents, data) pairs: the first has {sorted(latents)}, arguments of model '{structure.model}', where "
            f"its latents {sorted(sites)} belong; give the latents first, then the data"
        )


def with_latents(latents: Mapping[str, Any], data: Units, joint: Joint) -> Float[np.ndarray, "units d"]:
    """Unconstrained locals of every data set from the values that made it.

    **Raises** `DataError` naming site and data set for what is missing, of another shape, or outside its support;
    `FitError` for a model with more than locals to learn.
    """
    structure = joint.structure
    if not structure.whole or structure.params:
        raise FitError(
            f"(latents, data) pairs are for whole data sets, amortize(..., plate=None), without learned parameters; "
            f"model '{structure.model}' was read along plate '{structure.plate}', learned: {list(structure.params)}"
        )
    for name, values in latents.items():
        if np.asarray(values).dtype.kind not in "biuf":
            raise DataError(f"latents['{name}']: expected an array of numbers, got {np.asarray(values).dtype.name}")
    if unknown := sorted(set(latents) - {site.name for site in structure.of("local", "discrete")}):
        raise DataError(f"latents has '{unknown[0]}', which is no latent of model '{structure.model}'")
    given = {name: x[0] for name, x in values_of(structure, latents, data.labels)[0].items()}
    batch, count = to_batch(data), len(data)
    local = []
    for start, rows in _pieces(count):
        values, part = jax.tree.map(lambda x, r=rows: jnp.asarray(np.asarray(x)[r]), (given, batch))
        free, inside = jax.tree.map(lambda x, n=count - start: np.asarray(x)[:n], _unconstrain(joint, values, part))
        good = inside & np.isfinite(free).all(axis=1)
        if not good.all():
            row = int(np.argmin(good))
            told = {name: x[start + row].tolist() for name, x in given.items()}
            raise DataError(
                f"latents of {structure.plate} '{data.labels[start + row]}', {told}, lie outside the supports of the "
                f"model ({', '.join(f'{s.name}: {s.support}' for s in structure.of('local'))}); correct or drop them"
            )
        local.append(free)
    return np.concatenate(local)


@eqx.filter_jit
def _unconstrain(joint: Joint, values: dict[str, Array], batch: Batch) -> tuple[Array, Array]:
    local, _, jacobian = jax.vmap(unconstrain, (None, 0, 0))(joint, values, batch)
    return local, jnp.isfinite(jacobian.unit)


def split_pairs(local: np.ndarray, data: Units, structure: Structure) -> tuple[Units, np.ndarray, Batch | None]:
    """(data to train on, their latents, held-out pairs): of the same pairs the same in every run."""
    held = min(int(HELD_OUT * len(data)), MOST_HELD_OUT)
    if not held:
        return data, local, None
    order = np.random.default_rng(0).permutation(len(data))
    kept, out = np.sort(order[held:]), np.sort(order[:held])
    batch = drop_full_masks(to_batch(data.take(out)), structure)
    return data.take(kept), local[kept], dataclasses.replace(batch, latents=local[out])
