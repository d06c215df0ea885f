"""What does a missing or padded value contribute? Nothing, to any bit: site densities under masks.

The log density of a site is computed element by element (unwrapping `Independent`), multiplied out where the mask is
False, and only then summed over the event. Values under a mask are real values of the same argument (`Units` fills
them so), which keeps the gradient finite where NumPyro's own `mask` mends the value only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro.distributions import Independent
from numpyro.distributions.distribution import Distribution, ExpandedDistribution, MaskedDistribution

from .._types import AnyArray, Batch, PyTree
from .steps import Steps
from .structure import Structure
from .trace import Record, core, run


def masked_log_prob(fn: Distribution, value: Array, mask: Array | None) -> Array:
    """Log density of `value`, batch shape of `fn`; elements whose `mask` (shape of `value`) is False count nothing."""
    if mask is None:
        return jnp.asarray(fn.log_prob(value))
    if isinstance(fn, Steps):
        return fn.each(masked_log_prob, value, mask)
    if isinstance(fn, Independent):
        inner = masked_log_prob(fn.base_dist, value, mask)
        return jnp.sum(inner, axis=tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if isinstance(fn, MaskedDistribution):
        inner = masked_log_prob(fn.base_dist, value, mask)
        return jnp.where(fn._mask, inner, 0.0)
    if isinstance(fn, ExpandedDistribution):
        inner = masked_log_prob(fn.base_dist, value, mask)
        return jnp.broadcast_to(inner, jnp.broadcast_shapes(fn.batch_shape, inner.shape))
    log_prob = fn.log_prob(value)
    event_dim = len(fn.event_shape)
    whole = jnp.all(mask, axis=tuple(range(-event_dim, 0))) if event_dim else mask
    return jnp.where(whole, log_prob, 0.0)


def site_log_prob(record: Record, mask: Array | None, *, checked: bool = False) -> Array:
    """Log density of one recorded site in its batch shape: the user's own scale and mask, and `mask`, included.

    The Jacobian belongs to the change of variables, not to the model: no scale or mask of the user's touches it. `mask`
    does: what is none of the unit's own elements has no number.

    Whether the value lies in the support is not looked at again (it would cost 2% of a step of a small model) where it
    can't but: latents are made from unconstrained numbers, and of a `checked` site the value was seen to lie inside.
    """
    inside = checked or record.jacobian is not None
    with numpyro.validation_enabled(False) if inside else contextlib.nullcontext():
        log_prob = _masked(record, mask)
    if record.scale is not None:
        log_prob = log_prob * record.scale
    if record.jacobian is None:
        return log_prob
    event_axes = tuple(range(-len(record.fn.event_shape), 0))
    jacobian = record.jacobian if mask is None else jnp.where(jnp.all(mask, event_axes), record.jacobian, 0.0)
    return log_prob + jacobian


def _masked(record: Record, mask: Array | None) -> Array:
    if record.is_factor:  # no value whose elements a mask could cover: its mask has the batch shape
        log_prob = record.fn.log_prob(record.value)
        return log_prob if mask is None else jnp.where(mask, log_prob, 0.0)
    return masked_log_prob(record.fn, record.value, mask)


def site_masks(
    model: Callable, structure: Structure, records: Mapping[str, Record], data: Batch, params: PyTree
) -> dict[str, Array]:
    """Masks of observed and latent sites (shape of the value) and factors (batch shape); none where all is real.

    **Arguments**: `data` with arrays and masks in the model's layout, and lengths by unit, `(units,)` or `()`.
    """
    lengths = {p.name: data.lengths[p.argument] for p in structure.plates if p.argument in data.lengths}
    derived = [s for s in structure.of("observed") if s.argument is None and s.per_unit]
    shadow = _shadow(model, structure, data, params) if derived and data.masks else {}
    found = {}
    for site in structure.of("observed", "factor", "discrete", "local"):
        own = shadow.get(site.name)
        if site.argument in data.masks:
            own = site.from_argument(data.masks[site.argument])
        inside = _inside(records[site.name], lengths, structure.plate)
        mask = inside if site.role == "factor" else _both(records[site.name], own, inside)
        if mask is not None:
            found[site.name] = mask
    return found


def _inside(record: Record, lengths: Mapping[str, Array], plate: str) -> Array | None:
    """Which elements of ragged plates are a unit's own, broadcastable to the site's batch shape."""
    unit_dim = next((dim for name, dim, _ in record.plates if name == plate), -1)
    mask = None
    for name, dim, size in record.plates:
        if name in lengths:
            length = jnp.reshape(lengths[name], (-1,) + (1,) * (-unit_dim - 1))
            inside = jnp.arange(size).reshape((size,) + (1,) * (-dim - 1)) < length
            mask = inside if mask is None else jnp.logical_and(mask, inside)
    return mask


def _both(record: Record, own: Array | None, inside: Array | None) -> Array | None:
    """The argument's own mask and the ragged plates', in the shape of the site's value."""
    if inside is None:
        return own
    shape = inside.shape + (1,) * len(record.fn.event_shape)
    inside = jnp.broadcast_to(inside.reshape(shape), jnp.broadcast_shapes(shape, jnp.shape(record.value)))
    return inside if own is None else jnp.logical_and(inside, own)


def _shadow(model: Callable, structure: Structure, data: Batch, params: PyTree) -> dict[str, Array]:
    """Where is a function of the data missing? Where it is NaN when they are; all else of this run is compiled away."""
    holes = dict(data.arrays)
    for name, mask in data.masks.items():
        if structure.argument(name).role == "observed" and jnp.issubdtype(holes[name].dtype, jnp.floating):
            holes[name] = jnp.where(mask, holes[name], jnp.nan)
    records = run(model, holes, key=jax.random.key(0), params=params)
    derived = [s.name for s in structure.of("observed") if s.argument is None]
    return {name: ~jnp.isnan(jax.lax.stop_gradient(records[name].value)) for name in derived}


def partly_missing(record: Record, mask: Array) -> Array:
    """True where some, but not all, numbers of an event that has one joint density are missing; batch shape.

    `Independent` events have a density for each number and are never partly missing.
    """
    joint_dim = len(core(record.fn).event_shape)
    axes = tuple(range(-joint_dim, 0))
    return jnp.any(mask, axes) & ~jnp.all(mask, axes) if joint_dim else jnp.zeros(jnp.shape(mask), bool)


def own_places(mask: AnyArray, lengths: AnyArray | None) -> np.ndarray:
    """The places of an argument (host arrays of all units) that are the units' own, missing or not: all but padding."""
    if lengths is None:
        return np.ones(mask.shape, bool)
    inside = np.arange(mask.shape[1]) < np.asarray(lengths)[:, None]
    return np.broadcast_to(inside.reshape(inside.shape + (1,) * (mask.ndim - 2)), mask.shape)
