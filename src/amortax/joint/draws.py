"""What would the model draw here? One unit's latents before its data are seen, and its data drawn again."""

from __future__ import annotations

import jax
from jax import Array

from .._types import Batch
from .assignments import Choices
from .joint import Joint
from .observe import reading
from .trace import run


def prior_locals(joint: Joint, key: Array, shared: Array, unit: Batch) -> Array:
    """One draw of a unit's unconstrained numbers (d,) from p(u | v); observed sites need no sampler."""
    arguments, given = joint.placed(unit, {})
    globals_free = joint.structure.unpack("global", shared)
    with reading(joint.model):
        records = run(
            joint.model,
            arguments,
            key=key,
            unconstrained=globals_free,
            given=given,
            params=joint.params,
            simulate=True,
            keep_observed=True,
        )
    structure = joint.structure.at(unit)
    return structure.pack("local", {s.name: records[s.name].to_free() for s in structure.of("local")})


def replicate(
    joint: Joint, key: Array, local: Array, shared: Array, unit: Batch, chosen: Choices | None = None
) -> dict[str, Array]:
    """The observed arguments of one unit drawn anew at these latents, in the layout of the data; none where computed.

    Discrete sites have the values in `chosen`; those without one are drawn from their prior.
    """
    records = joint.records(local, shared, unit, key=key, values=chosen or {}, simulate=True)
    return joint.responses(records, unit)


def draw_again(joint: Joint, key: Array, local: Array, shared: Array, unit: Batch) -> dict[str, Array]:
    """`replicate` with the unit's discrete sites drawn from their exact conditional given its data."""
    choice_key, key = jax.random.split(key)
    return replicate(joint, key, local, shared, unit, joint.choose(choice_key, local, shared, unit))
