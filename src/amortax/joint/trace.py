"""How is the user's program run? Once per call, under NumPyro handlers, with values put in and densities kept by site.

`run` is the only place that calls the model. It records every site with its distribution, value and plates, so that
structure, probe, density and simulation all read the same record and the model stays as the user wrote it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions import ImproperUniform, Independent, Unit, biject_to, constraints
from numpyro.distributions.distribution import Distribution, ExpandedDistribution, MaskedDistribution
from numpyro.primitives import Messenger

from .._errors import ModelError
from .._types import PyTree
from .steps import Jacobians, Steps, free_shape, is_scan, plate_around, run_steps, to_free


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
    steps: str = ""  # of a site in the body of a scan: the axis of its steps, one of `plates`

    def to_free(self) -> Array:
        """The unconstrained form of a latent value."""
        return to_free(self.fn, self.value)

    @property
    def is_factor(self) -> bool:
        """True for `numpyro.factor`."""
        return isinstance(core(self.fn), Unit)


STEPS = "time"  # the axis of the steps of a scan, as that of a plate; of further scans time_2 and so on


def core(fn: Distribution) -> Distribution:
    """What is inside steps, `Independent`, a mask and a plate: the distribution of one element."""
    while isinstance(fn, Steps | Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def is_improper(fn: Any) -> bool:
    """True for `ImproperUniform` and what is made from it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, ImproperUniform)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What is drawn from the prior where it has no value."""

    latents: bool
    observed: bool


class _Place(Messenger):
    """Puts values at latent sites (constrained or not) and at parameters, before `seed` would draw them.

    Latents without a value get a stand-in, standard normal in unconstrained space: always possible, also where the
    prior is improper or extreme, and cheap to compile. With `simulate` they are drawn from the prior where that can be.
    """

    def __init__(
        self, fn: Callable, values: tuple[Mapping, Mapping, Mapping], key: Array, draw: _Draw, *, is_step: bool = False
    ) -> None:
        super().__init__(fn)
        self.unconstrained, self.given, self.params = values
        self.draw, self.is_step = draw, is_step
        self.keys = (jax.random.fold_in(key, i) for i in itertools.count())
        self.jacobians: Jacobians = {}
        self.scans: dict[str, Mapping] = {}  # by the axis of the steps: messages of the sites

    def process_message(self, msg: dict) -> None:
        if msg.get("_control_flow_done"):
            return
        if msg["type"] == "control_flow":
            self._scan(msg)
        elif msg["type"] == "param" and msg["name"] in self.params:
            constraint = msg["kwargs"].get("constraint", constraints.real)
            value = self.params[msg["name"]]
            msg["value"] = value if _is_real(constraint) else biject_to(constraint)(value)
        elif msg["type"] == "sample" and not msg["is_observed"]:
            self._place_latent(msg["name"], msg)
        elif msg["type"] == "sample" and msg["name"] in self.given:  # a value inferred for a gap stays in simulations
            msg["value"], msg["is_observed"] = jnp.broadcast_to(self.given[msg["name"]], msg["fn"].shape()), False

    def _scan(self, msg: dict) -> None:
        """Runs the body of a scan at every step, each in a place of its own."""
        if not is_scan(msg):
            raise NotImplementedError("control flow primitive: cond")
        if self.is_step:
            raise ModelError("a scan stands in the body of another; write the inner steps as a Python loop")

        def place(body: Callable, key: Array, values: tuple[Mapping, Mapping]) -> tuple[Callable, Jacobians]:
            step = _Place(body, (*values, {}), key, self.draw, is_step=True)
            return _drawn(step, key), step.jacobians

        axis = STEPS if not self.scans else f"{STEPS}_{len(self.scans) + 1}"
        result, jacobians = run_steps(msg, axis, next(self.keys), (self.unconstrained, self.given), place)
        msg["value"], self.scans[axis] = result, result[1][0].trace
        self.jacobians |= jacobians

    def _place_latent(self, name: str, msg: dict) -> None:
        if shape := msg["kwargs"].get("sample_shape"):  # as a batch, which the density then knows of
            msg["fn"], msg["kwargs"]["sample_shape"] = msg["fn"].expand((*shape, *msg["fn"].batch_shape)), ()
        fn = msg["fn"]
        if name in self.unconstrained:
            transform, free = biject_to(fn.support), self.unconstrained[name]
            value = transform(free)
            log_det = transform.log_abs_det_jacobian(free, value)
            extra = jnp.ndim(log_det) - (jnp.ndim(value) - len(fn.event_shape))
            self.jacobians[name] = jnp.sum(log_det, axis=tuple(range(-extra, 0))) if extra > 0 else log_det
            msg["value"] = value
        elif name in self.given:
            msg["value"] = jnp.broadcast_to(self.given[name], fn.shape())
        elif not fn.support.is_discrete and not has_bijection(fn.support):
            raise ModelError(
                f"site '{name}' has support {in_words(fn.support)}, for which NumPyro has no bijection to the reals; "
                "write it with a distribution whose support numpyro.distributions.biject_to knows"
            )
        elif not fn.support.is_discrete and (is_improper(fn) or not self.draw.latents):
            msg["value"] = biject_to(fn.support)(jax.random.normal(next(self.keys), free_shape(fn)))


def has_bijection(support: Any) -> bool:
    """Whether a support maps one to one to real vectors."""
    if getattr(support, "base_constraint", support) is constraints.complex:
        return False
    try:
        biject_to(support)
    except NotImplementedError:
        return False
    return True


def in_words(support: Any) -> str:
    """A support in print, for one element; bounds that are computed have no number yet."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return re.sub(r"\w*Tracer\([^()]*\)", "computed", str(support))


