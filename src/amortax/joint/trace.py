"""How is the user's program run? Once per call, under NumPyro handlers, with values put in and densities kept by site.

`run` is the only place that calls the model. It records every site with its distribution, value and plates, so that
structure, probe, density and simulation all read the same record and the model stays as the user wrote it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from .._types import PyTree


@dataclasses.dataclass(frozen=True)
class Record:
    """One site of one run: what the model said there."""

    name: str
    kind: str  # "sample", "deterministic", "param", "plate", "mutable", "control_flow"
    fn: Any
    value: Any
    plates: tuple[tuple[str, int, int], ...] = ()  # (name, dim, size), outermost first
    observed: bool = False
    scale: Any = None
    jacobian: Any = None  # log |d value / d unconstrained|, batch shape, where the value was given unconstrained
    arguments: tuple[Any, ...] = ()

    def to_free(self) -> Array:
        """The unconstrained form of a latent value."""
        return biject_to(self.fn.support).inv(self.value)

    @property
    def is_factor(self) -> bool:
        """True for `numpyro.factor`."""
        return isinstance(self.fn, numpyro.distributions.Unit)


class _Place(Messenger):
    """Puts values at latent sites (constrained or not) and at parameters, before `seed` would draw them."""

    def __init__(self, fn: Callable, unconstrained: Mapping, given: Mapping, params: Mapping) -> None:
        super().__init__(fn)
        self.unconstrained, self.given, self.params = unconstrained, given, params
        self.jacobians: dict[str, Array] = {}

    def process_message(self, msg: dict) -> None:
        name, kind = msg.get("name"), msg["type"]
        if kind == "param" and name in self.params:
            constraint = msg["kwargs"].get("constraint", numpyro.distributions.constraints.real)
            value = self.params[name]
            msg["value"] = value if _is_real(constraint) else biject_to(constraint)(value)
        elif kind == "sample" and not msg["is_observed"]:
            if name in self.unconstrained:
                transform, free = biject_to(msg["fn"].support), self.unconstrained[name]
                value = transform(free)
                event_dim = len(msg["fn"].event_shape)
                log_det = transform.log_abs_det_jacobian(free, value)
                extra = jnp.ndim(log_det) - (jnp.ndim(value) - event_dim)
                self.jacobians[name] = jnp.sum(log_det, axis=tuple(range(-extra, 0))) if extra > 0 else log_det
                msg["value"] = value
            elif name in self.given:
                msg["value"] = self.given[name]


def _is_real(constraint: Any) -> bool:
    base = getattr(constraint, "base_constraint", constraint)
    return base is numpyro.distributions.constraints.real


def param_to_unconstrained(record: Record, value: PyTree) -> PyTree:
    """The free form in which a `numpyro.param` is trained: itself where real, else through its bijection."""
    constraint = record.fn
    return value if _is_real(constraint) else biject_to(constraint).inv(value)


def run(
    model: Callable,
    arguments: Mapping[str, Array],
    *,
    key: Array,
    unconstrained: Mapping[str, Array] | None = None,
    given: Mapping[str, Array] | None = None,
    params: Mapping[str, PyTree] | None = None,
    simulate: bool = False,
) -> dict[str, Record]:
    """Runs the model once and returns its sites by name.

    **Arguments**: `arguments` the model's keyword arguments, in its own layout; `unconstrained` and `given` values of
    latent sites, free and constrained; sites in neither are drawn with `key`; `params` free values of parameters;
    `simulate` draws the observed sites too, ignoring what was observed.
    """
    placed = _Place(model, unconstrained or {}, given or {}, params or {})
    program: Callable = handlers.uncondition(placed) if simulate else placed
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        traced = handlers.trace(handlers.seed(program, rng_seed=key)).get_trace(**arguments)
    return {name: _record(site, placed.jacobians.get(name)) for name, site in traced.items()}


def _record(site: Mapping, jacobian: Array | None) -> Record:
    kind = site["type"]
    frames = tuple((f.name, f.dim, f.size) for f in reversed(site.get("cond_indep_stack", [])))
    if kind == "sample":
        return Record(
            site["name"], kind, site["fn"], site["value"], frames, site["is_observed"], site["scale"], jacobian
        )
    if kind == "param":
        constraint = site["kwargs"].get("constraint", numpyro.distributions.constraints.real)
        return Record(site["name"], kind, constraint, site["value"], frames)
    return Record(site["name"], kind, None, site.get("value"), frames, arguments=tuple(site.get("args", ())))
