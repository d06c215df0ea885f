"""What is q? Ordered blocks: globals first, then each unit's locals given its data and the draw of the globals.

    q(v) Π_i q(u_i | e_i, v),     e_i = encoder(data_i)

The encoder runs once per unit; the head (see `heads`) places the local family for every draw of the globals.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Batch, Fixed
from .encoders.base import AbstractEncoder
from .families.base import AbstractFamily
from .heads import AbstractHead, Frame, prior_frame
from .joint.joint import Joint


class Block(eqx.Module):
    """A family on the whitened unconstrained space of some sites."""

    family: AbstractFamily
    whitening: Fixed  # {"center": (d,), "scale": (d,)}: prior medians and quartile spreads


class Guide(eqx.Module):
    """The approximation q; `shared` is None without globals, `local` and the rest are None without locals."""

    shared: Block | None
    local: Block | None
    encoder: AbstractEncoder | None
    head: AbstractHead | None

    @property
    def cheap_log_prob(self) -> bool:
        """Whether every family can evaluate its density elsewhere than at its own draws without a loop."""
        blocks = [block for block in (self.shared, self.local) if block is not None]
        return all(block.family.cheap_log_prob for block in blocks)

    def encode(self, batch: Batch) -> Float[Array, "units context"]:
        """Context vectors, one per unit; computed once for any number of draws."""
        if self.encoder is None:
            return jnp.zeros((_num_units(batch), 0))
        return jax.vmap(self.encoder)(batch)

    def sample_shared(self, key: Array) -> tuple[Float[Array, " g"], Float[Array, ""]]:
        """A draw of the globals and its log density."""
        if self.shared is None:
            return jnp.zeros(0), jnp.zeros(())
        frame = prior_frame(self.shared.whitening)
        free, log_q = self.shared.family.sample_and_log_prob(key, None)
        return frame.place(free), log_q - frame.log_det

    def mirror_shared(self, shared: Float[Array, " g"]) -> Float[Array, " g"]:
        """The draw of the globals with the opposite noise; its log density is the same."""
        if self.shared is None:
            return shared
        frame = prior_frame(self.shared.whitening)
        return frame.place(self.shared.family.mirror(frame.take(shared), None))

    def shared_log_prob(self, shared: Float[Array, " g"]) -> Float[Array, ""]:
        """Log density of unconstrained globals."""
        if self.shared is None:
            return jnp.zeros(())
        frame = prior_frame(self.shared.whitening)
        return self.shared.family.log_prob(frame.take(shared), None) - frame.log_det

    def sample_local(
        self, key: Array, context: Array, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """A draw of one unit's locals given the globals, and its log density."""
        if self.local is None:
            return jnp.zeros(0), jnp.zeros(())
        frame, told = self._frame(context, shared, unit, joint)
        free, log_q = self.local.family.sample_and_log_prob(key, told)
        return frame.place(free), log_q - frame.log_det

    def local_log_prob(
        self, local: Array, context: Array, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, ""]:
        """Log density of one unit's unconstrained locals given the globals."""
        if self.local is None:
            return jnp.zeros(())
        frame, told = self._frame(context, shared, unit, joint)
        return self.local.family.log_prob(frame.take(local), told) - frame.log_det

    def sample_locals(
        self, key: Array, contexts: Array, shared: Array, batch: Batch, joint: Joint
    ) -> tuple[Float[Array, "units d"], Float[Array, " units"]]:
        """`sample_local` of every unit of a batch, given one draw of the globals."""
        keys = jax.random.split(key, contexts.shape[0])
        return jax.vmap(self.sample_local, in_axes=(0, 0, None, 0, None))(keys, contexts, shared, batch, joint)

    def locals_log_prob(
        self, local: Float[Array, "units d"], contexts: Array, shared: Array, batch: Batch, joint: Joint
    ) -> Float[Array, " units"]:
        """`local_log_prob` of every unit of a batch."""
        return jax.vmap(self.local_log_prob, in_axes=(0, 0, None, 0, None))(local, contexts, shared, batch, joint)

    def _frame(self, context: Array, shared: Array, unit: Batch, joint: Joint) -> tuple[Frame, Array]:
        assert self.local is not None
        frame = prior_frame(self.local.whitening)
        if self.head is None:
            return frame, context
        return self.head(context, shared, self._whitened(shared), frame, unit, joint)

    def _whitened(self, shared: Array) -> Array:
        """Globals on the prior's scale and on q's own, where a narrow posterior still varies by about one."""
        if self.shared is None:
            return jnp.zeros(0)
        free = prior_frame(self.shared.whitening).take(shared)
        family = jax.tree.map(jax.lax.stop_gradient, self.shared.family, is_leaf=eqx.is_array)
        return jnp.concatenate([free, family.standardize(free, None)])


def _num_units(batch: Batch) -> int:
    return next(iter(batch.arrays.values())).shape[0]
