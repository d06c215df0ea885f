"""Has log p a slope at every value of a discrete site? At a structural zero it may not, and then nothing can train.

`Poisson(on * rate)` has the density 1 of no event at `on = 0`, but its slope by `rate` is 0 · (0 / 0), which is NaN;
and in a sum over `on` a NaN stays one, however improbable the value. So slopes are looked at before training, one
discrete site at a time.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._errors import ModelError
from .._types import Batch, PyTree
from .joint import Joint
from .summed import Choices

MOST_UNITS = 8


def check_slopes(joint: Joint, data: Batch) -> None:
    """Raises `ModelError` for a value of a discrete site at which, but not at others, a unit has no finite slope."""
    units = jax.tree.map(lambda x: jnp.asarray(x[:MOST_UNITS]), data)
    first = {site.name: jnp.asarray(site.choices[0]) for site in joint.structure.summed}
    for site in joint.structure.summed:
        finite = np.stack([_finite(joint, first | {site.name: jnp.asarray(c)}, units) for c in site.choices])
        if (wrong := (~finite & finite.any(axis=0)).any(axis=1)).any():
            value = site.choices[int(np.argmax(wrong))]
            raise ModelError(
                f"log p of model '{joint.structure.model}' has no finite slope where discrete site '{site.name}' is "
                f"{value}: there a rate, scale or probability is exactly zero, or a function at the end of its domain. "
                f"Move it off by a little, jnp.where({site.name} == {value}, 1e-10, rate), or take a distribution that "
                "has the zeros in it, such as ZeroInflatedPoisson"
            )


@eqx.filter_jit
def _finite(joint: Joint, values: Choices, units: Batch) -> Array:
    keys = jax.random.split(jax.random.key(0), jax.tree.leaves(units)[0].shape[0])

    @jax.vmap
    def one(key: Array, unit: Batch) -> Array:
        local_key, shared_key = jax.random.split(key)
        local = jax.random.normal(local_key, (joint.structure.size("local"),))
        shared = jax.random.normal(shared_key, (joint.shared_size,))

        def log_prob(free: tuple[PyTree, Array, Array]) -> Array:
            params, *numbers = free
            moved = eqx.tree_at(lambda j: j.params, joint, eqx.combine(params, joint.params))
            return moved.complete_log_prob(values, *numbers, unit).unit

        slopes = jax.grad(log_prob)((eqx.filter(joint.params, eqx.is_inexact_array), local, shared))
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(slopes)]))

    return one(keys, units)
