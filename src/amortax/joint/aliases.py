"""Which observed values are an argument itself? Also with axes of length one that the model puts in, `label[:, None]`.

Then the argument's mask, its labels and what is simulated for it are the site's too, in another shape: followed through
the jaxpr, which keeps the order of the numbers wherever only axes of length one come and go.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_IN_ORDER = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}  # as long as the size stays


def inputs_themselves(closed: ClosedJaxpr) -> list[int | None]:
    """For every output the number of the input whose values it has, all of them and in their order; else None."""
    return _follow(closed.jaxpr, list(range(len(closed.jaxpr.invars))))


def _follow(jaxpr: Jaxpr, inputs: list[int | None]) -> list[int | None]:
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(variable: Any) -> int | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        body = equation.params.get("jaxpr") if equation.primitive.name in {"jit", "pjit"} else None
        if isinstance(body, ClosedJaxpr):
            known.update(zip(equation.outvars, _follow(body.jaxpr, [of(v) for v in equation.invars]), strict=True))
        elif equation.primitive.name in _IN_ORDER:
            source, target = equation.invars[0], equation.outvars[0]
            known[target] = of(source) if _size(source) == _size(target) else None
    return [of(variable) for variable in jaxpr.outvars]


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def added_axes(argument: tuple[Any, ...], value: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The axes of length one, counted from the right, without which `value` has the shape `argument`; None: not so."""
    added, rest = [], list(argument)
    for position in reversed(range(len(value))):
        if rest and value[position] == rest[-1]:
            rest.pop()
        elif value[position] == 1:
            added.append(position - len(value))
        else:
            return None
    return None if rest else tuple(added)
