"""What does a filtering guide know after the steps so far? A state of fixed size, updated by one observation at a time.

    state_t = update(state_{t-1}, x_t),   q(z_t | x_1, ..., x_t) = belief(state_t)

All are pure functions of arrays, for use inside `jax.jit`, `jax.vmap` and `jax.lax.scan`. Outside of these values are
known and those that can't be are refused (`observation`). Inside, only what can be checked from shapes is, when the
program is traced, and values are the caller's task: an index out of range, and NaN in an argument of which nothing was
missing in training, show as NaN in all later beliefs, as does a belief before any update; others do not show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from ._errors import DataError, GuideError
from ._types import Batch, Context, check_key, whole_number
from .beliefs import Part, Steps, choices_of, numbers_of
from .encoders.causal import STEP, Causal
from .families.base import AbstractFamily
from .families.discrete import Factorised
from .families.filtering import Filtering, Stepwise, draw
from .families.normal import AbstractAffine
from .frames import Frame, prior_frame
from .guide import Guide
from .joint.structure import Structure
from .observation import Kind, kinds_of, one_step


class FilterState(eqx.Module):
    """All that is kept of the steps so far."""

    context: Context  # (state of the encoder, the last step as it was seen)
    started: Bool[Array, ""]  # whether there was a step


class Belief(eqx.Module):
    """q(z_t | x_1, ..., x_t) of one series: numbers of one step, or discrete states.

    Values are dicts by site, of the shape that one step has; a site of a loop, `state_3` say, is called `state`.
    """

    parts: tuple[Part, ...] = eqx.field(static=True)
    context: Context
    family: AbstractFamily | None  # of the standardised numbers of a step
    frame: Frame | None
    choices: Factorised | None
    values: tuple[tuple[int | float, ...], ...] = eqx.field(static=True)  # of every part's elements, where discrete

    def sample(self, key: Array, *, num_samples: int | None = None) -> dict[str, Array]:
        """One draw; or `num_samples` of them, along a first axis.

        **Raises** `DataError` for what is no typed key, or no whole number from 1.
        """
        check_key(key)
        if num_samples is not None:
            return jax.vmap(self.sample)(jax.random.split(key, whole_number("num_samples", num_samples)))
        if self.choices is not None:
            uniform = jax.random.uniform(key, (len(self.choices.counts),))
            return self._named(self.choices.draw(uniform, self.context), digits=True)
        family, frame = self._numeric("sample")
        noise = jax.random.normal(key, (family.noise_size + 1,))
        return self._named(frame.place(draw(family, noise, self.context)[0]))

    def log_prob(self, values: Mapping[str, Any]) -> Float[Array, ""]:
        """Log density, or probability, of the values of all sites of the step, in nats."""
        flat = self._flat(values)
        if self.choices is not None:
            sizes = [_size(part) for part in self.parts]
            supports = [jnp.asarray(own) for own, size in zip(self.values, sizes, strict=True) for _ in range(size)]
            same = [x == support for x, support in zip(flat, supports, strict=True)]
            digits, known = (jnp.stack([f(x) for x in same]) for f in (jnp.argmax, jnp.any))
            return jnp.sum(jnp.where(known, self.choices.log_prob(digits, self.context), -jnp.inf))
        family, frame = self._numeric("log_prob")
        return family.log_prob(frame.take(flat), self.context) - frame.log_det

    def mean_and_cov(self) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
        """Mean and covariance of the numbers of a step, one site after the other, where the family is normal."""
        family, frame = self._numeric("mean_and_cov")
        if not isinstance(family, AbstractAffine):
            raise GuideError(
                f"belief.mean_and_cov: {type(family).__name__} is no normal and has none in closed form; use sample, "
                "or train am.filtering(am.full())"
            )

        def place(standard: Array) -> Array:
            return frame.place(family.stretch(standard, self.context)[0])

        zero = jnp.zeros(family.size)
        factor = jax.jacfwd(place)(zero)  # an affine map of standard normals
        return place(zero), factor @ factor.T

    def probabilities(self) -> dict[str, Float[Array, "*shape values"]]:
        """Of the values of every discrete site of the step, on the last axis in the order of its support."""
        if self.choices is None:
            raise GuideError("belief.probabilities: the latents are numbers; use mean_and_cov, sample or log_prob")
        probs = jnp.exp(self.choices.log_probs(self.context))
        found, start = {}, 0
        for part, values in zip(self.parts, self.values, strict=True):
            stop = start + _size(part)
            found[part.name] = probs[start:stop, : len(values)].reshape(*part.shape, len(values))
            start = stop
        return found

    def _numeric(self, verb: str) -> tuple[AbstractFamily, Frame]:
        if self.family is None or self.frame is None:
            raise GuideError(f"belief.{verb}: the latents are discrete; use probabilities, sample or log_prob")
        return self.family, self.frame

    def _named(self, flat: Array, *, digits: bool = False) -> dict[str, Array]:
        found, start = {}, 0
        for number, part in enumerate(self.parts):
            stop = start + _size(part)
            own = flat[start:stop].reshape(part.shape)
            found[part.name] = jnp.asarray(self.values[number])[own] if digits else own
            start = stop
        return found

    def _flat(self, values: Mapping[str, Any]) -> Array:
        wanted = [part.name for part in self.parts]
        if not isinstance(values, Mapping):
            raise DataError(
                f"belief.log_prob: expected a dict of site -> values, of {wanted}, got {type(values).__name__}"
            )
        if sorted(values) != sorted(wanted):
            raise DataError(f"belief.log_prob: expected values of {wanted}, got {sorted(values)}")
        for part in self.parts:
            if jnp.shape(values[part.name]) != part.shape:
                raise DataError(
                    f"belief.log_prob: '{part.name}' of one step has shape {part.shape}, got "
                    f"{jnp.shape(values[part.name])}; use jax.vmap for many"
                )
        return jnp.concatenate([jnp.ravel(jnp.asarray(values[name])) for name in wanted])


class Filter(eqx.Module):
    """Beliefs of one series, an observation at a time: `init`, `update`, `belief`; `jax.vmap` them for many series.

    What is in training data along time is one step here: `{"y": y_t}`, covariates of the step (an action) with it.
    Parameters do not depend on the number of steps, so that any number may follow; beliefs are as good as training
    covered what is seen then.
    """

    encoder: Causal
    family: AbstractFamily | None
    frame: Frame | None
    choices: Factorised | None
    parts: tuple[Part, ...] = eqx.field(static=True)
    values: tuple[tuple[int | float, ...], ...] = eqx.field(static=True)
    kinds: tuple[Kind, ...] = eqx.field(static=True)

    def __repr__(self) -> str:
        seen = ", ".join(feature.name for feature in self.encoder.features.inputs.features)
        return f"Filter(beliefs of {', '.join(part.name for part in self.parts)}; a step sees {seen})"

    def init(self) -> FilterState:
        """Before the first step, where there is no belief yet: it is the model's prior."""
        sizes = self.encoder.context_sizes
        return FilterState((self.encoder.start(), jnp.zeros(sizes[1])), jnp.zeros((), bool))

    def update(self, state: FilterState, observation: Mapping[str, Any], *, real: Any = True) -> FilterState:
        """The state after one more step, at the same cost however many came before.

        **Arguments:** `observation` one step of every argument of the model, by name; where some were missing in
        training NaN is a missing value, and None a missing observation of any type. `real` False where the step is
        padding after the end of a series: the state stays as it is.

        **Raises** `DataError` for other arguments, shapes or types; outside of `jax.jit` also for values that can't
        be: missing where none was in training, infinite, outside a range or support.
        """
        _check_state("update(state, observation)", state)
        said = real if isinstance(real, jax.Array) else np.asarray(real)
        if said.dtype.kind != "b" or said.ndim:
            raise DataError(f"filter.update: real= says whether the step is one, True or False, got {real!r}")
        unit = self._one_step(observation)
        row = self.encoder.rows(unit)[0]
        row = jnp.where(self._possible(unit), row, jnp.nan)
        after = FilterState((self.encoder.cell(row, state.context[0]), row), jnp.ones((), bool))
        if real is True:
            return after
        return jax.tree.map(lambda new, old: jnp.where(real, new, old), after, state)

    def belief(self, state: FilterState) -> Belief:
        """q(z_t | x_1, ..., x_t).

        **Raises** `DataError` before any step, where that is known (outside of `jax.jit`).
        """
        _check_state("belief(state)", state)
        if not isinstance(state.started, Tracer) and not np.all(state.started):
            raise DataError(
                "filter.belief: there was no step yet, and what is believed then is the model's prior; call "
                "state = filter.update(state, observation) first"
            )
        context = jax.tree.map(lambda x: jnp.where(state.started, x, jnp.nan), state.context)
        return Belief(self.parts, context, self.family, self.frame, self.choices, self.values)

    def _one_step(self, observation: Mapping[str, Any]) -> Batch:
        features = self.encoder.features.inputs.features
        found, arrays, masks = one_step(observation, features, self.kinds), {}, {}
        for feature in features:
            value, mask = found[feature.name]
            lead = feature.plate == STEP
            arrays[feature.name] = value[None] if lead else value
            if feature.masked:
                masks[feature.name] = mask[None] if lead else mask
        return Batch(arrays, masks, {})

    def _possible(self, unit: Batch) -> Bool[Array, ""]:
        """Whether every index is in range."""
        inside = jnp.ones((), bool)
        for feature in self.encoder.features.inputs.features:
            if feature.categories:
                place = unit.arrays[feature.name] - feature.first_category
                good = (place >= 0) & (place < feature.categories)
                inside &= jnp.all(good | ~unit.masks[feature.name] if feature.masked else good)
        return inside


