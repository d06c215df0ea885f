"""What is an objective? A loss in nats per unit, differentiated by (joint, guide), with the true bound beside it."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Batch
from ..guide import Guide
from ..joint.joint import Joint


class Loss(eqx.Module):
    """`value` goes down, `elbo_per_unit` goes up, both in nats per unit; the second is a true bound, never annealed."""

    value: Float[Array, ""]
    elbo_per_unit: Float[Array, ""]


class AbstractObjective(eqx.Module):
    """A loss of one minibatch; `num_units` is N, the units that the batch stands for."""

    num_particles: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, key: Array, guide: Guide, joint: Joint, batch: Batch, num_units: Array) -> Loss:
        """The loss on `batch`."""
