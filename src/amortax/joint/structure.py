"""What is in a model? Sites, plates and arguments as plain facts: hashable, printable, and stored with a posterior."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from jax import Array
from jax import numpy as jnp

from .._errors import ArtifactError
from .._types import Batch

Role = Literal["local", "global", "discrete", "observed", "factor", "deterministic"]
DENSE: tuple[Role, ...] = ("local", "global", "discrete", "observed", "factor")  # all that have a log density


@dataclasses.dataclass(frozen=True)
class Site:
    """A site of the model as one unit sees it (plate of size 1)."""

    name: str
    role: Role
    per_unit: bool  # inside the amortized plate
    dims: tuple[str | None, ...]  # a name for every kept axis: an inner plate's, or None for an event axis
    kept_shape: tuple[int, ...]  # the value without the unit axis and without axes that only broadcast
    dropped: tuple[int, ...]  # the axes left out, counted from the right
    model_shape: tuple[int, ...]  # the value as the model sees it
    event_dim: int
    free_shape: tuple[int, ...]  # unconstrained value, in the model's layout; () unless latent
    support: str
    argument: str | None = None  # observed through this argument itself
    added: tuple[int, ...] = ()  # axes of length one, from the right, that the model gives it
    order: tuple[int, ...] = ()  # the argument's axes in the order of the site's; empty where it is the same
    unit_dim: int = 0  # the plate's dim, 0 outside it
    checkable: bool = False  # observed in each unit, with a support that depends on no latent
    choices: tuple[int | float, ...] = ()  # of one element of a discrete latent, or of an observed site that has gaps

    def facts(self, loose: Collection[str] = ()) -> tuple[Any, ...]:
        """What makes it the same site, whatever the lengths of the data along `loose` plates."""
        shape: Any = self.event_dim
        if self.role in ("local", "global"):
            shape = self.at(dict.fromkeys(loose, 0)).free_shape
        where = "per unit" if self.per_unit else "shared"
        return (self.role, where, self.dims, shape, self.support, self.argument, self.choices)

    def as_argument(self, value: Array) -> Array:
        """A value in the model's layout, with the axes of its argument in their order.

        Where they have the same order, the end of its shape will do.
        """
        value = jnp.squeeze(value, tuple(axis for axis in self.added if -jnp.ndim(value) <= axis))
        return jnp.transpose(value, np.argsort(self.order).tolist()) if self.order else value

    def from_argument(self, value: Array) -> Array:
        """What stands for its argument in the model, in the layout of the site."""
        value = jnp.transpose(value, self.order) if self.order else value
        return jnp.expand_dims(value, self.added)

    @property
    def free_size(self) -> int:
        """Dimension of the unconstrained value."""
        return math.prod(self.free_shape)

    @property
    def plates(self) -> frozenset[str]:
        """The inner plates it is in."""
        return frozenset(name for name in self.dims if name is not None)

    @property
    def plate_axes(self) -> dict[str, int]:
        """The axis of the unconstrained value along each of its plates."""
        ndim = len(self.model_shape)
        kept = [axis for axis in range(ndim) if axis - ndim not in self.dropped]
        return {name: axis for axis, name in zip(kept, self.dims, strict=True) if name is not None}

    def at(self, sizes: Mapping[str, int]) -> Site:
        """The same with plates of these sizes."""
        free, model, kept = list(self.free_shape), list(self.model_shape), list(self.kept_shape)
        for name, axis in self.plate_axes.items():
            if name in sizes:
                free[axis] = model[axis] = kept[self.dims.index(name)] = sizes[name]
        return dataclasses.replace(self, free_shape=tuple(free), model_shape=tuple(model), kept_shape=tuple(kept))

    @property
    def unit_axis(self) -> int:
        """The unit axis of a latent, whose unconstrained event may have fewer axes than the constrained one."""
        return len(self.model_shape) - self.event_dim + self.unit_dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.model_shape[len(self.model_shape) - self.event_dim :]

    @property
    def num_assignments(self) -> int:
        """Values that one event can take, where they are listed."""
        return len(self.choices) ** math.prod(self.event_shape)

    def keep(self, value: Array) -> Array:
        """One unit's value without the unit axis and the axes that only broadcast."""
        return jnp.squeeze(value, self.dropped)

    def keep_facts(self, facts: Array) -> Array:
        """`keep` for facts about the value, which have fewer event axes than it."""
        fewer = len(self.model_shape) - jnp.ndim(facts)
        return jnp.squeeze(facts, tuple(dim + fewer for dim in self.dropped if -jnp.ndim(facts) <= dim + fewer < 0))

    def unkeep(self, value: Array) -> Array:
        """The inverse of `keep`, for any length of its ragged axes."""
        return jnp.expand_dims(value, self.dropped)


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of the model that varies by unit."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]  # of one unit; None along the ragged axis
    axis: int  # where the unit axis stands in the model's own layout
    role: Literal["observed", "covariate"]
    plate: str | None = None  # the inner plate along which its elements lie
    plate_axis: int = 0  # the axis of one unit's array along that plate
    dims: tuple[str | None, ...] = ()  # the inner plate along each axis of one unit's array
    masked: bool = False
    categories: int | None = None  # an index into an axis of this length
    first_category: int = 0  # the value that stands for its first element
    positive: bool = False  # observed counts or positive numbers: encoders also see the logarithm
    needed: str = ""  # why none of it may be missing, or empty
    complete: bool = False  # a label of which none was missing when the model was read, but may be later

    def facts(self, other: Argument) -> tuple[Any, ...]:
        """What makes it the same argument as `other`, along axes of which neither leaves the length open."""
        lengths = zip(self.shape, other.shape, strict=False)
        shape = tuple(None if None in (n, m) else n for n, m in lengths), len(self.shape)
        return (self.dtype, shape, self.axis, self.role, self.categories, self.first_category)

    @property
    def ragged(self) -> bool:
        """True where units differ in length."""
        return None in self.shape