def _is_real(constraint: Any) -> bool:
    base = getattr(constraint, "base_constraint", constraint)
    return base is constraints.real


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
    params: Any = None,
    simulate: bool = False,
    keep_observed: bool = False,
) -> dict[str, Record]:
    """Runs the model once and returns its sites by name.

    **Arguments**: `arguments` the model's keyword arguments, in its own layout; `unconstrained` and `given` values of
    latent sites, free and constrained; `params` free values of parameters; latents in neither get stand-ins, or with
    `simulate` draws from the prior, and then observed sites too are drawn unless `keep_observed`.
    """
    draw = _Draw(simulate, simulate and not keep_observed)
    placed = _Place(model, (unconstrained or {}, given or {}, params or {}), key, draw)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        try:
            traced = handlers.trace(_drawn(placed, key)).get_trace(**arguments)
        except NotImplementedError as error:
            if instead := plate_around(error):
                raise ModelError(instead) from error
            raise
    _refuse_names(placed.scans, traced)
    plates = [site for sites in placed.scans.values() for site in sites.values() if site["type"] == "plate"]
    return {site["name"]: _record(site, placed.jacobians.get(site["name"])) for site in (*plates, *traced.values())}


def _drawn(placed: _Place, key: Array) -> Callable:
    """The program in its place, what has no value drawn."""
    program: Callable = handlers.uncondition(placed) if placed.draw.observed else placed
    return handlers.seed(program, rng_seed=key)


def _refuse_names(scans: Mapping[str, Mapping], traced: Mapping) -> None:
    """The axis of a scan's steps has a name that no plate may have, and its sites must be called as they are inside."""
    for axis, sites in scans.items():
        if axis in sites or axis in traced:
            raise ModelError(f"plate '{axis}' has the name of the steps of a scan; call the plate something else")
    known = {name for sites in scans.values() for name in sites}
    for name, site in traced.items():
        if site.get("_control_flow_done") and name not in known:
            raise ModelError(
                f"site '{name}' has another name outside a scan than in its body: a handler such as "
                "numpyro.handlers.scope stands around the scan; put it into the body"
            )


def _record(site: Mapping, jacobian: Array | None) -> Record:
    kind = site["type"]
    frames = tuple((f.name, f.dim, f.size) for f in reversed(site.get("cond_indep_stack", [])))
    steps = frames[0][0] if kind != "plate" and site.get("_control_flow_done") else ""
    if kind == "sample":
        value = site["value"] if isinstance(site["value"], Array) else jnp.asarray(site["value"])
        return Record(
            site["name"], kind, site["fn"], value, frames, site["is_observed"], site["scale"], jacobian, steps=steps
        )
    if kind == "param":
        constraint = site["kwargs"].get("constraint", constraints.real)
        return Record(site["name"], kind, constraint, site["value"], frames)
    arguments = tuple(site.get("args", ()))
    return Record(site["name"], kind, None, site.get("value"), frames, arguments=arguments, steps=steps)
