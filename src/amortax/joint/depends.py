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
from .aliases import loop_counts
from .observe import Seen, reading
from .trace import Record, run

Sources = frozenset[str]
_NONE: Sources = frozenset()
_UNCHANGED = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "convert_element_type",
    "copy",
    "expand_dims",
    "transpose",
    "slice",
}


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A variable that is an input itself, in another shape, plus a constant."""

    name: str
    offset: int = 0


class Reach:
    """Sources of every output of a jaxpr, and for every input used as an index (the least value, the axis length)."""

    def __init__(self, closed: ClosedJaxpr, inputs: list[str]) -> None:
        self.indexed: dict[str, tuple[int, int]] = {}
        start: list[tuple[Shifted | None, ...]] = [(Shifted(name),) for name in inputs]
        self.outputs = self._walk(closed.jaxpr, [frozenset([name]) for name in inputs], start)[0]

    def _walk(
        self, jaxpr: Jaxpr, inputs: list[Sources], given: list[tuple[Shifted | None, ...]]
    ) -> tuple[list[Sources], list[tuple[Shifted | None, ...]]]:
        known: dict[Any, Sources] = dict(zip(jaxpr.invars, inputs, strict=True))
        columns = dict(zip(jaxpr.invars, given, strict=True))  # along the last axis of an index, one for each input

        def of(variable: Any) -> tuple[Sources, tuple[Shifted | None, ...]]:
            literal = isinstance(variable, Literal)
            return (_NONE, (None,)) if literal else (known.get(variable, _NONE), columns.get(variable, (None,)))

        for equation in jaxpr.eqns:
            sources, shifted = [of(v)[0] for v in equation.invars], [of(v)[1] for v in equation.invars]
            self._note_index(equation, shifted)
            inner = _inlined(equation)
            if equation.primitive.name == "scan":
                outputs, kept = self._through(equation, sources, shifted)
            elif inner is not None and len(inner.jaxpr.invars) == len(sources):
                outputs, kept = self._walk(inner.jaxpr, sources, shifted)
            else:
                outputs = [_NONE.union(*sources)] * len(equation.outvars)
                kept = [_shift(equation, shifted)] * len(equation.outvars)
            known.update(zip(equation.outvars, outputs, strict=True))
            columns.update(zip(equation.outvars, kept, strict=True))
        found = [of(v) for v in jaxpr.outvars]
        return [sources for sources, _ in found], [shifted for _, shifted in found]

    def _through(
        self, scan: Any, sources: list[Sources], shifted: list[tuple[Shifted | None, ...]]
    ) -> tuple[list[Sources], list[tuple[Shifted | None, ...]]]:
        """Through the body of a loop again and again, until what is carried from step to step brings nothing new."""
        first, carried = loop_counts(scan)
        given = [*shifted[:first], *([(None,)] * carried), *shifted[first + carried :]]
        while True:
            outputs, _ = self._walk(scan.params["jaxpr"].jaxpr, sources, given)
            carry = [a | b for a, b in zip(sources[first : first + carried], outputs, strict=False)]
            if carry == sources[first : first + carried]:
                return [*carry, *outputs[carried:]], [(None,)] * len(outputs)
            sources = [*sources[:first], *carry, *sources[first + carried :]]

    def _note_index(self, equation: Any, shifted: list[tuple[Shifted | None, ...]]) -> None:
        """What a gather or a slice of one element says of the inputs that point into it."""
        if equation.primitive.name == "gather":
            axes, index = equation.params["dimension_numbers"].start_index_map, shifted[1]
        elif equation.primitive.name == "dynamic_slice":
            axes = [i for i, size in enumerate(equation.params["slice_sizes"]) if size == 1]
            index = tuple(shifted[1 + axis][0] for axis in axes)
        else:
            return
        for axis, column in zip(axes, index, strict=False):
            if column is not None:
                least, length = -column.offset, equation.invars[0].aval.shape[axis]
                known = self.indexed.get(column.name, (least, length))
                self.indexed[column.name] = max(known[0], least), min(known[1], length)


def _shift(equation: Any, shifted: list[tuple[Shifted | None, ...]]) -> tuple[Shifted | None, ...]:
    """What an operation makes of inputs that are arguments plus constants; None where it is something else."""
    name = equation.primitive.name
    if name in _UNCHANGED:
        return shifted[0]
    if name == "concatenate" and equation.params["dimension"] == len(equation.outvars[0].aval.shape) - 1:
        return tuple(column for columns in shifted for column in columns)
    if name == "select_n":  # of x and x + n: a negative index counts from the end
        return shifted[1] if len({c[0].name if c[0] else None for c in shifted[1:]}) == 1 else (None,)
    if name in {"add", "sub"}:
        first, second = equation.invars[:2]
        if isinstance(second, Literal) and shifted[0][0] is not None:
            step = int(second.val) if name == "add" else -int(second.val)
            return (dataclasses.replace(shifted[0][0], offset=shifted[0][0].offset + step),)
        if isinstance(first, Literal) and shifted[1][0] is not None and name == "add":
            return (dataclasses.replace(shifted[1][0], offset=shifted[1][0].offset + int(first.val)),)
    return (None,)


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
    lagged: Mapping[str, str]  # an observed argument -> the first site whose distribution it changes
    derived: Mapping[str, frozenset[str]]  # an observed site -> the arguments of which its value is made
    indexed: Mapping[str, tuple[int, int]]  # an argument that is an index -> (its least value, the axis length)
    checkable: frozenset[str]  # observed sites whose support depends on no latent
    follows: Mapping[str, frozenset[str]]  # a site -> the latents and arguments of which its distribution is made


def dependencies(
    model: Callable,
    arguments: Mapping[str, jax.ShapeDtypeStruct],
    seen: Mapping[str, Seen],
    inside: frozenset[str],
    plate: str,
) -> Dependencies:
    """Traces one unit and follows its arguments and latents to every site; refuses shared sites that depend on units.

    **Arguments**: `inside` names the sites that have a value for each unit.
    """
    latents = {s.name: s for s in seen.values() if s.kind == "sample" and not s.observed}
    values = {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in latents.items()}
    observed = {s.name: s for s in seen.values() if s.kind == "sample" and s.observed and not s.factor}
    elsewhere = {f"any {name}": jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in observed.items()}
    labels: list[tuple[str, str]] = []

    def program(given: list[Any], data: list[Any], anything: list[Any]) -> list[Any]:
        records = run(
            model,
            dict(zip(arguments, data, strict=True)),
            key=jax.random.key(0),
            given=dict(zip(values, given, strict=True)),
        )
        outputs = []
        for record in records.values():
            for part, leaf in _parts(record, dict(zip(elsewhere, anything, strict=True))):
                labels.append((record.name, part))
                outputs.append(jnp.asarray(leaf))
        return outputs

    with reading(model):
        closed = jax.make_jaxpr(program)(list(values.values()), list(arguments.values()), list(elsewhere.values()))
    reach = Reach(closed, [*values, *arguments, *elsewhere])
    found = [(name, part, sources) for (name, part), sources in zip(labels, reach.outputs, strict=True)]
    _refuse_outside(found, inside, set(arguments) | (set(latents) & inside), plate)
    return _conclude(found, reach, set(arguments), set(latents))


def _parts(record: Record, elsewhere: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a site is made of: its distribution, and where it isn't drawn its value and whether that is possible.

    Of the distribution both leaves and a density count, of an observed one at a value from `elsewhere`: some keep
    parameters out of their leaves (the total count of a multinomial).
    """
    if record.kind == "deterministic":
        return [("value", leaf) for leaf in jax.tree.leaves(record.value)]
    if record.kind != "sample":
        return []
    parts: list[tuple[str, Any]] = [("fn", leaf) for leaf in jax.tree.leaves(record.fn)]
    parts.append(("fn", record.fn.log_prob(elsewhere.get(f"any {record.name}", record.value))))
    if record.scale is not None:
        parts.append(("fn", record.scale))
    if record.observed:
        parts += [("observed", record.value), ("support", record.fn.support(record.value))]
    return parts


