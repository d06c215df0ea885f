"""What will be built for a model? A plan: its structure, and a recipe for each part of the guide.

`amortize` reads and probes the model, checks the data and returns a `Plan`: frozen, printable, stored as JSON beside
the trained numbers, and enough to build the guide's skeleton without data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import DataError, ModelError, check_entries
from ._recipe import Recipe, from_json
from ._types import Batch, Fixed
from .beliefs import build_beliefs, is_filtering
from .data.arrays import units
from .defaults import RECIPE_NAMES, choose
from .describe import describe
from .encoders.base import Inputs
from .encoders.free import free
from .families.discrete import Categorical
from .families.markov import markov
from .families.nested import nested
from .guide import Block, Guide
from .inputs import inputs_of
from .intake import as_units, to_batch
from .joint.assignments import element_counts
from .joint.joint import Joint
from .joint.observe import reading
from .joint.probe import initial_params, probe
from .joint.read import read
from .joint.refuse import refuse_tied
from .joint.slopes import check_slopes
from .joint.structure import Structure
from .joint.values import check_values
from .joint.whole import DATASET, whole
from .nesting import build_nested, elements_are_independent
from .own import first_row, own_family
from .unsuited import check_missing, check_slots


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be built; `print(plan)` shows it. Recipes are None where there is nothing to build."""

    model: Callable
    structure: Structure
    inputs: Inputs
    encoder: Recipe | None
    head: Recipe | None
    family: Recipe | None
    shared_family: Recipe | None
    classifier: Recipe | None = None

    def build(self, key: Array) -> Guide:
        """The guide with fresh parameters; whitening and standardisation are neutral until `fit` sets them."""
        if self.filters:
            return build_beliefs(self.structure, self.inputs, self.encoder, self.family or self.classifier, key=key)
        keys = jax.random.split(key, 5 if self.classifier else 4)
        local_size, shared_size = self.structure.size("local"), self.structure.size("global")
        shared = local = encoder = head = classifier = None
        if self.shared_family is not None:
            shared = Block(self.shared_family.build(shared_size, (), key=keys[0]), _neutral(shared_size))
        told = ()
        if self.encoder is not None and not self.free and not isinstance(self.family, nested):
            encoder = self.encoder.build(self.inputs, key=keys[1])
            told = encoder.context_sizes
        if self.classifier is not None:
            counts = element_counts(self.structure)
            classifier = self.classifier.build(counts, told, 2 * shared_size, key=keys[4])
            told = (*told, sum(counts))
        if isinstance(self.family, nested):
            recipes = (self.encoder, self.head, self.family)
            encoder, head, family = build_nested(self.structure, self.inputs, recipes, keys=keys[1:4])
            local = Block(family, _neutral(family.size))
        elif self.family is not None and self.encoder is not None:
            if self.head is not None:
                head = self.head.build(local_size, told, 2 * shared_size, key=keys[2])
                told = head.told_sizes
            family = self.family.build(local_size, () if self.free else told, key=keys[3])
            if self.free:
                family = own_family(family)
                encoder = self.encoder.build(first_row(head, family), key=keys[1])
            rows = (classifier.size,) if isinstance(classifier, Categorical) else ()
            local = Block(family, _neutral(*rows, local_size))
        return Guide(shared, local, encoder, head, classifier)

    @property
    def free(self) -> bool:
        """Whether every unit has parameters of its own."""
        return isinstance(self.encoder, free)

    @property
    def filters(self) -> bool:
        """Whether q of a unit is the product of its beliefs step by step."""
        return is_filtering(self.family, self.classifier)

    def for_units(self, count: int) -> Plan:
        """The plan for so many units, which matters only where each has parameters of its own."""
        return dataclasses.replace(self, encoder=free(num_units=count)) if self.free else self

    def skeleton(self) -> Guide:
        """The guide with shapes for arrays."""
        return eqx.filter_eval_shape(self.build, jax.random.key(0))

    def to_json(self) -> dict[str, Any]:
        """Everything but the model."""
        recipes = {n: getattr(self, n) for n in RECIPE_NAMES}
        return {
            "structure": self.structure.to_json(),
            "recipes": {name: None if recipe is None else recipe.to_json() for name, recipe in recipes.items()},
        }

    @staticmethod
    def from_json(spec: dict[str, Any], model: Callable) -> Plan:
        """The plan that `to_json` wrote, with the user's model."""
        from .recipes import RECIPES

        check_entries("plan", spec, ("structure", "recipes"))
        check_entries("plan's recipes", spec["recipes"], RECIPE_NAMES)
        structure = Structure.from_json(spec["structure"])
        recipes = {name: from_json(recipe, RECIPES) for name, recipe in spec["recipes"].items()}
        family = recipes["family"]
        inputs = inputs_of(structure, isinstance(family, nested), isinstance(family, markov) and bool(family.by_step))
        return Plan(model, structure, inputs, **recipes)

    def __str__(self) -> str:
        return describe(self)


