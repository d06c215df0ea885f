"""Wake-sleep: awake the model learns from real units, asleep q of the locals learns from the model's own.

    wake      maximise over θ and q(v) the bound with K draws u_k ~ q(u | e_i, v), as if q of the locals were given;
              over q of the locals, with share s,  Σ_k ŵ_k log q(u_k | e_i, v),  ŵ_k ∝ p(d_i, u_k | v) / q(u_k | e_i, v)
    sleep     minimise over q of the locals, with share 1 - s,  E_{u, d ~ p(· | v)} [ -log q(u | e(d), v) ]

K = 1 and s = 0 is the first form (Hinton, Dayan, Frey and Neal 1995), K > 1 the reweighted one (Bornschein and Bengio
2015). Both phases are in every step. No gradient passes through a draw of the locals into q, so that neither family nor
likelihood need be smooth in them, and q covers the modes of what the model simulates.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import FitError, ModelError
from .._types import Batch, Context, whole_number
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.structure import Structure
from .base import AbstractObjective, Loss, Minibatch, batch_size, check_density, check_locals
from .estimators import mean_bound, stopped
from .forward import check_simulation, simulated_loss
from .score import drawn_weights
from .weighted import plain_weights, power_mean


class WakeSleep(AbstractObjective):
    """Wake-sleep with `num_particles` draws of each unit given each of `num_shared_draws` of the globals.

    `wake_share`, 0 to 1, is the share of real units, weighted, in what q of the locals learns; the rest is simulation.
    `WakeSleep()` is the first form, `WakeSleep(8, wake_share=0.5)` the reweighted one; `WakeSleep(8, wake_share=1)`
    needs no simulation. The bound that it reports is that of the wake phase, weighted if there are several draws.

    **Raises** `FitError` for numbers of draws that are no whole numbers from 1, a share outside 0 to 1, or one above 0
    with one draw, from which q would learn nothing; from `fit`, `ModelError` if the model has no locals or can't be
    simulated, with the reason.
    """

    num_particles: int = eqx.field(static=True, default=1)
    wake_share: float = eqx.field(static=True, default=0.0, kw_only=True)
    num_shared_draws: int = eqx.field(static=True, default=2, kw_only=True)
    needs_all_units: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    def __check_init__(self) -> None:
        whole_number("am.WakeSleep: num_particles", self.num_particles, FitError)
        whole_number("am.WakeSleep: num_shared_draws", self.num_shared_draws, FitError)
        if not (math.isfinite(self.wake_share) and 0 <= self.wake_share <= 1):
            raise FitError(f"am.WakeSleep: wake_share must be a number from 0 to 1, got {self.wake_share!r}")
        if self.wake_share > 0 and self.num_particles == 1:
            raise FitError(
                f"am.WakeSleep(num_particles=1, wake_share={self.wake_share}): one draw has weight 1 whatever it is, "
                "and q would learn nothing from it; give num_particles=8, say, or leave wake_share out"
            )

    @property
    def teaches_labels(self) -> bool:
        """By simulations."""
        return self.wake_share < 1

    def check(self, structure: Structure) -> None:
        """Refuses a model without locals, and one that can't be simulated unless `wake_share` is 1."""
        check_density("am.WakeSleep", structure)
        check_locals("am.WakeSleep", structure)
        if structure.drawn and structure.size("global"):
            raise ModelError(
                f"am.WakeSleep: q draws {[site.name for site in structure.drawn]} given the globals, and the wake "
                "phase has no gradient of q(v) through such draws; use am.ELBO() or am.IWELBO(), which have the score's"
            )
        if self.wake_share < 1:
            check_simulation("am.WakeSleep", structure)

    @property
    def bias(self) -> str:
        """None."""
        return ""

    def is_settled(self, step: int) -> bool:
        """Always: it has no schedule."""
        return True

    def __call__(self, key: Array, guide: Guide, joint: Joint, minibatch: Minibatch) -> Loss:
        """Minus the wake bound, plus the loss of the sleep phase."""
        wake_key, sleep_key = jax.random.split(key)

        def units(key: Array, batch: Batch, context: Context, shared: Array) -> tuple[Array, Array]:
            return self._awake(key, guide, joint, batch, context, shared)

        count = 1 if guide.shared is None else self.num_shared_draws
        bound = mean_bound(wake_key, guide, minibatch, units, count=count, path_derivative=True)
        loss = -bound
        if self.wake_share < 1:
            sleep = simulated_loss(sleep_key, guide, joint, minibatch, count=1)
            loss = loss + (1.0 - self.wake_share) * sleep
        return Loss(loss, jax.lax.stop_gradient(bound))

    def _awake(
        self, key: Array, guide: Guide, joint: Joint, batch: Batch, context: Context, shared: Array
    ) -> tuple[Array, Array]:
        """(bounds of the units, log p(v)); what q of the locals learns from them is in the gradient alone."""
        still_guide, still_joint, still_context, still_shared = stopped((guide, joint, context, shared))
        joints = joint, still_joint
        if guide.draws_choice:
            each = drawn_weights(key, still_guide, joints, batch, still_context, shared, count=self.num_particles)
        else:
            noise = guide.local_noise(key, joint, batch, self.num_particles, batch_size(batch))
            each = plain_weights(noise, still_guide, joints, batch, still_context, shared)
        bound = power_mean(each.log_weight, each.log_share, 0.0)
        if self.wake_share == 0:
            return bound, each.log_prior
        weight = stopped(jax.nn.softmax(each.log_weight + each.log_share, axis=0))
        log_q = jax.vmap(lambda u: guide.locals_log_prob(u, context, still_shared, batch, still_joint))(
            stopped(each.local)
        )
        learned = self.wake_share * jnp.sum(weight * log_q, axis=0)
        return bound + learned - jax.lax.stop_gradient(learned), each.log_prior
