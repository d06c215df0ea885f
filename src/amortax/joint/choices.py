"""Which values can a discrete site take? Its finite support, listed while the model is read, or why it can't be.

A support may hang on constants of the model (`Binomial(10, p)`) but not on its data: every unit has the same choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._errors import ModelError
from .observe import Seen, reading
from .trace import core, run

FINITE = (
    "write it with a finite support (a Categorical up to a bound that is large enough), or integrate it out "
    "(Poisson with a Gamma rate is NegativeBinomial2)"
)


def choices_of(
    model: Callable, specs: Mapping[str, jax.ShapeDtypeStruct], names: Sequence[str]
) -> dict[str, tuple[int | float, ...] | None]:
    """The values that one element of each named site can take, in order; None where they can't be listed.

    **Arguments**: `specs` the arguments of one unit in the model's layout. What does not depend on them or on latents
    is computed while the model is traced, so that bounds written as constants are known.
    """
    found: dict[str, tuple[int | float, ...] | None] = {}

    def program(key: Any, arguments: dict[str, Any]) -> None:
        records = run(model, arguments, key=key)
        for name in names:
            found[name] = _listed(core(records[name].fn))

    if names:
        with reading(model), jax.ensure_compile_time_eval():
            jax.eval_shape(program, jax.random.key(0), dict(specs))
    return found


def _listed(fn: Any) -> tuple[int | float, ...] | None:
    if not fn.has_enumerate_support or fn.event_shape:
        return None
    try:
        values = np.asarray(fn.enumerate_support(expand=False))
    except (NotImplementedError, jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return None
    return tuple(values.ravel().tolist())


def refuse_unlisted(seen: Mapping[str, Seen], found: Mapping[str, tuple[int | float, ...] | None], plate: str) -> None:
    """A discrete latent whose values can't be listed can't be summed."""
    for name, choices in found.items():
        if choices is None:
            raise ModelError(
                f"site '{name}' is a discrete latent in plate '{plate}' with support {seen[name].support}, whose "
                f"values can't be listed once for all units, so it can't be summed; {FINITE}"
            )
