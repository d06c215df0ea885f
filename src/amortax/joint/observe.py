"""What does one abstract run of the model show? Names, shapes, plates, supports: facts, nothing computed.

Errors that the user's model raises while it is read become a `ModelError` naming the model's own line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import AmortaxError, ModelError
from .aliases import inputs_themselves
from .masks import site_log_prob
from .steps import free_shape
from .trace import Record, in_words, is_improper, run


@dataclasses.dataclass(frozen=True)
class Seen:
    """One site of one abstract run."""

    name: str
    kind: str
    plates: tuple[tuple[str, int, int], ...]
    shape: tuple[Any, ...] = ()  # of the value; of a parameter: the shapes of its arrays
    event_dim: int = 0
    free_shape: tuple[int, ...] = ()
    log_prob_shape: tuple[int, ...] = ()
    support: str = ""
    observed: bool = False
    factor: bool = False
    discrete: bool = False
    improper: bool = False
    argument: str | None = None  # whose values it has
    added: tuple[int, ...] = ()  # its axes of length one, from the right, that the argument lacks
    order: tuple[int, ...] = ()  # the argument's axes in the order of its own; empty where it is the same
    dtype: Any = None
    sizes: tuple[Any, ...] = ()  # of a plate: (size, subsample_size)
    steps: str = ""  # in the body of a scan: which of its plates are the steps

    def argument_axis(self, dim: int) -> int:
        """Where the argument that is observed has the axis of the plate at `dim`."""
        position = len(self.shape) - self.event_dim + dim
        position -= sum(len(self.shape) + axis < position for axis in self.added)
        return self.order[position] if self.order else position

    def unit_axis(self, dim: int, unit_dim: int) -> int:
        """Where one unit's array has the axis of the plate at `dim`, if that of the units is at `unit_dim`."""
        axis = self.argument_axis(dim)
        return axis - (axis > self.argument_axis(unit_dim))


def name_of(model: Callable) -> str:
    """The model's name for messages."""
    inner = getattr(model, "func", model)
    return getattr(inner, "__name__", type(inner).__name__)


@contextlib.contextmanager
def reading(model: Callable) -> Iterator[None]:
    """Turns what the user's model raises into a `ModelError` with its file and line."""
    try:
        yield
    except AmortaxError:
        raise
    except jax.errors.UnexpectedTracerError as error:
        raise ModelError(
            f"model '{name_of(model)}' has sample sites in a transformed function (jax.lax.scan, vmap, cond), where "
            "NumPyro can't see them; write the steps with numpyro.contrib.control_flow.scan, or a plate"
        ) from error
    except jax.errors.ConcretizationTypeError as error:
        raise ModelError(
            f"model '{name_of(model)}'{_line(model, error)} branches on, loops over or indexes by values of its data "
            "or latents, so its sites can't be read once for all units; use jnp.where, jax.lax.cond or shapes instead "
            f"({_first_line(error)})"
        ) from error
    except Exception as error:
        if isinstance(error, NotImplementedError) and "control flow" in str(error):
            raise ModelError(
                f"model '{name_of(model)}'{_line(model, error)} uses numpyro.contrib.control_flow.cond, which can't "
                "be read once for all units; compute both branches and choose with jnp.where"
            ) from error
        raise ModelError(
            f"model '{name_of(model)}'{_line(model, error)} raised {type(error).__name__}: "
            f"{_first_line(error)}{_hint(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _line(model: Callable, error: BaseException) -> str:
    code = getattr(getattr(model, "func", model), "__code__", None)
    if code is None:
        return ""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == code.co_filename]
    return f", line {lines[-1]} of {code.co_filename.rsplit('/', 1)[-1]}," if lines else ""


def _hint(error: BaseException) -> str:
    if "integer" in str(error) and "float" in str(error):
        return (
            "; NaN makes integers floats: give missing ones as None in a list, as numpy.ma.masked_array of integers, "
            "or in a nullable integer column"
        )
    plates = isinstance(error, AssertionError) and not str(error)  # of NumPyro, which allots dims of plates
    if plates or "broadcast" in str(error) or "shape" in str(error):
        return (
            "; if plates are nested, give each its dim: the amortized plate dim=-2, the plate inside it dim=-1, "
            "with the unit axis of every array at the same place"
        )
    return ""


def observe(model: Callable, arrays: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Seen]:
    """Runs the model abstractly on arrays of these shapes (in its own layout) and returns its sites."""
    seen: dict[str, Seen] = {}
    values: list[str] = []  # the sites that are observed

    def program(key: Any, given: list[Any]) -> list[Any]:
        records = run(model, dict(zip(arrays, given, strict=True)), key=key)
        seen.update({name: _see(record) for name, record in records.items()})
        observed = [record for record in records.values() if record.observed]
        values.extend(record.name for record in observed)
        return [record.value for record in observed]

    with reading(model):
        closed = jax.make_jaxpr(program)(jax.random.key(0), list(arrays.values()))
    for name, source in zip(values, inputs_themselves(closed), strict=True):
        if source is not None and source.number > 0 and (places := source.places()) is not None:
            added, order = places
            argument = list(arrays)[source.number - 1]
            seen[name] = dataclasses.replace(seen[name], argument=argument, added=added, order=order)
    return seen


def _see(record: Record) -> Seen:
    if record.kind == "plate":
        return Seen(record.name, "plate", record.plates, sizes=record.arguments)
    if record.kind == "deterministic":
        return Seen(record.name, record.kind, record.plates, shape=jnp.shape(record.value), steps=record.steps)
    if record.kind != "sample":
        shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(record.value)) if record.kind == "param" else ()
        return Seen(record.name, record.kind, record.plates, shape=shapes)
    fn, value = record.fn, record.value
    discrete = bool(fn.support.is_discrete) and not record.is_factor
    free = () if record.observed or discrete else free_shape(fn)
    return Seen(
        record.name,
        "sample",
        record.plates,
        shape=jnp.broadcast_shapes(jnp.shape(value), fn.shape()),
        event_dim=len(fn.event_shape),
        free_shape=free,
        log_prob_shape=tuple(jnp.shape(site_log_prob(record, None))),
        support=in_words(fn.support),
        observed=record.observed,
        factor=record.is_factor,
        discrete=discrete,
        improper=is_improper(fn),
        dtype=jnp.result_type(value),
        steps=record.steps,
    )
