"""Which observed values are an argument itself? Also with axes of length one that the model puts in, `label[:, None]`,
with axes in another order, and step by step in a scan: `scan(body, init, jnp.moveaxis(x, 1, 0))`.

Then the argument's mask, its labels and what is simulated for it are the site's too, in another shape: followed through
the jaxpr, axis by axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclasses.dataclass(frozen=True)
class Alias:
    """A variable that holds all values of an input, of which `axes` says where each of its own axes comes from.

    None is an axis of length one that the model put in.
    """

    number: int  # of the input
    shape: tuple[Any, ...]  # of the input
    axes: tuple[int | None, ...]

    def places(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """(its added axes, from the right; the input's axes in the order of its own, or empty if that is the same).

        Axes of length one that went may be any of those that came. None where axes of the input are lost.
        """
        axes = list(self.axes)
        gone = [axis for axis in range(len(self.shape)) if axis not in axes]
        for axis in reversed(gone):
            free = [i for i, known in enumerate(axes) if known is None]
            if not free:
                return None
            axes[_fitting(axes, free, axis)] = axis
        order = tuple(axis for axis in axes if axis is not None)
        added = tuple(i - len(axes) for i, axis in reversed(list(enumerate(axes))) if axis is None)
        return added, () if order == tuple(range(len(order))) else order


def _fitting(axes: list[int | None], free: list[int], axis: int) -> int:
    """The last place where `axis` of the input keeps its order, or else the first of all."""
    for i in reversed(free):
        before, after = axes[:i], axes[i + 1 :]
        if all(a is None or a < axis for a in before) and all(a is None or a > axis for a in after):
            return i
    return free[0]


def inputs_themselves(closed: ClosedJaxpr) -> list[Alias | None]:
    """For every output the input whose values it has, all of them; else None."""
    shapes = [tuple(v.aval.shape) for v in closed.jaxpr.invars]
    return _follow(closed.jaxpr, [Alias(i, shape, tuple(range(len(shape)))) for i, shape in enumerate(shapes)])


def _follow(jaxpr: Jaxpr, inputs: list[Alias | None]) -> list[Alias | None]:
    known: dict[Any, Alias | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(variable: Any) -> Alias | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        body, name = equation.params.get("jaxpr"), equation.primitive.name
        sources = [of(v) for v in equation.invars]
        if isinstance(body, ClosedJaxpr) and name in {"jit", "pjit"}:
            known.update(zip(equation.outvars, _follow(body.jaxpr, sources), strict=True))
        elif isinstance(body, ClosedJaxpr) and name == "scan":
            known.update(zip(equation.outvars, _through(body.jaxpr, equation, sources), strict=True))
        elif sources and sources[0] is not None:
            known[equation.outvars[0]] = _moved(equation, sources[0])
    return [of(variable) for variable in jaxpr.outvars]


def loop_counts(scan: Any) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many numbers are carried.

    Read from the shapes, as only what comes step by step has an axis fewer in the body; JAX renames its own counts.
    """
    body = scan.params["jaxpr"]
    given = sum(v.aval.ndim == inner.ndim for v, inner in zip(scan.invars, body.in_avals, strict=True))
    carried = sum(v.aval.ndim == inner.ndim for v, inner in zip(scan.outvars, body.out_avals, strict=True))
    return given - carried, carried


def _through(body: Jaxpr, equation: Any, sources: list[Alias | None]) -> list[Alias | None]:
    """Of what a scan returns, stacked: that which at every step is what it was given for the step."""
    constants, carried = loop_counts(equation)
    before = constants + carried
    slices = [s and (dataclasses.replace(s, axes=s.axes[1:]) if s.axes else None) for s in sources[before:]]
    found = _follow(body, [None] * before + slices)[carried:]
    heads: dict[int, set[int | None]] = {}
    for source in sources[before:]:
        if source is not None and source.axes:
            heads.setdefault(source.number, set()).add(source.axes[0])
    return [None] * carried + [_stacked(s, heads) for s in found]


def _stacked(source: Alias | None, heads: Mapping[int, set[int | None]]) -> Alias | None:
    """All steps of what is an input at each; None where that is scanned along two of its axes at once."""
    if source is None or len(heads[source.number]) > 1:
        return None
    return dataclasses.replace(source, axes=(*heads[source.number], *source.axes))


def _moved(equation: Any, source: Alias) -> Alias | None:
    """What an operation that only adds, drops or moves axes makes of an input; None for any other."""
    name, params = equation.primitive.name, equation.params
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if math.prod(old) != math.prod(new):
        return None
    if name == "transpose":
        return dataclasses.replace(source, axes=tuple(source.axes[i] for i in params["permutation"]))
    if name == "broadcast_in_dim":
        axes: list[int | None] = [None] * len(new)
        for i, place in enumerate(params["broadcast_dimensions"]):
            axes[place] = source.axes[i]
        return dataclasses.replace(source, axes=tuple(axes))
    if name == "squeeze":
        return dataclasses.replace(
            source, axes=tuple(axis for i, axis in enumerate(source.axes) if i not in params["dimensions"])
        )
    return _matched(source, old, new) if name == "reshape" else None


def _matched(source: Alias, old: tuple[Any, ...], new: tuple[Any, ...]) -> Alias | None:
    """After a reshape that only adds and drops axes of length one; those before and after have no number."""
    long = [axis for axis, size in zip(source.axes, old, strict=True) if size != 1]
    if [size for size in old if size != 1] != [size for size in new if size != 1]:
        return None
    return dataclasses.replace(source, axes=tuple(None if size == 1 else long.pop(0) for size in new))
