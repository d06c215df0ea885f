"""What if a unit is a whole data set (`plate=None`)? The user's program is one unit; around it stands a plate of those.

The program is called with one data set's arrays, without the unit axis. Its sites stand in a plate called `DATASET`, to
the left of all plates of its own, and a batch of a site's that is in no plate is an event: nothing says that its
elements are independent. So every site is a local of its unit, and all that reads the model sees an ordinary plate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.primitives import Messenger

from .._errors import ModelError
from .._types import Batch
from .layout import shapes
from .observe import name_of, observe
from .structure import Structure

DATASET = "dataset"  # the plate, and the dimension of answers


@dataclasses.dataclass(frozen=True)
class Whole:
    """`program` as a model of data sets in a plate at `dim`.

    It computes one data set. Of several (abstract runs, which look at shapes) all are like the first.
    """

    program: Callable
    dim: int

    @property
    def __wrapped__(self) -> Callable:
        """Whose signature this has."""
        return self.program

    @property
    def func(self) -> Callable:
        """The user's function, whose name and lines errors tell."""
        return getattr(self.program, "func", self.program)

    @property
    def keywords(self) -> Mapping[str, Any]:
        """Arguments that the user has bound."""
        return getattr(self.program, "keywords", {})

    def __call__(self, **arrays: Array) -> None:
        """Runs the program on arrays with a leading axis of data sets."""
        size = jnp.shape(next(iter(arrays.values())))[0]
        with _Lift(numpyro.plate(DATASET, size, dim=self.dim)):
            self.program(**{n: jnp.squeeze(x, 0) if size == 1 else x[0] for n, x in arrays.items()})


class _Lift(Messenger):
    """The plate around the program: sites gain the plate's axes on their way out, and lose them coming back.

    The plate itself broadcasts their distributions. Of a scan it stands around every step.
    """

    def __init__(self, plate: numpyro.plate) -> None:
        super().__init__(None)
        self.plate, self.size, self.dim = plate, plate.size, plate.dim

    def process_message(self, msg: dict) -> None:
        if msg.get("_control_flow_done"):
            return
        if msg["type"] == "control_flow":
            msg["args"] = (self._around(msg["args"][0]), *msg["args"][1:])
            return
        self._lift(msg)
        self.plate.process_message(msg)

    def _around(self, body: Callable) -> Callable:
        def lifted(*args: Any) -> Any:
            with self:
                return body(*args)

        return lifted

    def _lift(self, msg: dict) -> None:
        if msg["type"] == "deterministic":
            msg["value"] = self._lifted(msg["value"], 1)
        elif msg["type"] == "sample":
            fn, value, kwargs = msg["fn"], msg["value"], msg["kwargs"]
            batch = (*(kwargs.get("sample_shape") or ()), *fn.batch_shape)
            if value is not None:
                value = jnp.asarray(value)
                batch = jnp.broadcast_shapes(batch, jnp.shape(value)[: jnp.ndim(value) - fn.event_dim])
            fn = fn if batch == fn.batch_shape else fn.expand(batch)
            if kwargs.get("sample_shape"):
                kwargs["sample_shape"] = ()
            if not msg["cond_indep_stack"] and batch:
                fn = fn.to_event(len(batch))
            msg["fn"] = fn
            if value is not None:
                value = jnp.broadcast_to(value, fn.shape()) if jnp.shape(value) != fn.shape() else value
                msg["value"] = self._lifted(value, max(-self.dim - len(fn.batch_shape), 1))
            msg["infer"]["_own_shape"] = fn.shape()

    def postprocess_message(self, msg: dict) -> None:
        if msg.get("_control_flow_done"):
            return
        self.plate.postprocess_message(msg)
        if msg["type"] == "deterministic":
            msg["value"] = msg["value"][0]
        elif msg["type"] == "sample":
            own, value = msg["infer"]["_own_shape"], msg["value"]
            whole = math.prod(jnp.shape(value)) == math.prod(own)
            msg["value"] = jnp.reshape(value if whole else value[0], own)

    def _lifted(self, value: Any, axes: int) -> Array:
        value = jnp.expand_dims(value, tuple(range(axes)))
        return value if self.size == 1 else jnp.broadcast_to(value, (self.size, *jnp.shape(value)[1:]))


def whole(model: Callable, data: Batch) -> Whole:
    """`model`, of one data set, as one of many; `data` gives the shapes.

    **Raises** `ModelError` naming its line where it does not run on one data set, or has a plate of that name.
    """
    specs = {name: x.update(shape=x.shape[1:]) for name, x in shapes(data, {}, 1).items()}
    seen = observe(model, specs)
    if DATASET in seen:
        raise ModelError(
            f"model '{name_of(model)}' has a site or plate '{DATASET}', which plate=None calls whole data sets: rename "
            f"it, or give plate='{DATASET}' if its elements are the units"
        )
    dims = [dim for site in seen.values() for name, dim, _ in site.plates if name != site.steps]
    return Whole(model, min(dims, default=0) - 1)


def program_of(model: Callable, structure: Structure) -> Callable:
    """The program that `structure` was read from: the user's model, or, of whole data sets, that in its plate."""
    if not structure.whole:
        return model
    return Whole(model, next(site.unit_dim for site in structure.sites if site.role != "deterministic"))
