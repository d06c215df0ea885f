"""What does the user keep? A trained (joint, guide) with its plan and record; every verb calls a function below."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import answer
from ._errors import ArtifactError, DataError, GuideError, ModelError
from ._types import Terms, check_key, whole_number
from .checks.shift import Reference
from .data import TableSchema, Units
from .elsewhere import place_of
from .evidence import evidence
from .filter import Filter, filter_of
from .guide import Guide
from .intake import conform
from .interop import to_dataset, values_of
from .joint.densities import check_densities
from .joint.joint import Joint
from .joint.reread import reread
from .joint.whole import program_of
from .own import with_rows
from .plan import Plan
from .stored import filled, read_posterior, write_posterior
from .train.record import Record

if TYPE_CHECKING:
    from .checks.options import Checks
    from .checks.report import Report


class Posterior(eqx.Module):
    """A trained amortized posterior: `sample`, `log_prob`, `predict`, `check`, `save` for any new units."""

    plan: Plan = eqx.field(static=True)
    joint: Joint
    guide: Guide
    record: Record = eqx.field(static=True)
    schema: TableSchema | None = eqx.field(static=True)
    reference: Reference | None = None  # what the training units were like; None where nobody kept it

    def __str__(self) -> str:
        r = self.record
        biased = f"\nBIASED gradient: {r.bias}" if r.bias else ""
        trained = f"trained on {r.num_units:,} units, {r.num_steps:,} steps, {r.seconds:.1f} s ({r.stopped})"
        return f"{self.plan}\n{trained}{biased}"

    def __repr__(self) -> str:
        return f"Posterior(model={self.plan.structure.model}, plate={self.plan.structure.plate})"

    def sample(self, data: Any, *, num_samples: int, key: Array) -> Any:
        """Posterior draws of the globals, and of every unit's locals given them.

        **Arguments:** `data` units to answer for, in the form used for training, any number of them;
        `num_samples` draws of each; `key` a typed JAX key. A unit's draws depend on the key and its place in `data`,
        not on how many units or draws are asked for. Without an encoder (`free`) only units of the training are known.

        **Returns** an `xarray.Dataset` with dims (sample, plate names, event dims), unit labels as coordinates,
        deterministic sites included. With `am.filtering()` draws are of the beliefs, step by step: those of a step
        are right by themselves, given the data up to it, and a whole draw is none of the series.

        **Raises** `DataError` for data of another form, or impossible values.
        """
        check_key(key)
        num_samples, found = whole_number("num_samples", num_samples), self.answerable(data)
        return to_dataset(self._structure, found, *answer.sample(self.joint, self.guide, found, num_samples, key))

    def filter(self) -> Filter:
        """Beliefs q(z_t | x_1, ..., x_t) of one series, carried on by one observation at a time.

        **Returns** a `Filter` with `init`, `update` and `belief`, which run inside `jax.jit`, `vmap` and `lax.scan`.

        **Raises** `GuideError` for a posterior whose family is not `am.filtering()`.
        """
        return filter_of(self._structure, self.guide)

    def predict(self, data: Any, *, num_samples: int, key: Array, at: Any = None) -> Any:
        """Posterior-predictive draws of the observed sites, missing cells included.

        **Arguments:** as for `sample`; `at` new covariates of the same units, in the same order (their responses are
        not needed), None for the units' own.

        **Returns** an `xarray.Dataset` as `sample` does.
        """
        self.refuse_unjudgeable("predict")
        check_key(key)
        num_samples, found = whole_number("num_samples", num_samples), self.answerable(data)
        place = found if at is None else place_of(at, found, self.joint)
        drawn = answer.predict(self.joint, self.guide, found, place, num_samples, key)
        return to_dataset(self._structure, place, *drawn)

    def log_prob(self, values: Any, data: Any) -> Terms:
        """log q of constrained `values`, Jacobian included, in nats: one number per unit, and one for the globals.

        **Arguments:** `values` site -> array with the unit axis first for locals, or a Dataset of draws, whose units
        are matched to those of `data` by label, and whose `sample` dim then leads both parts of the answer; `data` the
        units.

        **Returns** `Terms`; -inf outside the support.

        **Raises** `DataError` for missing sites, units, or other shapes.
        """
        found = self.answerable(data)
        arrays, has_samples = values_of(self._structure, values, found.labels)
        if not arrays:
            return Terms(jnp.zeros(len(found)), jnp.zeros(()))
        terms = answer.log_prob(self.joint, self.guide, found, arrays)
        return terms if has_samples else jax.tree.map(lambda x: x[0], terms)

    def encode(self, data: Any) -> np.ndarray:
        """Context vectors (units, context): without an encoder, each unit's own parameters."""
        found = self.answerable(data)
        return answer.encode(self.joint, self.guide, found)

    def evidence(self, data: Any, *, key: Array, num_samples: int = 5000) -> Any:
        """log p(d) of every unit by `num_samples` importance draws from q, in nats; by it of new units models compare.

        **Arguments:** as for `sample`; many draws take time, not memory.

        **Returns** an `xarray.Dataset` with, for every unit, `log_evidence`, its Monte-Carlo `standard_error`, the
        `elbo` of the same draws, and `pareto_k`: above 0.7 the draws miss much of the posterior, and the evidence is
        too low by more than its error says. What q never draws, a mode or a discrete choice, none of these numbers can
        see. Discrete latents of which there is no q are summed. With globals all are means over draws of q(v) of
        log p(d | v).

        **Raises** `DataError` for fewer draws than a k-hat needs.
        """
        self.refuse_unjudgeable("evidence")
        check_key(key)
        num_samples, found = whole_number("num_samples", num_samples), self.answerable(data)
        import xarray

        numbers = evidence(self.joint, self.guide, found, num_samples, key)
        plate = self._structure.plate
        return xarray.Dataset({name: (plate, x) for name, x in numbers.items()}, coords={plate: found.labels})

    def check(
        self,
        data: Any,
        *,
        key: Array,
        training: Any = None,
        num_samples: int | None = None,
        checks: Checks | None = None,
    ) -> Report:
        """Judges q against the model, unit by unit, and the globals as a whole.

        **Arguments:** `data` units to judge; `training` all training units, which the judgement of the globals needs
        unless `data` are those; `checks` how much of every part; `num_samples` a short cut into it, the draws per unit
        and draw of the globals.

        **Returns** a `Report`: verdict first, reasons, a table with one row per unit.
        """
        self.refuse_unjudgeable("check")
        from .checks.check import check  # what only this verb needs would take 2% of an import of amortax
        from .checks.options import Checks

        check_key(key)
        checks, found = checks or Checks(), self.answerable(data)
        if num_samples is not None:
            checks = dataclasses.replace(checks, num_samples=whole_number("num_samples", num_samples))
        known = self.training_units(found, training)
        pair, about = (self.joint, self.guide), self._about()
        return check(*pair, found, known, key=key, checks=checks, about=about, reference=self.reference)

    def refine(
        self,
        data: Any,
        *,
        key: Array,
        num_samples: int = 1000,
        budget: float | int | str | None = None,
        training: Any = None,
    ) -> Any:
        """Draws as `sample` gives them, of units that q answers badly repaired, each only as far as it needs.

        **Arguments:** as for `sample`; `budget` seconds, after which what is left is called FAIL; None, as long as it
        takes; `"exact"`, and small errors are repaired too, and the globals, which needs `training`, all training
        units, unless `data` are those.

        **Returns** the Dataset of `sample` with, for every unit, `rung` (encoder, own, reweight, smc, hmc), `verdict`
        (PASS, or FAIL where no rung sufficed) and `seconds`; its attribute `globals_rung` says which draws the globals
        are. Units that need nothing have the draws of `sample`; without numbers of their own they have no such columns.
        """
        from .repair import refine

        self.refuse_unjudgeable("refine")
        check_key(key)
        num_samples, found = whole_number("num_samples", num_samples), self.answerable(data)
        known = self.training_units(found, training)
        return refine(self.joint, self.guide, found, known, num_samples=num_samples, key=key, budget=budget)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file: everything but the model, checked by SHA-256 when it is read again."""
        pair = (self.joint, self.guide)
        write_posterior(path, self.plan, pair, self.record, self.schema, self.reference)

    def answerable(self, data: Any) -> Units:
        """`data` as checked units that this posterior can answer for, or a `DataError` that says why it can't."""
        return with_rows(conform(data, self.joint), self.guide)

    def training_units(self, found: Units, training: Any) -> Units | None:
        """All units of the training where they are at hand: `training`, or the checked units themselves.

        **Raises** `DataError` where `training` are other units.
        """
        known = None if training is None else self.answerable(training)
        for candidate in (found, known):
            if candidate is not None and candidate.fingerprint() == self.record.data_fingerprint:
                return candidate
        if known is not None:
            raise DataError(
                "training= are not the units that this posterior was trained on; give exactly those, in their order"
            )
        return None

    def refuse_unjudgeable(self, verb: str) -> None:
        """Refuses what needs a posterior of a unit and its density.

        **Raises** `GuideError` where q is the beliefs of a unit's steps, `ModelError` where the model has no density by
        which to judge q, nor a sampler to predict with.
        """
        if why := self._structure.no_density:
            raise ModelError(
                f"{verb}: of model '{self._structure.model}' {why}, so that its answers can't be judged by weights or "
                "predicted; simulate pairs that were not trained on, and compare sample() of their data with the "
                "latents that made them"
            )
        if self.plan.filters:
            raise GuideError(
                f"{verb}: am.filtering() has beliefs of single steps given the steps up to them, and no posterior of a "
                "series that could be judged or used as one; use posterior.filter() and sample, or am.markov() for the "
                "posterior of a whole series"
            )

    @property
    def _structure(self) -> Any:
        return self.plan.structure

    def _about(self) -> dict[str, str]:
        structure, record = self._structure, self.record
        return {
            "model": structure.model,
            "plate": structure.plate,
            "plan": str(self.plan),
            "training": f"{record.num_units} units, {record.num_steps} steps, stopped: {record.stopped}"
            + f"; BIASED gradient: {record.bias}" * bool(record.bias),
            "versions": ", ".join(f"{name} {version}" for name, version in record.versions),
        }


def load(path: str | os.PathLike[str], model: Callable) -> Posterior:
    """Reads a saved posterior; `model` is the function it was trained with.

    **Raises** `ArtifactError` if any bit of the file is wrong, or if `model` has other sites, supports, shapes or, at
    numbers that are always the same, other log densities (other priors or constants).
    """
    plan, record, schema, arrays, known = read_posterior(path, model)
    structure, params = reread(model, plan.structure, os.fspath(path))
    plan = dataclasses.replace(plan, model=program_of(model, structure), structure=structure)
    try:
        joint, guide = Joint(plan.model, plan.structure, params), plan.skeleton()
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: the recipes it names can't be built: {reason}") from error
    joint, guide, reference = filled(joint, guide, arrays, os.fspath(path))
    check_densities(joint, known, os.fspath(path))
    return Posterior(plan, joint, guide, record, schema, reference)
