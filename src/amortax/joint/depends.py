"""What depends on what? Reachability in the model's jaxpr, read once without computing.

It answers what reading the source can't: which arguments reach an observed value and which a distribution's
parameters, which integer arguments are used as an index (and how long the indexed axis is), and whether anything
outside the plate depends on unit data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .._errors import ModelError
from .observe import Seen, reading
from .trace import run

Sources = frozenset[str]
_NONE: Sources = frozenset()


class Reach:
    """Sources of every output of a jaxpr, and for every source used as an index the axis length it points into."""

    def __init__(self, closed: ClosedJaxpr, inputs: list[str]) -> None:
        self.indexed: dict[str, int] = {}
        self.outputs = self._walk(closed.jaxpr, [frozenset([name]) for name in inputs])

    def _walk(self, jaxpr: Jaxpr, inputs: list[Sources]) -> list[Sources]:
        known: dict[Any, Sources] = dict(zip(jaxpr.invars, inputs, strict=True))
        for equation in jaxpr.eqns:
            sources = [_NONE if isinstance(v, Literal) else known.get(v, _NONE) for v in equation.invars]
            self._note_index(equation, sources)
            inner = _inlined(equation)
            if inner is not None and len(inner.jaxpr.invars) == len(sources):
                outputs = self._walk(inner.jaxpr, sources)
            else:
                outputs = [_NONE.union(*sources)] * len(equation.outvars)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [_NONE if isinstance(v, Literal) else known.get(v, _NONE) for v in jaxpr.outvars]

    def _note_index(self, equation: Any, sources: list[Sources]) -> None:
        if equation.primitive.name != "gather":
            return
        axes = equation.params["dimension_numbers"].start_index_map
        if len(axes) == 1:
            length = equation.invars[0].aval.shape[axes[0]]
            for name in sources[1]:
                self.indexed[name] = min(length, self.indexed.get(name, length))


def _inlined(equation: Any) -> ClosedJaxpr | None:
    """The body of a call that maps inputs to outputs one to one (`jit`, `custom_jvp`), else None."""
    if equation.primitive.name not in {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2"}:
        return None
    params: Mapping[str, Any] = equation.params
    body = params.get("jaxpr", params.get("call_jaxpr"))
    return body if isinstance(body, ClosedJaxpr) else None


@dataclasses.dataclass(frozen=True)
class Dependencies:
    """What the model's jaxpr says about its arguments."""

    observed_arguments: frozenset[str]
    lagged: tuple[str, str] | None  # an observed argument and a site whose distribution it changes
    indexed: dict[str, int]
    checkable: frozenset[str]  # observed sites whose support depends on no latent


def dependencies(
    model: Callable, arguments: Mapping[str, jax.ShapeDtypeStruct], seen: Mapping[str, Seen], plate: str
) -> Dependencies:
    """Traces one unit and follows its arguments and latents to every site; refuses shared sites that depend on units."""
    latents = {s.name: s for s in seen.values() if s.kind == "sample" and not s.observed}
    values = {name: jax.ShapeDtypeStruct(s.shape, jnp.result_type(float)) for name, s in latents.items()}
    labels: list[tuple[str, str]] = []

    def program(given: list[Any], data: list[Any]) -> list[Any]:
        records = run(
            model,
            dict(zip(arguments, data, strict=True)),
            key=jax.random.key(0),
            given=dict(zip(values, given, strict=True)),
        )
        outputs = []
        for record in records.values():
            if record.kind != "sample":
                continue
            parts = [("fn", leaf) for leaf in jax.tree.leaves(record.fn)]
            if record.observed:
                parts += [("value", record.value), ("support", record.fn.support(record.value))]
            for part, leaf in parts:
                labels.append((record.name, part))
                outputs.append(jnp.asarray(leaf))
        return outputs

    with reading(model):
        closed = jax.make_jaxpr(program)(list(values.values()), list(arguments.values()))
    reach = Reach(closed, [*values, *arguments])
    return _conclude(reach, labels, seen, set(arguments), set(latents), plate)


def _conclude(
    reach: Reach, labels: list[tuple[str, str]], seen: Mapping[str, Seen], arguments: set[str], latents: set[str], plate: str
) -> Dependencies:
    found = list(zip(labels, reach.outputs, strict=True))
    local = {name for name in latents if any(f == plate for f, _, _ in seen[name].plates)}
    observed = frozenset(a for (_, part), sources in found if part == "value" for a in sources & arguments)
    lagged = None
    for (name, part), sources in found:
        inside = any(f == plate for f, _, _ in seen[name].plates)
        if not inside and (wrong := sorted(sources & (arguments | local))):
            raise ModelError(
                f"site '{name}' is outside plate '{plate}' but depends on '{wrong[0]}', which differs by unit; "
                f"move it inside the plate, or bind '{wrong[0]}' with functools.partial if it is a constant"
            )
        if part == "fn" and (both := sorted(sources & observed)):
            lagged = lagged or (both[0], name)
    unsure = {name for (name, part), sources in found if part == "support" and sources & latents}
    checkable = frozenset(name for (name, part), _ in found if part == "support" and name not in unsure)
    return Dependencies(observed, lagged, dict(reach.indexed), checkable)