@dataclasses.dataclass(frozen=True)
class InnerPlate:
    """A plate inside the amortized one."""

    name: str
    ragged: bool
    exchangeable: bool  # probed: permuting the elements changes no density
    argument: str | None  # the ragged argument whose length is this plate's
    dim: int = -1  # its axis in the model, from the right
    ordered: bool = False  # its elements are the steps of a scan


@dataclasses.dataclass(frozen=True)
class Structure:
    """The model as read and probed: everything that later parts need to know about it."""

    model: str
    plate: str  # that of the units, or what whole data sets are called
    sites: tuple[Site, ...]
    arguments: tuple[Argument, ...]
    plates: tuple[InnerPlate, ...]
    params: tuple[str, ...]
    cannot_simulate: str = ""  # the reason, or empty
    no_density: str = ""  # why log p of the data is not that of what made them, or empty
    tied: str = ""  # why numbers in inner plates are not independent given those above them, or empty
    classified: bool = False  # the guide has a q of the unit's own discrete sites, on which its numbers hang
    whole: bool = False  # a unit is one call of the model (plate=None)
    sampled: bool = False  # that q draws their values and does not list them, so that they may be any number

    def of(self, *roles: Role) -> tuple[Site, ...]:
        """Sites with one of the roles, in the model's order."""
        return tuple(site for site in self.sites if site.role in roles)

    @property
    def learned(self) -> tuple[Site, ...]:
        """Discrete sites of which the guide has a q: the unit's own, if it has numbers too or q draws them."""
        return tuple(site for site in self.summed if not site.plates) if self.classified else ()

    @property
    def drawn(self) -> tuple[Site, ...]:
        """Those of the learned sites whose assignments are nowhere listed."""
        return self.learned if self.sampled else ()

    @property
    def labels(self) -> dict[str, Site]:
        """Arguments whose missing values are summed over, and the discrete site that observes each."""
        return {site.argument: site for site in self.summed if site.argument is not None}

    @property
    def summed(self) -> tuple[Site, ...]:
        """Sites over whose values densities are summed: discrete latents, and observed sites where they are missing."""
        return tuple(site for site in self.sites if site.choices)

    def size(self, role: Literal["local", "global"]) -> int:
        """Total unconstrained dimension of the local or the global sites."""
        return sum(site.free_size for site in self.of(role))

    def layout(self, role: Literal["local", "global"]) -> tuple[tuple[Any, ...], ...]:
        """For every site its plates, the shape of its unconstrained value, and the axes along these plates."""
        axes = ((site.plate_axes, site.free_shape) for site in self.of(role))
        return tuple((tuple(along), shape, tuple(along.values())) for along, shape in axes)

    @property
    def outermost_first(self) -> tuple[str, ...]:
        """The inner plates in the order of their axes, those of one axis in the model's."""
        return tuple(plate.name for plate in sorted(self.plates, key=lambda plate: plate.dim))

    @property
    def loose(self) -> frozenset[str]:
        """The inner plates whose size the data decide, unit by unit or set by set."""
        return frozenset(p for a in self.arguments for p, n in zip(a.dims, a.shape, strict=False) if p and n is None)

    @property
    def stretches(self) -> bool:
        """Whether numeric locals stand in such a plate, so that longer units have more of them."""
        return any(site.plates & self.loose for site in self.of("local"))

    def at(self, unit: Batch) -> Structure:
        """The same with as many latents as the arrays of `unit`, or of a batch of them, have places for."""
        if not self.stretches:
            return self
        sizes = {}
        for argument in self.arguments:
            shape = unit.arrays[argument.name].shape[-len(argument.shape) :] if argument.shape else ()
            sizes |= {p: n for p, n in zip(argument.dims, shape, strict=False) if p in self.loose}
        sites = tuple(site.at(sizes) if site.role == "local" else site for site in self.sites)
        return dataclasses.replace(self, sites=sites)

    def supports(self, role: Literal["local", "global"]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """For every site its name, its support and the shape of its unconstrained value."""
        return tuple((site.name, site.support, site.free_shape) for site in self.of(role))

    def argument(self, name: str) -> Argument:
        """The argument called `name`."""
        return next(argument for argument in self.arguments if argument.name == name)

    def unpack(self, role: Literal["local", "global"], flat: Array) -> dict[str, Array]:
        """Splits a flat unconstrained vector into the sites' unconstrained values, in the model's layout."""
        values, start = {}, 0
        for site in self.of(role):
            values[site.name] = jnp.reshape(flat[start : start + site.free_size], site.free_shape)
            start += site.free_size
        return values

    def pack(self, role: Literal["local", "global"], values: dict[str, Array]) -> Array:
        """The inverse of `unpack`."""
        parts = [jnp.ravel(values[site.name]) for site in self.of(role)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of every field."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(spec: dict[str, Any]) -> Structure:
        """The structure that `to_json` wrote; unknown or missing fields are an error."""
        try:
            return Structure(
                **{
                    **spec,
                    "sites": tuple(Site(**_tuples(site)) for site in spec["sites"]),
                    "arguments": tuple(Argument(**_tuples(argument)) for argument in spec["arguments"]),
                    "plates": tuple(InnerPlate(**plate) for plate in spec["plates"]),
                    "params": tuple(spec["params"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ArtifactError(f"the stored structure can't be read: {error}; written by another version") from error

    def difference(self, other: Structure) -> str:
        """The first difference in words, empty if equal; names of functions, lengths and probed facts may differ."""
        loose, known = self.loose | other.loose, {a.name: a for a in other.arguments}
        ours = {a.name: a for a in self.arguments}
        mine = {f"site '{s.name}'": s.facts(loose) for s in self.sites} | {
            f"argument '{a.name}'": a.facts(known.get(a.name, a)) for a in self.arguments
        }
        yours = {f"site '{s.name}'": s.facts(loose) for s in other.sites} | {
            f"argument '{a.name}'": a.facts(ours.get(a.name, a)) for a in other.arguments
        }
        for key in [*mine, *(k for k in yours if k not in mine)]:
            if mine.get(key) != yours.get(key):
                return f"{key}: stored {mine.get(key, 'none')}, this model has {yours.get(key, 'none')}"
        if self.params != other.params:
            return f"parameters: stored {self.params}, this model has {other.params}"
        return ""


def _tuples(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
