"""What is q? Ordered blocks: globals first, then each unit's locals given its data and the draw of the globals.

    q(v) Π_i q(u_i | e_i, v),     e_i = encoder(data_i)

The encoder runs once per unit; the head (see `heads`) places the local family for every draw of the globals.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Batch, Context, Fixed
from .encoders.base import AbstractEncoder
from .families.base import AbstractFamily, Component, draw_noise
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

    def encode(self, batch: Batch) -> Context:
        """Contexts, every part with a leading unit axis; computed once for any number of draws."""
        return () if self.encoder is None else jax.vmap(self.encoder)(batch)

    def shared_noise(self, key: Array, *count: int) -> Float[Array, "*count noise"]:
        """Standard normal noise of `count` draws of the globals."""
        return jnp.zeros((*count, 0)) if self.shared is None else draw_noise(key, self.shared.family, count)

    def shared_log_shares(self) -> Float[Array, " components"]:
        """Log shares of the components of q(v)."""
        return jnp.zeros(1) if self.shared is None else self.shared.family.log_shares(())

    def place_shared(self, noise: Float[Array, " noise"], component: Component) -> tuple[Array, Array]:
        """The globals (g,) at `noise`, and their log density."""
        if self.shared is None:
            return jnp.zeros(0), jnp.zeros(())
        frame = prior_frame(self.shared.whitening)
        free, log_q = self.shared.family.sample_and_log_prob(noise, component, ())
        return frame.place(free), log_q - frame.log_det

    def sample_shared(self, key: Array) -> tuple[Float[Array, " g"], Float[Array, ""]]:
        """A draw of the globals and its log density."""
        noise_key, component_key = jax.random.split(key)
        return self.place_shared(self.shared_noise(noise_key), _pick(component_key, self.shared_log_shares()))

    def shared_log_prob(self, shared: Float[Array, " g"]) -> Float[Array, ""]:
        """Log density of unconstrained globals."""
        if self.shared is None:
            return jnp.zeros(())
        frame = prior_frame(self.shared.whitening)
        return self.shared.family.log_prob(frame.take(shared), ()) - frame.log_det

    @property
    def local_components(self) -> int:
        """Components of the local family."""
        return 1 if self.local is None else self.local.family.num_components

    def local_noise(self, key: Array, *count: int) -> Float[Array, "*count noise"]:
        """Standard normal noise of `count` draws of a unit's locals."""
        return jnp.zeros((*count, 0)) if self.local is None else draw_noise(key, self.local.family, count)

    def local_log_shares(
        self, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, " components"]:
        """Log shares of the components of one unit's q."""
        if self.local is None or self.local.family.num_components == 1:
            return jnp.zeros(1)
        return self.local.family.log_shares(self._frame(context, shared, unit, joint)[1])

    def place_local(
        self, noise: Array, component: Component, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One unit's locals at `noise` given the globals, and their log density."""
        if self.local is None:
            return jnp.zeros(0), jnp.zeros(())
        frame, told = self._frame(context, shared, unit, joint)
        free, log_q = self.local.family.sample_and_log_prob(noise, component, told)
        return frame.place(free), log_q - frame.log_det

    def sample_local(
        self, key: Array, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """A draw of one unit's locals given the globals, and its log density."""
        noise_key, component_key = jax.random.split(key)
        component = _pick(component_key, self.local_log_shares(context, shared, unit, joint))
        return self.place_local(self.local_noise(noise_key), component, context, shared, unit, joint)

    def local_log_prob(
        self, local: Array, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, ""]:
        """Log density of one unit's unconstrained locals given the globals."""
        if self.local is None:
            return jnp.zeros(())
        frame, told = self._frame(context, shared, unit, joint)
        return self.local.family.log_prob(frame.take(local), told) - frame.log_det

    def place_locals(
        self, noise: Array, component: Component, contexts: Context, shared: Array, batch: Batch, joint: Joint
    ) -> tuple[Float[Array, "units d"], Float[Array, " units"]]:
        """`place_local` of every unit of a batch, given one draw of the globals."""
        place = jax.vmap(self.place_local, in_axes=(0, None, 0, None, 0, None))
        return place(noise, component, contexts, shared, batch, joint)

    def locals_log_prob(
        self, local: Float[Array, "units d"], contexts: Context, shared: Array, batch: Batch, joint: Joint
    ) -> Float[Array, " units"]:
        """`local_log_prob` of every unit of a batch."""
        return jax.vmap(self.local_log_prob, in_axes=(0, 0, None, 0, None))(local, contexts, shared, batch, joint)

    def _frame(self, context: Context, shared: Array, unit: Batch, joint: Joint) -> tuple[Frame, Context]:
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
        return jnp.concatenate([free, family.standardize(free, ())])


def _pick(key: Array, log_shares: Float[Array, " components"]) -> Component:
    """A component at random, by its share."""
    return 0 if log_shares.shape[0] == 1 else jax.random.categorical(key, log_shares)
