"""Does the model say what it said? Log densities of its sites at numbers that follow from the structure alone.

Sites and shapes don't tell a prior of scale 1 from one of scale 2, nor one constant bound with `functools.partial` from
another. The log density of every site at latents and data that are always the same does. Nothing of the training data
is needed or kept: of what lies outside a support the density is not finite, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ArtifactError, ModelError
from .._types import Batch
from .assignments import choice_size
from .joint import Joint
from .structure import DENSE, Argument, Structure

LENGTH = 3  # along ragged axes
RELATIVE = 1e-4  # above what float32 and other hardware change
DIGITS = 7


def densities(joint: Joint) -> dict[str, float]:
    """The finite ones by site, in nats; of a model with sums over discrete values one, of all sites together."""
    try:
        with jax.default_matmul_precision("highest"):
            found = _densities(joint, _stand_in(joint.structure))
    except ModelError:  # which runs on real data, but not on these
        return {}
    return {name: float(f"{float(x):.{DIGITS}g}") for name, x in found.items() if math.isfinite(float(x))}


def check_densities(joint: Joint, known: Mapping[str, float], path: str) -> None:
    """Raises `ArtifactError` naming the first site whose log density is another than the one stored."""
    found = densities(joint) if known else {}
    for name, was in known.items():
        now = found.get(name, math.nan)
        if not abs(now - was) <= RELATIVE * (1.0 + abs(was)):
            raise ArtifactError(
                f"{path}: model '{joint.structure.model}' is not the one that was trained: at numbers that are the "
                f"same for both, {name or 'all of it'} has log density {now:.6g}, stored is {was:.6g}; give the model "
                "with the priors and constants (functools.partial) that it was trained with, or fit the new one"
            )


@eqx.filter_jit
def _densities(joint: Joint, unit: Batch) -> dict[str, Array]:
    structure = joint.structure.at(unit)
    shared, choice = _numbers(structure.size("global")), jnp.zeros(choice_size(structure))
    local = jnp.concatenate([_numbers(structure.size("local")), choice])
    if structure.summed:
        terms = joint.unit_log_prob(local, shared, unit)
        return {"": terms.unit + terms.shared}
    found = joint.site_log_probs(local, shared, unit)
    return {site.name: jnp.sum(found[site.name]) for site in structure.of(*DENSE)}


def _numbers(count: int) -> Array:
    return 0.7 * jnp.cos(1.0 + jnp.arange(count, dtype=jnp.result_type(float)))


def _stand_in(structure: Structure) -> Batch:
    """One unit of the stored shapes: numbers between 0 and 1, counts of 0 and 1, indices in range."""
    arrays, masks, lengths = {}, {}, {}
    whole = {s.argument for s in structure.of("observed") if "int" in s.support.lower() or "bool" in s.support.lower()}
    for argument in structure.arguments:
        shape = tuple(LENGTH if n is None else n for n in argument.shape)
        arrays[argument.name] = _values(argument, shape, whole=argument.name in whole)
        if argument.masked:
            masks[argument.name] = np.ones(shape, bool)
        if argument.ragged:
            lengths[argument.name] = np.asarray(LENGTH, np.int32)
    return Batch(arrays, masks, lengths)


def _values(argument: Argument, shape: tuple[int, ...], *, whole: bool) -> np.ndarray:
    place = np.arange(math.prod(shape)).reshape(shape)
    if argument.categories:
        values = argument.first_category + place % argument.categories
    elif np.dtype(argument.dtype).kind in "biu" or whole:
        values = (place + (argument.role == "covariate")) % 2 + (argument.role == "covariate")
    else:
        values = 0.5 + 0.3 * np.cos(1.0 + place)
    return np.asarray(values, argument.dtype)
