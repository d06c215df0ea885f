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
    """A loss of one minibatch of B units; `num_units` is N, the units that it stands for.

    The units come in groups, each padded to its own length, which changes nothing but the work.
    """

    num_particles: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, key: Array, guide: Guide, joint: Joint, groups: tuple[Batch, ...], num_units: Array) -> Loss:
        """The loss on the units of all groups."""
