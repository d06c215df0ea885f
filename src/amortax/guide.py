"""What is q? Ordered blocks: globals first, then each unit's locals given its data and the draw of the globals.

    q(v) Π_i q(u_i | e_i, v),     e_i = encoder(data_i)

The encoder runs once per unit; the head (see `heads`) places the local family for every draw of the globals.

Where numbers of a unit follow its discrete choice c, q is q(c_i | e_i, v) q(u_i | e_i, c_i, v), and c is known where it
was observed. Where q(c) lists all assignments, they are the outer components of the local block, and a local is
(u, number of the assignment). Where it draws c (`families.discrete.Factorised`), c is drawn first, for a batch by
`at_choices`; units that stand at one (`Batch.choice`) have locals u alone, others (u, digits of c).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Batch, Context, Fixed
from .encoders.base import AbstractEncoder
from .encoders.causal import Causal
from .families.base import AbstractFamily, Component, draw_noise
from .families.discrete import Categorical, Factorised
from .families.nested import Nested
from .frames import AbstractFrame, Frame, prior_frame
from .heads import AbstractHead
from .joint.assignments import allowed_choices, codes_of, parts_of, seen_digits
from .joint.joint import Joint
from .joint.tree import tree_of


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
    classifier: Categorical | Factorised | None = None

    @property
    def cheap_log_prob(self) -> bool:
        """Whether every family can evaluate its density elsewhere than at its own draws without a loop."""
        blocks = [block for block in (self.shared, self.local) if block is not None]
        return all(block.family.cheap_log_prob for block in blocks)

    @property
    def filters(self) -> bool:
        """Whether q of a unit is the product of its beliefs step by step, and no posterior of the unit."""
        return isinstance(self.encoder, Causal)

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
        """Components of the local block: of its family, for every assignment of a choice that is listed."""
        if self.local is None:
            return 1
        listed = self.classifier.size if isinstance(self.classifier, Categorical) else 1
        return self.local.family.num_components * listed

    def local_noise(self, key: Array, joint: Joint, like: Batch, *count: int) -> Float[Array, "*count noise"]:
        """Standard normal noise of `count` draws of a unit's locals, of which it has as many as `like` is padded to."""
        if self.local is None:
            return jnp.zeros((*count, 0))
        family = self.local.family
        if isinstance(family, Nested):
            return family.draw_noise(key, [level.rows for level in tree_of(joint.structure.at(like)).levels], count)
        return draw_noise(key, family, count)

    def local_log_shares(
        self, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, " components"]:
        """Log shares of the components of one unit's q; of a choice that is drawn, where the unit stands."""
        if self.local is None:
            return jnp.zeros(1)
        if not isinstance(self.classifier, Categorical):
            return self._family_log_shares(context, shared, unit, joint)
        log_probs = self.choice_log_probs(context, shared, unit, joint)

        def of(choice: Array) -> Array:
            return self._family_log_shares(context, shared, unit.at(_possible(choice, log_probs)), joint)

        return jnp.ravel(log_probs[:, None] + jax.vmap(of)(jnp.arange(self.classifier.size)))

    def _family_log_shares(self, context: Context, shared: Array, unit: Batch, joint: Joint) -> Array:
        assert self.local is not None
        if self.local.family.num_components == 1:
            return jnp.zeros(1)
        return self.local.family.log_shares(self.frame_given(context, shared, unit, joint)[1])

    @property
    def draws_choice(self) -> bool:
        """Whether a unit's discrete choice is drawn, and not summed over."""
        return isinstance(self.classifier, Factorised)

    def choice_log_probs(
        self, context: Context, shared: Array, unit: Batch, joint: Joint, *, labelled: bool = True
    ) -> Float[Array, " assignments"]:
        """log q(c | e, v) of every listed assignment of one unit; with `labelled`, given the labels that it has."""
        assert isinstance(self.classifier, Categorical)
        log_probs = self.classifier.log_probs(self._seen_by_classifier(context, shared))
        if not labelled:
            return log_probs
        return jax.nn.log_softmax(jnp.where(allowed_choices(joint.structure, unit), log_probs, -jnp.inf))

    def element_log_probs(self, choice: Array, context: Context, shared: Array) -> Float[Array, " elements"]:
        """log q(c_j | e, v) of every element of one unit's choice, where it is drawn, labels or not."""
        assert isinstance(self.classifier, Factorised)
        return self.classifier.log_prob(choice, self._seen_by_classifier(context, shared))

    def choice_log_prob(
        self, choice: Array, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, ""]:
        """log q(c | e, v) of one unit's choice, given the labels that it has."""
        if not self.draws_choice:
            return self.choice_log_probs(context, shared, unit, joint)[choice]
        digits, seen = seen_digits(joint.structure, unit)
        log_prob = jnp.sum(jnp.where(seen, 0.0, self.element_log_probs(choice, context, shared)))
        return jnp.where(jnp.any(seen & (choice != digits)), -jnp.inf, log_prob)

    def draw_choice(
        self, uniform: Array, context: Context, shared: Array, unit: Batch, joint: Joint, temperature: float = 0.0
    ) -> Array:
        """One unit's choice at uniform noise, with the labels that it has; relaxed at a `temperature`."""
        assert isinstance(self.classifier, Factorised)
        digits, seen = seen_digits(joint.structure, unit)
        drawn = self.classifier.draw(uniform, self._seen_by_classifier(context, shared), temperature)
        return jnp.where(seen, digits, drawn)

    def at_choices(
        self, key: Array, contexts: Context, shared: Array, batch: Batch, joint: Joint, temperature: float = 0.0
    ) -> Batch:
        """The units of a batch at a draw of their choices, if these are drawn."""
        if not isinstance(self.classifier, Factorised):
            return batch
        uniform = jax.random.uniform(key, (jax.tree.leaves(batch)[0].shape[0], len(self.classifier.counts)))
        draw = jax.vmap(self.draw_choice, in_axes=(0, 0, None, 0, None, None))
        return batch.at(draw(uniform, contexts, shared, batch, joint, temperature))

    def choices_log_prob(self, contexts: Context, shared: Array, batch: Batch, joint: Joint) -> Float[Array, " units"]:
        """log q of the drawn choices at which units stand; 0 where they stand at none."""
        if batch.choice is None:
            return jnp.zeros(jax.tree.leaves(batch)[0].shape[0])
        log_prob = jax.vmap(self.choice_log_prob, in_axes=(0, 0, None, 0, None))
        return log_prob(batch.choice, contexts, shared, batch, joint)

    def _seen_by_classifier(self, context: Context, shared: Array) -> Context:
        assert self.classifier is not None
        return (*context, self._whitened(shared)) if self.classifier.told_globals else context

    def place_local(
        self, noise: Array, component: Component, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One unit's locals at `noise` given the globals, and their log density; of numbers where it stands."""
        if self.local is None:
            return jnp.zeros(0), jnp.zeros(())
        if not isinstance(self.classifier, Categorical):
            return self._place(noise, component, context, shared, unit, joint)
        choice, component = jnp.divmod(component, self.local.family.num_components)
        log_probs = self.choice_log_probs(context, shared, unit, joint)
        choice = _possible(choice, log_probs)
        numbers, log_q = self._place(noise, component, context, shared, unit.at(choice), joint)
        return jnp.append(numbers, choice.astype(numbers.dtype)), log_q + log_probs[choice]

    def _place(
        self, noise: Array, component: Component, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Array, Array]:
        assert self.local is not None
        frame, told = self.frame_given(context, shared, unit, joint)
        free, log_q = self.local.family.sample_and_log_prob(noise, component, told)
        return frame.place(free), log_q - frame.log_det

    def sample_local(
        self, key: Array, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """A draw of one unit's locals given the globals, and its log density."""
        if isinstance(self.classifier, Factorised) and unit.choice is None:
            choice_key, key = jax.random.split(key)
            uniform = jax.random.uniform(choice_key, (len(self.classifier.counts),))
            choice = self.draw_choice(uniform, context, shared, unit, joint)
            numbers, log_q = self.sample_local(key, context, shared, unit.at(choice), joint)
            log_choice = self.choice_log_prob(choice, context, shared, unit, joint)
            return jnp.append(numbers, choice.astype(numbers.dtype)), log_q + log_choice
        noise_key, component_key = jax.random.split(key)
        component = _pick(component_key, self.local_log_shares(context, shared, unit, joint))
        return self.place_local(self.local_noise(noise_key, joint, unit), component, context, shared, unit, joint)

    def local_log_prob(
        self, local: Array, context: Context, shared: Array, unit: Batch, joint: Joint
    ) -> Float[Array, ""]:
        """Log density of one unit's unconstrained locals given the globals."""
        if self.classifier is not None and unit.choice is None:
            numbers, choice = parts_of(joint.structure, local)
            log_choice = self.choice_log_prob(choice, context, shared, unit, joint)
            return log_choice + self.local_log_prob(numbers, context, shared, unit.at(choice), joint)
        if self.local is None:
            return jnp.zeros(())
        frame, told = self.frame_given(context, shared, unit, joint)
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

    def fixed_frame(self, unit: Batch) -> Frame:
        """Where the prior has one unit's numbers; those that follow a listed choice, at the choice where it stands."""
        assert self.local is not None
        whitening = self.local.whitening
        if isinstance(self.classifier, Categorical):
            whitening = Fixed(jax.tree.map(lambda x: x[unit.choice], whitening.value))
        return prior_frame(whitening)

    def whitened_numbers(self, numbers: Float[Array, " d"], unit: Batch, joint: Joint) -> Float[Array, " d"]:
        """One unit's numbers on the prior's scale, level by level where they have levels."""
        assert self.local is not None
        frame = self.fixed_frame(unit)
        if not isinstance(self.local.family, Nested):
            return frame.take(numbers)
        tree = tree_of(joint.structure.at(unit))
        parts = zip(tree.split(numbers), tree.elementwise(frame.center), tree.elementwise(frame.factor), strict=True)
        return tree.by_level([(x - c) / s for x, c, s in parts])

    def frame_given(self, context: Context, shared: Array, unit: Batch, joint: Joint) -> tuple[AbstractFrame, Context]:
        """Where one unit's numbers live given the globals, and what their family is told."""
        frame = self.fixed_frame(unit)
        if unit.choice is not None:
            context = (*context, codes_of(joint.structure, jnp.asarray(unit.choice)))
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
