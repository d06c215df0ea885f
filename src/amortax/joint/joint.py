"""What is log p? The user's NumPyro program as a density and a sampler of one unit, vmapped over units.

For one unit with data d, unconstrained locals u and unconstrained globals v,

    log p(d, u, v) = shared(v) + unit(d, u; v),

with the Jacobians of the constraining transforms in the part whose site they belong to. The program runs with plate
size 1; since it was probed to be separable, N units are N such runs under `vmap`, which share one `shared` part.

Discrete locals c are summed out of `unit`, log Σ_c p(d, u, c | v): all their assignments are one more vmapped axis (see
`summed`). Given the rest they have exact conditional probabilities, by which `choose` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from .._types import Batch, PyTree, Terms
from . import summed
from .assignments import Choices, choice_of, choice_size, choice_values, parts_of
from .layout import unit_to_model
from .masks import partly_missing, site_log_prob, site_masks
from .observe import reading
from .structure import DENSE, Site, Structure
from .summed import Evaluate
from .trace import Record, run


class Joint(eqx.Module):
    """A NumPyro program read once; `params` holds the free values of its `param` sites and modules (θ)."""

    model: Callable = eqx.field(static=True)
    structure: Structure = eqx.field(static=True)
    params: PyTree

    @property
    def local_size(self) -> int:
        """Length of one unit's locals: unconstrained numbers, then those of its choice where q has one."""
        return self.structure.size("local") + choice_size(self.structure)

    def at(self, unit: Batch) -> Joint:
        """The same for units that are padded as long as `unit`, or as a batch of them: with as many locals."""
        return Joint(self.model, self.structure.at(unit), self.params)

    @property
    def shared_size(self) -> int:
        """Dimension of the unconstrained globals."""
        return self.structure.size("global")

    def log_prob(self, local: Array, shared: Array, batch: Batch) -> Terms:
        """Log density in nats of units' locals (B, d) and globals (g,), in unconstrained space, Jacobians included."""

        def one(local: Array, unit: Batch) -> tuple[Array, Array]:
            terms = self.unit_log_prob(local, shared, unit)
            return terms.unit, terms.shared

        return Terms(*jax.vmap(one, out_axes=(0, None))(local, batch))

    def unit_log_prob(self, local: Array, shared: Array, unit: Batch) -> Terms:
        """`log_prob` of one unit: locals (d,), arrays without the unit axis; discrete locals summed out."""
        if not self.structure.summed:
            return self.complete_log_prob({}, local, shared, unit)
        known = self._known(local, unit)
        return summed.summed_log_prob(self.structure, self._evaluate(local, shared, unit), known, unit.lengths)

    def complete_log_prob(self, values: Choices, local: Array, shared: Array, unit: Batch) -> Terms:
        """`unit_log_prob` together with `values` of all discrete locals, in the model's layout."""
        log_probs = self._evaluate(local, shared, unit)(values)
        in_unit, outside = jnp.zeros(()), jnp.zeros(())
        for site in self.structure.of(*DENSE):
            total = jnp.sum(log_probs[site.name])
            if site.per_unit:
                in_unit = in_unit + total
            else:
                outside = outside + total
        return Terms(in_unit, outside)

    def site_log_probs(self, local: Array, shared: Array, unit: Batch) -> dict[str, Array]:
        """The log densities of one unit by site, in its batch shape; of models whose discrete sites are observed."""
        return self._evaluate(local, shared, unit)({})

    def unit_log_prior(self, local: Array, shared: Array, unit: Batch) -> Array:
        """The part of `unit_log_prob` that is log p(u | v) of the unit's own latents, Jacobians included."""
        log_probs = self._evaluate(local, shared, unit)({})
        return sum((jnp.sum(log_probs[site.name]) for site in self.structure.of("local")), jnp.zeros(()))

    def choose(self, key: Array, local: Array, shared: Array, unit: Batch) -> Choices:
        """A draw of one unit's discrete locals from their exact conditional given all else, in the model's layout."""
        if not self.structure.summed:
            return {}
        known = self._known(local, unit)
        return summed.draw_choices(key, self.structure, self._evaluate(local, shared, unit), known, unit.lengths)

    def log_choice(self, values: Choices, local: Array, shared: Array, unit: Batch) -> Array:
        """Log probability in nats of `values` of the discrete locals given all else.

        Those of learned ones are among the locals: given these they are certain.
        """
        if not self.structure.summed:
            return jnp.zeros(())
        complete = self.complete_log_prob(values, local, shared, unit).unit
        return jnp.where(complete > -jnp.inf, complete - self.unit_log_prob(local, shared, unit).unit, -jnp.inf)

    def _known(self, local: Array, unit: Batch) -> Choices:
        """Values of the learned discrete sites: where the unit stands, or else those that stand with the locals."""
        if not self.structure.learned:
            return {}
        choice = parts_of(self.structure, local)[1] if unit.choice is None else jnp.asarray(unit.choice)
        return choice_values(self.structure, choice)

    def _evaluate(self, local: Array, shared: Array, unit: Batch) -> Evaluate:
        """Log density of every site in its batch shape, as a function of the values of the discrete ones."""

        def evaluate(values: Choices) -> dict[str, Array]:
            values = self._known(local, unit) | values
            records = self.records(local, shared, unit, key=jax.random.key(0), values=values)
            masks = self.masks_of(records, unit, without=self.structure.labels)
            sites = self.structure.of(*DENSE)
            found = {s.name: site_log_prob(records[s.name], masks.get(s.name), checked=s.checkable) for s in sites}
            for argument, site in self.structure.labels.items():
                right = jnp.all(self._agrees(argument, values[site.name], unit), axis=tuple(range(-site.event_dim, 0)))
                found[site.name] = jnp.where(right, found[site.name], -jnp.inf)
            return found

        return evaluate

    def _agrees(self, argument: str, value: Array, unit: Batch) -> Array:
        """Whether values of an observed argument are those that were seen, where they were."""
        axis, added = self.structure.argument(argument).axis, self.structure.labels[argument].added
        label = unit.arrays[argument]
        mask = unit.masks.get(argument, jnp.ones_like(label, bool))
        label, mask = (jnp.expand_dims(jnp.expand_dims(x, axis), added) for x in (label, mask))
        return (label == value) | ~mask

    def constrain(self, local: Array, shared: Array, unit: Batch, chosen: Choices | None = None) -> dict[str, Array]:
        """Values of every latent and deterministic site of one unit, in the user's own space, unit axis dropped.

        **Arguments**: `chosen` what `choose` drew for the discrete sites, if there are any.
        """
        records = self.records(local, shared, unit, key=jax.random.key(0), values=chosen or {})
        sites = [*self.structure.of("local", "global", "discrete", "deterministic"), *self.structure.labels.values()]
        return {site.name: site.keep(records[site.name].value) for site in sites}

    def draw_latents(self, key: Array, unit: Batch) -> tuple[Array, Array]:
        """One draw of unconstrained (numbers of the unit, globals) from the prior; observed sites need no sampler.

        Learned discrete sites have the values at which the unit stands, if at some: labels where they are missing.
        """
        arguments, given = self.placed(unit, {} if unit.choice is None else self._known(jnp.zeros(0), unit))
        with reading(self.model):
            records = run(
                self.model, arguments, key=key, given=given, params=self.params, simulate=True, keep_observed=True
            )
        free = {s.name: records[s.name].to_free() for s in self.structure.of("local", "global")}
        return self.structure.pack("local", free), self.structure.pack("global", free)

    def simulate_shared(self, key: Array, unit: Batch) -> Array:
        """One draw of the unconstrained globals from their prior; `unit` only gives shapes."""
        records = run(self.model, self._arguments(unit), key=key, params=self.params, simulate=True)
        return self.structure.pack("global", {s.name: records[s.name].to_free() for s in self.structure.of("global")})

    def simulate(self, key: Array, shared: Array, unit: Batch) -> tuple[Array, dict[str, Array]]:
        """One unit from the prior given globals: unconstrained locals, and the observed arguments drawn anew.

        Shapes, covariates and lengths are those of `unit`; which places are observed stays as in its masks.
        """
        local, _, responses = self.simulate_complete(key, shared, unit)
        return local, responses

    def simulate_complete(self, key: Array, shared: Array, unit: Batch) -> tuple[Array, Choices, dict[str, Array]]:
        """`simulate` with the values of all discrete locals, in the model's layout, between the two."""
        records = run(
            self.model,
            self._arguments(unit),
            key=key,
            unconstrained=self.structure.unpack("global", shared),
            params=self.params,
            simulate=True,
        )
        free = {s.name: records[s.name].to_free() for s in self.structure.of("local")}
        chosen = {s.name: records[s.name].value for s in self.structure.summed}
        return self.with_number(free, chosen), chosen, self.responses(records, unit)

    def predict(
        self, key: Array, local: Array, shared: Array, unit: Batch, chosen: Choices | None = None
    ) -> dict[str, Array]:
        """One posterior-predictive draw of every observed site of one unit, unit axis dropped, by site name.

        Discrete sites have the values in `chosen`; those without one are drawn from their prior.
        """
        records = self.records(local, shared, unit, key=key, values=chosen or {}, simulate=True)
        sites = self.structure.of("observed")
        return {s.name: s.keep(records[s.name].value) for s in sites if s.per_unit}

    def in_support(self, unit: Batch, sites: tuple[Site, ...]) -> list[Array]:
        """Whether each observed value of one unit lies in its site's support; True under masks. One array per site."""
        records, masks = self._observed(unit)
        found = []
        for site in sites:
            record, mask = records[site.name], masks.get(site.name)
            good = record.fn.support(record.value)
            if mask is not None:
                missing = jnp.broadcast_to(~mask, jnp.shape(record.value))
                extra = jnp.ndim(missing) - jnp.ndim(good)
                good = good | jnp.any(missing, axis=tuple(range(-extra, 0))) if extra else good | missing
            found.append(site.keep_facts(good))
        return found

    def partly_missing(self, unit: Batch, sites: tuple[Site, ...]) -> list[Array]:
        """Whether each observed event of one unit is missing in part though its numbers have one joint density."""
        records, masks = self._observed(unit)
        return [
            s.keep_facts(partly_missing(records[s.name], masks[s.name])) if s.name in masks else jnp.zeros((), bool)
            for s in sites
        ]

    def _observed(self, unit: Batch) -> tuple[dict[str, Record], dict[str, Array]]:
        records = run(self.model, self._arguments(unit), key=jax.random.key(0), params=self.params)
        return records, self.masks_of(records, unit)

    def with_number(self, free: dict[str, Array], chosen: Choices) -> Array:
        """One unit's locals from their parts."""
        numbers = self.structure.pack("local", free)
        if not self.structure.learned:
            return numbers
        return jnp.append(numbers, choice_of(self.structure, chosen).astype(numbers.dtype))

    def responses(self, records: dict[str, Record], unit: Batch) -> dict[str, Array]:
        """The values of observed sites in one run as the arguments that observe them, in the layout of the data."""
        drawn = {}
        for site in self.structure.of("observed"):
            if site.argument is not None and site.per_unit:
                like = unit.arrays[site.argument]
                value = site.as_argument(records[site.name].value)
                whole = jnp.issubdtype(like.dtype, jnp.integer) and jnp.issubdtype(value.dtype, jnp.floating)
                value = jnp.round(value) if whole else value  # as numbers were that came as integers
                drawn[site.argument] = jnp.reshape(value, like.shape).astype(like.dtype)
        return drawn

    def _arguments(self, unit: Batch) -> dict[str, Array]:
        return unit_to_model(unit.arrays, {a.name: a.axis for a in self.structure.arguments})

    def placed(self, unit: Batch, values: Choices) -> tuple[dict[str, Array], Choices]:
        """Arguments with the values of labels where these are missing, and the values of latents."""
        arguments, latents = self._arguments(unit), dict(values)
        for argument, site in self.structure.labels.items():
            if site.name in latents and argument in unit.masks:
                own, value = arguments[argument], site.as_argument(latents.pop(site.name))
                seen = jnp.expand_dims(unit.masks[argument], self.structure.argument(argument).axis)
                arguments[argument] = jnp.where(seen, own, value.astype(own.dtype))
            latents.pop(site.name, None)
        return arguments, latents

    def records(
        self,
        local: Array,
        shared: Array,
        unit: Batch,
        *,
        key: Array,
        values: Choices | None = None,
        simulate: bool = False,
    ) -> dict[str, Record]:
        """Every site of one run of the model at these numbers, and at `values` of discrete sites."""
        values = self._known(local, unit) | (values or {})
        free = {**self.structure.unpack("global", shared), **self.structure.at(unit).unpack("local", local)}
        arguments, latents = self.placed(unit, values)
        with reading(self.model):
            return run(
                self.model,
                arguments,
                key=key,
                unconstrained=free,
                given=values if simulate else latents,
                params=self.params,
                simulate=simulate,
            )

    def masks_of(self, records: dict[str, Record], unit: Batch, without: Collection[str] = ()) -> dict[str, Array]:
        """Masks of one run's sites; arguments in `without` have a value everywhere."""
        axes = {a.name: a.axis for a in self.structure.arguments}
        masks = {name: mask for name, mask in unit.masks.items() if name not in without}
        data = Batch(self._arguments(unit), unit_to_model(masks, axes), unit.lengths)
        return site_masks(self.model, self.structure, records, data, self.params)
