"""What is an objective? A loss in nats per unit, differentiated by (joint, guide), with the true bound beside it."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from .._errors import FitError, ModelError
from .._types import Batch
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure


class Loss(eqx.Module):
    """`value` goes down, `elbo_per_unit` goes up, both in nats per unit; the second is a true bound, never annealed."""

    value: Float[Array, ""]
    elbo_per_unit: Float[Array, ""]


class Minibatch(eqx.Module):
    """B of N units. They come in groups, each padded to its own length, which changes nothing but the work."""

    groups: tuple[Batch, ...]
    num_units: Float[Array, ""]  # N, the units that the minibatch stands for
    step: Int[Array, ""]  # of training, for schedules
    shared: Float[Array, "count g"] | None = None  # draws of the globals, where the caller wants the slope at each

    @property
    def scale(self) -> Float[Array, ""]:
        """N / B."""
        return self.num_units / sum(batch_size(batch) for batch in self.groups)


def batch_size(batch: Batch) -> int:
    """Units in a batch."""
    return jax.tree.leaves(batch)[0].shape[0]


def weighed(each: Float[Array, " units"], batch: Batch) -> Float[Array, " units"]:
    """Numbers of a batch's units, times their weights: their mean over steps is that over all units, visited alike."""
    return each if batch.weight is None else batch.weight * each


class AbstractObjective(eqx.Module):
    """A loss of one minibatch."""

    trains_all: eqx.AbstractVar[bool]  # False: q of the locals only

    @abstractmethod
    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """The loss on the units of all groups."""

    @abstractmethod
    def check(self, structure: Structure) -> None:
        """Raises `ModelError` where it can't be computed for the model."""

    @property
    @abstractmethod
    def teaches_labels(self) -> bool:
        """Whether q(label | data) learns where every label is known."""

    @property
    @abstractmethod
    def needs_all_units(self) -> bool:
        """Whether every step must take all units."""

    @property
    @abstractmethod
    def bias(self) -> str:
        """What makes its gradient another than that of its loss in the mean; empty where nothing does."""

    @abstractmethod
    def is_settled(self, step: int) -> bool:
        """Whether losses from `step` on are comparable: no schedule of it still moves."""


def check_objective(objective: AbstractObjective, structure: Structure, *, trained: bool) -> None:
    """Raises `ModelError` if `objective` can't train the model; `trained`: whether it goes on from a posterior."""
    objective.check(structure)
    untaught = [n for n, s in structure.labels.items() if s in structure.learned and structure.argument(n).complete]
    if untaught and not objective.teaches_labels:
        raise FitError(
            f"the objective teaches q({untaught[0]} | data) nothing where no '{untaught[0]}' is missing, and by it "
            "later ones are inferred; give am.ELBO(classifier_weight=1.0), or am.Sum of yours and am.ForwardKL()"
        )
    rest = [site.name for site in structure.of("global")] + sorted(structure.params)
    if rest and not trained and not objective.trains_all:
        raise ModelError(
            f"the objective trains q of the locals only, and {rest} of model '{structure.model}' would stay where they "
            "start; use am.WakeSleep(), or am.Sum(am.ELBO(), am.ForwardKL()), or go on from a fitted posterior"
        )


def check_density(name: str, structure: Structure) -> None:
    """Raises `ModelError` where log p of the data is not the model's: objective `name` is a bound of it."""
    if structure.no_density:
        raise ModelError(
            f"{name} needs the density of the data, but of model '{structure.model}' {structure.no_density}: give "
            "(latents, data) pairs from its simulator, am.fit(guide, (latents, data), key=key), and leave objective= "
            "out (am.ForwardKL() learns from pairs alone)"
        )


def check_locals(name: str, structure: Structure) -> None:
    """Raises `ModelError` unless q draws something in each unit: objective `name` is about those draws.

    What is summed exactly is in the density already, of which it changes nothing. Choices of which there is a listed q
    are components of q, one draw from each; choices that are drawn learn by the score function.
    """
    if not structure.size("local") and not structure.drawn:
        summed = f" but {[site.name for site in structure.summed]}, which are summed exactly" * bool(structure.summed)
        raise ModelError(
            f"{name} is about draws of each unit's latents, but model '{structure.model}' has none inside plate "
            f"'{structure.plate}'{summed}; use am.ELBO()"
        )


def check_numeric(name: str, structure: Structure) -> None:
    """Raises `ModelError` unless the latents of a unit are all numeric: `name` is about log p(u | v) of those alone."""
    check_locals(name, structure)
    if structure.summed:
        raise ModelError(
            f"{name} weighs log p of a unit's latents, of which model '{structure.model}' has discrete ones, "
            f"{[site.name for site in structure.summed]}, that are summed over or drawn; use am.ELBO()"
        )