def _refuse_outside(
    found: list[tuple[str, str, Sources]], inside: frozenset[str], by_unit: set[str], plate: str
) -> None:
    for name, part, sources in found:
        if name in inside or not (wrong := sorted(sources & by_unit)):
            continue
        if part == "value":
            raise ModelError(
                f"deterministic '{name}' is one value for all units but depends on '{wrong[0]}', which differs by "
                "unit; leave it out, and compute it from the posterior's draws"
            )
        raise ModelError(
            f"site '{name}' is outside plate '{plate}' but depends on '{wrong[0]}', which differs by unit; "
            f"move it inside the plate, or bind '{wrong[0]}' with functools.partial if it is a constant"
        )


def _conclude(
    found: list[tuple[str, str, Sources]], reach: Reach, arguments: set[str], latents: set[str]
) -> Dependencies:
    derived: dict[str, Sources] = {}
    for name, part, sources in found:
        if part == "observed":
            derived[name] = derived.get(name, _NONE) | (sources & arguments)
    observed = _NONE.union(*derived.values())
    lagged: dict[str, str] = {}
    for name, part, sources in found:
        for argument in sources & observed if part == "fn" else ():
            lagged.setdefault(argument, name)
    supports = [(name, sources) for name, part, sources in found if part == "support"]
    checkable = frozenset(n for n, _ in supports) - {n for n, sources in supports if sources & latents}
    follows: dict[str, Sources] = {}
    for name, part, sources in found:
        if part == "fn":
            follows[name] = follows.get(name, _NONE) | (sources - {name})
    return Dependencies(observed, lagged, derived, dict(reach.indexed), checkable, follows)
