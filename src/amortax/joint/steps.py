"""What is NumPyro's `scan` in a model? Its body, run at every step under the same handlers; sites come out stacked.

The steps of a scan are an axis of its sites to the left of all plates of the body, and are recorded as a plate whose
elements are ordered. So lengths, masks and the names of axes are those of any inner plate. What a site is at a step is
kept as the body said it, and computed under `vmap` over the steps: parameters of different rank, which broadcast
against each other at one step, would not do so once stacked.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import biject_to
from numpyro.distributions.distribution import Distribution
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import CondIndepStackFrame

from .._errors import ModelError


class Steps(Distribution):
    """The distributions of one site at all steps: every leaf of `base_dist` has a leading axis of steps."""

    pytree_data_fields = ("base_dist",)

    def __init__(self, base_dist: Distribution, length: int) -> None:
        self.base_dist = base_dist
        super().__init__((length, *base_dist.batch_shape), base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Where the values of all steps must be."""
        return _Supports(self)

    def each(self, function: Callable, *values: Array) -> Any:
        """`function(distribution, *values)` of every step."""
        return jax.vmap(function)(self.base_dist, *values)

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        """Log density of every step, (steps, *batch)."""
        return self.each(lambda fn, x: fn.log_prob(x), value)

    @property
    def first(self) -> Distribution:
        """The distribution of the first step."""
        return jax.tree.map(lambda x: x[0], self.base_dist)


class _Supports:
    """The supports of all steps, which may move with the values before."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.base_constraint: Any = steps.base_dist.support
        self.is_discrete, self.event_dim = self.base_constraint.is_discrete, self.base_constraint.event_dim

    def __call__(self, value: Array) -> Array:
        return self.steps.each(lambda fn, x: fn.support(x), value)


def to_free(fn: Distribution, value: Array) -> Array:
    """The unconstrained form of a value."""
    if isinstance(fn, Steps):
        return fn.each(to_free, value)
    return biject_to(fn.support).inv(value)


def free_shape(fn: Distribution) -> tuple[int, ...]:
    """Shape of an unconstrained value."""
    if isinstance(fn, Steps):
        return (fn.batch_shape[0], *free_shape(fn.first))
    return tuple(biject_to(fn.support).inverse_shape(fn.shape()))


def is_scan(msg: Mapping) -> bool:
    """Whether a message of NumPyro's control flow is a scan, and not a cond."""
    return msg["fn"] is scan_wrapper


Jacobians = dict[str, Array]
Place = Callable[[Callable, Array, Any], tuple[Callable, Jacobians]]


def run_steps(msg: dict, axis: str, key: Array, values: tuple[Mapping, ...], place: Place) -> tuple[Any, Jacobians]:
    """What a scan returns, messages of its sites with stacked values among it, and the Jacobians of their latents.

    **Arguments**: `axis` what the axis of the steps is called; `values` of sites by name, all steps on the first axis;
    `place` the handlers around the body, given a key and the values of one step, and the Jacobians they will find.
    """
    body, init, xs, length, reverse = msg["args"]
    length = length if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]
    own = tuple({n: x for n, x in part.items() if jnp.ndim(x) and jnp.shape(x)[0] == length} for part in values)
    facts: dict[str, dict] = {}

    def step(carry: Any, now: Any) -> Any:
        x, key, values = now
        program, jacobians = place(body, key, values)
        with handlers.block(), handlers.trace() as traced:
            carry, y = program(carry, x)
        facts.update({name: _fact(site) for name, site in traced.items()})
        return carry, (y, {name: _parts(site, jacobians.get(name)) for name, site in traced.items()})

    every = (xs, jax.random.split(key, length), own)
    carry, (ys, stacked) = jax.lax.scan(step, init, every, length=length, reverse=reverse)
    messages, jacobians = {}, {}
    for name, fact in facts.items():
        value, fn, scale, jacobian = stacked[name]
        messages[name] = _message(fact, axis, length, value, fn) | {"scale": scale}
        if jacobian is not None:
            jacobians[name] = jacobian
    return ((length, None, carry), (PytreeTrace(messages), ys)), jacobians


def _fact(site: Mapping) -> dict:
    """What is the same at every step."""
    if site["type"] not in {"sample", "deterministic", "plate"}:
        raise ModelError(
            f"{site['type']} '{site['name']}' stands in the body of a scan, where it would be another one at every "
            "step; write it before the scan"
        )
    return {key: site.get(key) for key in ("name", "type", "is_observed")} | {
        "args": site["args"] if site["type"] == "plate" else (),
        "cond_indep_stack": list(site.get("cond_indep_stack", [])),
    }


def _parts(site: Mapping, jacobian: Array | None) -> tuple[Any, Any, Any, Any]:
    """What differs by step: value, distribution, scale, Jacobian."""
    if site["type"] != "sample":
        return site["value"], None, None, None
    value, fn, scale = site["value"], site["fn"], site["scale"]
    if site["is_observed"] and jnp.shape(value) != fn.shape():
        value = jnp.broadcast_to(value, fn.shape())
    return value, fn, None if scale is None else jnp.broadcast_to(scale, fn.batch_shape), jacobian


def _message(fact: dict, axis: str, length: int, value: Any, fn: Any) -> dict:
    frames, depth = fact["cond_indep_stack"], jnp.ndim(value)
    if fact["type"] == "sample":
        fn = Steps(fn, length)
        depth = len(fn.batch_shape)
    elif frames:
        depth = 1 - min(frame.dim for frame in frames)
    done = {"value": value, "fn": fn, "infer": {}, "intermediates": [], "_control_flow_done": True}
    kwargs = {"rng_key": None, "sample_shape": ()}
    return fact | done | {"kwargs": kwargs, "cond_indep_stack": [*frames, CondIndepStackFrame(axis, -depth, length)]}


def plate_around(error: BaseException) -> str:
    """What to write instead of a scan inside a plate, on which NumPyro raised `error`; empty if that is no such."""
    places = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    plates = [place["self"].name for place in places if isinstance(place.get("self"), numpyro.plate)]
    messages = [place["initial_msg"] for place in places if "initial_msg" in place]
    if not plates or not messages or not is_scan(messages[-1]):
        return ""
    body, init, xs, _, _ = messages[-1]["args"]
    try:
        with handlers.block(), handlers.trace() as traced, handlers.seed(rng_seed=0):
            body(init, jax.tree.map(lambda x: x[0], xs))
        names = [name for name, site in traced.items() if site["type"] == "sample"]
    except Exception:  # it can't run by itself: then without the names
        names = []
    return (
        f"a scan stands inside plate '{plates[-1]}'{f', with its sites {names}' if names else ''}, so that the axis of "
        "its steps has no place; put the plate into the body of the scan:\n"
        f'    def body(z, x_t):\n        with numpyro.plate("{plates[-1]}", n):\n            ...\n'
        "    scan(body, jnp.zeros(n), jnp.moveaxis(x, 1, 0))       # x: (units, steps)"
    )
