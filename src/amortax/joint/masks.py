"""What does a missing or padded value contribute? Nothing, to any bit: site densities under masks.

The log density of a site is computed element by element (unwrapping `Independent`), multiplied out where the mask is
False, and only then summed over the event. Values under a mask are real values of the same argument (`Units` fills
them so), which keeps the gradient finite where NumPyro's own `mask` mends the value only.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Independent
from numpyro.distributions.distribution import MaskedDistribution

from .trace import Record


def masked_log_prob(fn: Any, value: Array, mask: Array | None) -> Array:
    """Log density of `value`, batch shape of `fn`; elements whose `mask` (shape of `value`) is False count nothing."""
    if mask is None:
        return fn.log_prob(value)
    if isinstance(fn, Independent):
        inner = masked_log_prob(fn.base_dist, value, mask)
        return jnp.sum(inner, axis=tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if isinstance(fn, MaskedDistribution):
        inner = masked_log_prob(fn.base_dist, value, mask)
        return jnp.where(fn._mask, inner, 0.0)
    log_prob = fn.log_prob(value)
    event_dim = len(fn.event_shape)
    whole = jnp.all(mask, axis=tuple(range(-event_dim, 0))) if event_dim else mask
    return jnp.where(whole, log_prob, 0.0)


def site_log_prob(record: Record, mask: Array | None) -> Array:
    """Log density of one recorded site in its batch shape: the user's own scale and mask, Jacobian and `mask` included."""
    log_prob = masked_log_prob(record.fn, record.value, mask)
    if record.jacobian is not None:
        log_prob = log_prob + record.jacobian
    return log_prob if record.scale is None else log_prob * record.scale


def extent_mask(record: Record, extents: dict[str, Array]) -> Array | None:
    """Mask of a site inside ragged plates, batch shape broadcastable; `extents` maps plate name to its true length."""
    mask = None
    for name, dim, size in record.plates:
        if name in extents:
            inside = (jnp.arange(size) < extents[name]).reshape((size,) + (1,) * (-dim - 1))
            mask = inside if mask is None else jnp.logical_and(mask, inside)
    return mask


def observed_mask(record: Record, argument_mask: Array | None, extents: dict[str, Array]) -> Array | None:
    """The mask of an observed site in the shape of its value: its argument's own mask and the ragged plates it is in."""
    inside = extent_mask(record, extents)
    if inside is None:
        return argument_mask
    event_dim = len(record.fn.event_shape)
    inside = jnp.broadcast_to(
        inside.reshape(inside.shape + (1,) * event_dim), jnp.broadcast_shapes(inside.shape + (1,) * event_dim, jnp.shape(record.value))
    )
    return inside if argument_mask is None else jnp.logical_and(inside, argument_mask)
