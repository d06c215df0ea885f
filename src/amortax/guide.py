"""What is q? Ordered blocks: globals first, then each unit's locals given its data and the draw of the globals.

    q(v) Π_i q(u_i | e_i, v),     e_i = encoder(data_i)

The encoder runs once per unit; the head (see `heads`) places the local family for every draw of the globals.

Where numbers of a unit follow its discrete choice c, q is q(c_i | e_i, v) q(u_i | e_i, c_i, v): the assignments are the
outer components of the local block, a local is (u, number of the assignment), and c is known where it was observed.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Batch, Context, Fixed
from .encoders.base import AbstractEncoder
from .families.base import AbstractFamily, Component, draw_noise
from .families.discrete import Categorical
from .heads import AbstractHead, Frame, prior_frame
from .joint.joint import Joint
from .joint.levels import levels_of
from .joint.summed import allowed_choices


class Block(eqx.Module):
    """A family on the whitened unconstrained space of some sites."""

    family: AbstractFamily
    whitening: Fixed  # {"center": (d,), "scale": (d,)}: prior medians and quartile spreads; a row for each choice


class Guide(eqx.Module):
    """The approximation q; `shared` is None without globals, `local` and the rest are None without locals."""

    shared: Block | None
    local: Block | None
    encoder: AbstractEncoder | None
    head: AbstractHead | None
    classifier: Categorical | None = None

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
        """Components of the local block: of its family, for every assignment of the discrete choice."""
        if self.local is None:
            return 1
        return self.local.family.num_components * (1 if self.classifier is None else self.classifier.size)

    def local_noise(self, key: Array, *count: int) -> Float[Array, "*count noise"]:
        """Standard normal noise of `count` draws of a unit's locals."""
        return jnp.zeros((*count, 0)) if self.local is None else draw_noise(key, self.local.family, count)

    def local_log_shares(
        self, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, " components"]:
        """Log shares of the components of one unit's q."""
        if self.local is None:
            return jnp.zeros(1)
        if self.classifier is None:
            return self._family_log_shares(context, shared, unit, joint)
        log_probs = self.choice_log_probs(context, shared, unit, joint)

        def of(choice: Array) -> Array:
            return self._family_log_shares(context, shared, unit, joint.at(_possible(choice, log_probs)))

        return jnp.ravel(log_probs[:, None] + jax.vmap(of)(jnp.arange(self.classifier.size)))

    def _family_log_shares(self, context: Context, shared: Array, unit: Batch, joint: Joint) -> Array:
        assert self.local is not None
        if self.local.family.num_components == 1:
            return jnp.zeros(1)
        return self.local.family.log_shares(self._frame(context, shared, unit, joint)[1])

    def choice_log_probs(
        self, context: Context, shared: Array, unit: Batch, joint: Joint, *, labelled: bool = True
    ) -> Float[Array, " assignments"]:
        """log q(c | e, v) of every assignment of one unit; with `labelled`, given the labels that it has."""
        assert self.classifier is not None
        seen = (*context, self._whitened(shared)) if self.classifier.told_globals else context
        log_probs = self.classifier.log_probs(seen)
        if not labelled:
            return log_probs
        return jax.nn.log_softmax(jnp.where(allowed_choices(joint.structure, unit), log_probs, -jnp.inf))

    def place_local(
        self, noise: Array, component: Component, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One unit's locals at `noise` given the globals, and their log density."""
        if self.local is None:
            return jnp.zeros(0), jnp.zeros(())
        if self.classifier is None:
            return self._place(noise, component, context, shared, unit, joint)
        choice, component = jnp.divmod(component, self.local.family.num_components)
        log_probs = self.choice_log_probs(context, shared, unit, joint)
        choice = _possible(choice, log_probs)
        numbers, log_q = self._place(noise, component, context, shared, unit, joint.at(choice))
        return jnp.append(numbers, choice.astype(numbers.dtype)), log_q + log_probs[choice]

    def _place(
        self, noise: Array, component: Component, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Array, Array]:
        assert self.local is not None
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
        log_choice = jnp.zeros(())
        if self.classifier is not None:
            choice, local = local[-1].astype(jnp.int32), local[:-1]
            log_choice = self.choice_log_probs(context, shared, unit, joint)[choice]
            joint = joint.at(choice)
        frame, told = self._frame(context, shared, unit, joint)
        return self.local.family.log_prob(frame.take(local), told) - frame.log_det + log_choice

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
        whitening = self.local.whitening
        if joint.choice is not None:
            whitening = Fixed(jax.tree.map(lambda x: x[joint.choice], whitening.value))
            context = (*context, jnp.asarray(levels_of(joint.structure)[0].codes())[joint.choice])
        frame = prior_frame(whitening)
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


def _possible(choice: Component, log_probs: Float[Array, " assignments"]) -> Array:
    """The choice itself, or one that labels allow as a stand-in: its share is zero, its numbers are finite."""
    allowed = jnp.isfinite(log_probs)
    return jnp.where(allowed[choice], choice, jnp.argmax(allowed))


def _pick(key: Array, log_shares: Float[Array, " components"]) -> Component:
    """A component at random, by its share."""
    return 0 if log_shares.shape[0] == 1 else jax.random.categorical(key, log_shares)