def _check_state(verb: str, state: Any) -> None:
    if not isinstance(state, FilterState):
        raise DataError(
            f"filter.{verb}: expected the state that init() or update() returned, got {type(state).__name__}"
        )


def _size(part: Part) -> int:
    return math.prod(part.shape)


def _supports(structure: Structure, steps: Steps) -> tuple[tuple[int | float, ...], ...]:
    """The values that elements of every part of a step can take."""
    each = [site.choices for site in structure.learned for _ in range(math.prod(site.event_shape))]
    starts = itertools.accumulate((_size(part) for part in steps.parts[:-1]), initial=0)
    return tuple(each[steps.index[0][start]] for start in starts)


def filter_of(structure: Structure, guide: Guide) -> Filter:
    """The filter of a trained guide.

    **Raises** `GuideError` where q is not step by step.
    """
    encoder = guide.encoder
    if not isinstance(encoder, Causal):
        raise GuideError(
            f"posterior.filter: q of {structure.plate} reads all of its data at once; beliefs step by step are learned "
            "with am.amortize(..., family=am.filtering())"
        )
    if guide.classifier is not None:
        assert isinstance(guide.classifier, Factorised)
        assert isinstance(guide.classifier.network, Stepwise)
        steps, stepwise = choices_of(structure), guide.classifier.network
        counts = tuple(guide.classifier.counts[i] for i in steps.index[0])
        choices = Factorised(counts, False, stepwise.network)
        return Filter(encoder, None, None, choices, steps.parts, _supports(structure, steps), kinds_of(structure))
    assert guide.local is not None
    assert isinstance(guide.local.family, Filtering)
    steps, frame = numbers_of(structure), prior_frame(guide.local.whitening)
    first = np.asarray(steps.index[0])
    placed = Frame(frame.center[first], frame.factor[first])
    return Filter(encoder, guide.local.family.step, placed, None, steps.parts, (), kinds_of(structure))
