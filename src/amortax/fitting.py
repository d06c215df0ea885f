"""The verb `fit`: a plan (or a posterior, to train on) and data → a posterior."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ._errors import FitError
from ._types import Batch, check_key
from .checks.shift import reference_of
from .data import Units
from .focus import visits_of
from .guide import Guide
from .intake import as_units, conform, drop_full_masks, to_batch
from .joint.joint import Joint
from .objectives.base import AbstractObjective, check_objective
from .objectives.elbo import ELBO
from .objectives.forward import ForwardKL
from .own import remember, table_of, with_rows
from .pairs import parts_of, split_pairs, with_latents
from .plan import Plan
from .posterior import Posterior
from .train.initialise import initialise
from .train.minibatches import TrainingData
from .train.run import Run, train
from .train.schedule import Optimizer

HOLD_OUT_FROM = 1000  # units; fewer are too few to give some away
OWN_BATCH = 4096  # units per step where each has its own parameters: nothing is learned from one for another


def fit(
    guide: Plan | Posterior,
    data: Any,
    *,
    key: Array,
    objective: AbstractObjective | None = None,
    optimizer: Optimizer | None = None,
    run: Run | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
) -> Posterior:
    """Trains the guide, and the model's own parameters if it has any, on all units of `data`.

    **Arguments:**

    - `guide`: what `amortize` returned, or a posterior to train on from where it is.
    - `data`: as for `amortize`; it may be other units than those that were planned for. For whole data sets also
      (latents, data) pairs, as `simulate` makes them: latent site -> values, data sets first.
    - `key`: a typed JAX key, `jax.random.key(0)`.
    - `objective`: `IWELBO(8)`, say; default `ELBO()`, with 8 particles where there are globals and few units, 2 with
      many, else 1; of pairs and of `am.filtering()` `ForwardKL()`.
    - `optimizer`: any Optax transformation; default Adam with warm-up, clipping and decay.
    - `run`: everything else about the run; `num_steps` and `batch_size` are short cuts into it.

    With `run=Run(focus=report)` units that a report of `check` flagged are visited more often, and each visit counts so
    much less: what is trained is the same bound of all units, so q of the globals is not pulled towards the flagged
    ones, and a q that can't hold all units well is not turned towards them either. They gain where their gradient was
    rare and noisy, and with `am.free()`, where every visit is a step of their own.

    All units enter the posterior. Only where parameters are learned by maximum likelihood and no global is Bayesian,
    with 1,000 units or more, one in twenty is held out to stop early (DESIGN §4.10).

    **Returns** a `Posterior`. Ctrl-C returns the best so far.

    **Raises** `FitError` if training can't go on, naming the units at fault; `DataError` for impossible data.
    """
    _check_arguments(guide, objective, optimizer, run)
    run = _merge(run or Run(), num_steps, batch_size)
    check_key(key, FitError)
    init_key, train_key = jax.random.split(key)
    plan = guide.plan if isinstance(guide, Posterior) else guide
    latents, data = parts_of(data, plan.structure)
    objective = _checked_objective(objective, guide, latents)
    if isinstance(guide, Posterior):
        found = conform(data, guide.joint)
        training, held_out, local = _split(plan, found, run, guide.joint, latents)
        pair = (guide.joint, guide.guide)
    else:
        found = as_units(data, guide.model, guide.structure.plate)
        plan = guide.for_units(len(found))
        model = Joint(plan.model, plan.structure, _params(plan, found))
        found = conform(found, model)
        training, held_out, local = _split(plan, found, run, model, latents)
        pair = _first_pair(plan, training, init_key)
    training = _in_their_rows(training, pair[1])
    frequency = visits_of(run.focus, found, training.labels)
    if plan.free and run.batch_size is None:
        run = dataclasses.replace(run, batch_size=_own_batch(len(training), focused=frequency is not None))
    batch = dataclasses.replace(drop_full_masks(to_batch(training), plan.structure), latents=local)
    known = TrainingData(batch, training.labels.tolist(), held_out, frequency)
    objective = objective or _default_objective(plan, training, latents)
    joint, built, record = train(pair, known, key=train_key, objective=objective, optimizer=optimizer, run=run)
    record = dataclasses.replace(record, data_fingerprint=found.fingerprint(), versions=_versions())
    reference = reference_of(joint, built, found)
    return Posterior(plan, joint, built, record, found.schema, reference)


def _first_pair(plan: Plan, training: Units, key: Array) -> tuple[Joint, Guide]:
    joint, built = initialise(plan, to_batch(training), key)
    return joint, remember(built, training)


def _own_batch(size: int, *, focused: bool) -> int:
    """Units in a step where each has parameters of its own; where some are visited more often, at most half of all."""
    return max(min(OWN_BATCH, size // 2), 1) if focused else OWN_BATCH


def _check_arguments(guide: Any, objective: Any, optimizer: Any, run: Any) -> None:
    """Raises `FitError` for arguments of another kind, by what a newcomer would give."""
    if not isinstance(guide, Plan | Posterior):
        raise FitError(
            "fit(guide, data): guide must be what am.amortize(model, data, plate=...) returned, or a posterior to "
            f"train on, got {_named(guide)}"
        )
    if not (objective is None or isinstance(objective, AbstractObjective)):
        raise FitError(f"fit: objective must be one, am.ELBO() or am.IWELBO(8) say, got {_named(objective)}")
    steps = [getattr(optimizer, name, None) for name in ("init", "update")]
    if not (optimizer is None or all(map(callable, steps))):
        raise FitError(
            "fit: optimizer must be an Optax transformation, optax.adam(1e-3) say, or am.natural(rate) where rate is "
            f"am.robbins_monro(10, 0.7) say, got {_named(optimizer)}"
        )
    if not (run is None or isinstance(run, Run)):
        raise FitError(f"fit: run must be am.Run(num_steps=...), got {_named(run)}; or give num_steps= to fit itself")


def _named(given: Any) -> str:
    name = getattr(given, "__name__", "")
    return f"{name} itself; call it" if name and callable(given) else repr(given)


def _split(
    plan: Plan, found: Units, run: Run, joint: Joint, latents: Any
) -> tuple[Units, Batch | None, np.ndarray | None]:
    """(units to train on, held-out batch, and of pairs the latents of the former)."""
    if latents is None:
        return *_hold_out(plan, found, run, joint), None
    if plan.free:
        raise FitError("(latents, data) pairs teach q of later data, for which am.free() has none; give an encoder")
    if run.validation is not None:
        raise FitError("run.validation: of (latents, data) pairs a tenth is held out by itself; leave it out")
    size = plan.structure.size("local")
    if len(found) < (fewest := 2 * (size + 1)):
        raise FitError(
            f"{len(found)} (latents, data) pairs are too few to learn from: {size} numbers need {fewest} at the very "
            "least, and some thousands to be learned well; simulate more"
        )
    training, local, held_out = split_pairs(with_latents(latents, found, joint), found, plan.structure)
    return training, held_out, local


def _checked_objective(
    objective: AbstractObjective | None, guide: Plan | Posterior, latents: Any
) -> AbstractObjective | None:
    """The objective, if it can train the guide; of beliefs the one that can."""
    trained = isinstance(guide, Posterior)
    plan = guide.plan if trained else guide
    if plan.filters:
        objective = objective or ForwardKL()
        if not isinstance(objective, ForwardKL):
            raise FitError(
                f"am.filtering() learns beliefs of single steps, and am.{type(objective).__name__} trains a posterior "
                "of the whole series; use am.ForwardKL(), or leave objective= out"
            )
    structure = plan.structure
    if latents is not None:
        structure = dataclasses.replace(structure, cannot_simulate="")  # it was, somewhere else
    default = ELBO() if latents is None else ForwardKL()
    check_objective(objective or default, structure, trained=trained)
    return objective


def _in_their_rows(training: Units, guide: Guide) -> Units:
    """The units with their rows; where they have their own, all must be there."""
    table, training = table_of(guide), with_rows(training, guide)
    if table is None or training.rows is None:
        return training
    different = len(np.unique(training.rows))
    if different < len(training):
        raise FitError(
            f"data has {len(training)} units, but only {different} differ in label or values, and am.free() has one "
            "row for each; give every unit once, with a label of its own"
        )
    if different < len(table.known()):
        raise FitError(
            f"data has {different} of the {len(table.known())} units that this posterior was trained on; "
            "am.free() trains on from all of them: give exactly those"
        )
    return training


def _params(plan: Plan, data: Units) -> dict:
    from .joint.probe import initial_params

    return initial_params(plan.model, plan.structure, to_batch(data), jax.random.key(0))


def _default_objective(plan: Plan, data: Units, latents: Any) -> AbstractObjective:
    """With globals, mirrored pairs of draws: one pair cancels the noise of a minibatch, four serve few units better."""
    if latents is not None:
        return ForwardKL()  # where no density need be right
    if not plan.structure.size("global"):
        return ELBO(num_particles=1)
    return ELBO(num_particles=8 if len(data) <= 512 else 2)


def _merge(run: Run, num_steps: int | None, batch_size: int | None) -> Run:
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        if value is not None and getattr(run, name) not in (None, value):
            raise FitError(f"{name}={value} but run.{name}={getattr(run, name)}; give one of them")
    changes = {n: v for n, v in (("num_steps", num_steps), ("batch_size", batch_size)) if v is not None}
    return dataclasses.replace(run, **changes)


def _hold_out(plan: Plan, data: Units, run: Run, joint: Joint) -> tuple[Units, Batch | None]:
    """(training units, held-out batch or None): of the same data the same in every run, so that none was trained on."""
    if plan.free and run.validation is not None:
        raise FitError("run.validation: am.free() has no answer for units that it is not trained on; leave it out")
    if plan.free:
        return data, None
    if run.validation is not None:
        return data, drop_full_masks(to_batch(conform(run.validation, joint)), plan.structure)
    learned = bool(plan.structure.params) and not plan.structure.size("global")
    if not learned or len(data) < HOLD_OUT_FROM:
        return data, None
    kept, out = data.split(num=min(len(data) // 20, 2000), seed=0)
    return kept, drop_full_masks(to_batch(out), plan.structure)


def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((n, importlib.metadata.version(n)) for n in ("amortax", "jax", "numpyro", "equinox", "optax"))