def _neutral(*shape: int) -> Fixed:
    return Fixed({"center": jnp.zeros(shape), "scale": jnp.ones(shape)})


def _whole_plan(model: Callable, structure: Structure, inputs: Inputs, recipes: dict[str, Recipe | None]) -> Plan:
    plan = Plan(model, structure, inputs, **recipes)
    plan.skeleton()  # a recipe that does not fit says so now
    return plan


def _with_gaps(batch: Batch, missing: Sequence[str]) -> Batch:
    """The batch with a mask of every argument that may have gaps later."""
    full = {n: np.ones(batch.arrays[n].shape, bool) for n in missing if n in batch.arrays and n not in batch.masks}
    return dataclasses.replace(batch, masks={**batch.masks, **full})


def amortize(
    model: Callable,
    data: Any,
    *,
    plate: str | None,
    encoder: Recipe | None = None,
    family: Recipe | None = None,
    shared_family: Recipe | None = None,
    head: Recipe | None = None,
    classifier: Recipe | None = None,
    missing: Sequence[str] = (),
) -> Plan:
    """Reads and probes `model`, checks `data`, and plans the guide; nothing is trained, no key is needed.

    **Arguments:**

    - `model`: an ordinary NumPyro model; its arguments are found in `data` by name. Bind constants with
      `functools.partial`.
    - `data`: a dict of arrays (unit axis first) or of lists of arrays (ragged), a `Units`, or what `units` takes.
    - `plate`: the plate whose elements are the units. Where it has no latents, nothing is amortized: q is of the
      globals alone, and a single unit will do. None: a unit is a whole data set, one call of the model on arrays
      without their first axis; every latent is one of the data set, and a single one will do (`units([data])`).
    - `encoder`, `family`, `shared_family`, `head`: recipes for the context of a unit, for q of its locals, for q of
      the globals, and for how locals follow the globals. None: chosen from the model.
    - `classifier`: recipe for q of the unit's own discrete sites, where it has numeric locals too, which then follow
      them; discrete sites of inner plates, and of units without numbers, are summed exactly instead. `factorised()`
      draws the unit's own, with or without numbers, where they are too many to be listed.
    - `missing`: labels (observed discrete sites on which others depend) that may be missing later, though none is in
      `data`; they are then summed over, as those of which some are missing here.

    **Returns** a `Plan`: `print` shows it, `fit` trains it.

    **Raises** `ModelError` for what can't be amortized, `DataError` for impossible data, `GuideError` for a recipe
    that doesn't fit; each names the site or argument and what to do.
    """
    recipes = {"encoder": encoder, "head": head, "family": family, "shared_family": shared_family}
    recipes["classifier"] = classifier
    check_slots(recipes)
    if not callable(model):
        raise ModelError(f"amortize(model, data): model must be a function, a NumPyro program, got {model!r}")
    if plate is None:
        plate = DATASET
        model = whole(model, to_batch(units(data, name=plate)))
    found = as_units(data, model, plate)
    given = batch = _with_gaps(to_batch(found), missing)
    if len(found) == 1:  # read as if there were another like it: what is shared and what is a unit's own shows then
        batch = jax.tree.map(lambda x: np.concatenate([x, x]), given)
    structure = read(model, batch, found.axes, plate, missing)
    check_missing(structure, missing)
    _refuse_one(structure, len(found))
    params = initial_params(model, structure, batch, jax.random.key(0))
    with reading(model):
        check_values(Joint(model, structure, params), given, found.labels.tolist())
    structure = probe(model, structure, batch, params, jax.random.key(0))
    check_slopes(Joint(model, structure, params), batch)
    plan = _planned(Joint(model, structure, params), batch, recipes)
    return plan.for_units(len(found))


def _refuse_one(structure: Structure, count: int) -> None:
    if count < 2 and structure.size("local") and not structure.whole:
        raise DataError(
            f"data has {count} unit of plate '{structure.plate}' and the model has latents in it; amortizing needs "
            "several to learn from: check the unit axis, give plate=None for q of this one data set, write the model "
            "of one (as amortax.models.state_space.one is), or sample it with numpyro.infer.NUTS"
        )


def _planned(joint: Joint, batch: Batch, recipes: dict[str, Recipe | None]) -> Plan:
    """What was chosen; not element by element where elements turn out to hear of each other."""
    plan = _whole_plan(joint.model, *choose(joint.structure, **recipes))
    if not isinstance(plan.family, nested) or elements_are_independent(joint, batch):
        return plan
    structure = dataclasses.replace(joint.structure, tied="log p of one changes with the numbers of another")
    refuse_tied(structure)
    return _whole_plan(joint.model, *choose(structure, **recipes))
