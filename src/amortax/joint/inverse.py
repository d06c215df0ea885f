"""Which unconstrained numbers have these values in the user's own space? The inverse of `Joint.constrain`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from .._types import Batch, Terms
from . import summed
from .joint import Joint
from .trace import Record, run


def unconstrain(joint: Joint, values: dict[str, Array], unit: Batch) -> tuple[Array, Array, Terms]:
    """Unconstrained (locals, globals) of one unit's constrained `values`, and log |d values / d unconstrained|.

    Where a value lies outside its support the last is inf, and the others stand somewhere inside. What stands for
    padding, NaN too, counts nothing.
    """
    sites = joint.structure.of("local", "global")
    given = {s.name: s.unkeep(jnp.asarray(values[s.name])) for s in sites}
    chosen, possible = summed.given_choices(joint.structure, values, unit.lengths)
    arguments, latents = joint.placed(unit, chosen)
    records = run(joint.model, arguments, key=jax.random.key(0), given=given | latents, params=joint.params)
    masks = joint.masks_of(records, unit)
    own = {s.name: _own_events(records[s.name], masks.get(s.name)) for s in sites}
    free, inside = {}, {}
    for site in sites:
        record, numbers = records[site.name], records[site.name].to_free()
        inside[site.name] = jnp.all(record.fn.support(record.value) | ~own[site.name])
        kept = own[site.name].reshape(own[site.name].shape + (1,) * (numbers.ndim - own[site.name].ndim))
        free[site.name] = jnp.where(inside[site.name] & kept, numbers, 0.0)
    local, shared = joint.with_number(free, chosen), joint.structure.pack("global", free)
    placed = joint.records(local, shared, unit, key=jax.random.key(0), values=chosen)
    jacobian = Terms(jnp.where(possible, 0.0, jnp.inf), jnp.zeros(()))
    for site in sites:
        log_det = jnp.sum(jnp.where(own[site.name], jnp.asarray(placed[site.name].jacobian), 0.0))
        log_det = jnp.where(inside[site.name], log_det, jnp.inf)
        jacobian = jacobian + (Terms(log_det, jnp.zeros(())) if site.per_unit else Terms(jnp.zeros(()), log_det))
    return local, shared, jacobian


def _own_events(record: Record, mask: Array | None) -> Array:
    """Which events are the unit's own and not padding, in the site's batch shape."""
    if mask is None:
        return jnp.ones(record.fn.batch_shape, bool)
    return jnp.all(mask, axis=tuple(range(-len(record.fn.event_shape), 0)))
