"""What is repaired? One unit's posterior given the globals, log p(d, u | v), in numbers that are all proper.

A discrete choice of which q is learned and listed is summed, in the target and in q, and drawn again at the end from
its exact probabilities given the numbers. One too large to list stays with the numbers: no sampler moves it.

Places of a unit that are padding have no density of their own in the model. Here each has a standard normal one on the
prior's scale, in the target and in every q alike, so that weights are as they were and a sampler doesn't drift there.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Batch, Context
from ..families.base import standard_log_prob
from ..families.discrete import Categorical
from ..families.nested import Nested
from ..frames import Frame
from ..guide import Guide
from ..joint.joint import Joint
from ..joint.tree import own_numbers, tree_of


class Target(eqx.Module):
    """The trained pair as the target of repair: everything of one unit."""

    joint: Joint
    guide: Guide

    @property
    def continuous(self) -> bool:
        """Whether a unit's locals are numbers alone: discrete ones, if any, are summed."""
        return not self.guide.draws_choice

    @property
    def pooled(self) -> bool:
        """Whether all draws of a unit are of one distribution, since there are no globals that they follow."""
        return self.joint.shared_size == 0

    @property
    def _sums(self) -> bool:
        return isinstance(self.guide.classifier, Categorical)

    def size(self, unit: Batch) -> int:
        """Numbers of one unit (with those of its choice, where it is not summed)."""
        joint = self.joint.at(unit)
        return joint.structure.size("local") if self._sums else joint.local_size

    def prior_frame(self, unit: Batch) -> Frame:
        """The prior's centers and scales, one of each for every number; over all choices, where these are summed."""
        local = self.guide.local
        if self._sums and local is not None:
            each = jax.tree.map(jax.lax.stop_gradient, local.whitening.value)
            spread = jnp.sqrt(jnp.mean(each["scale"] ** 2, axis=0) + jnp.var(each["center"], axis=0))
            return Frame(jnp.mean(each["center"], axis=0), spread)
        frame = self.guide.fixed_frame(unit)
        if local is None or not isinstance(local.family, Nested):
            return frame
        tree = tree_of(self.joint.structure.at(unit))
        return Frame(tree.join(tree.elementwise(frame.center)), tree.join(tree.elementwise(frame.factor)))

    def padding(self, unit: Batch) -> Bool[Array, " d"]:
        """True at numbers of elements that the unit does not have."""
        return ~own_numbers(self.joint.structure, unit)

    def _padded(self, local: Array, unit: Batch) -> Array:
        """What the numbers of padding add to every log density."""
        frame, padding = self.prior_frame(unit), self.padding(unit)
        standard = jnp.where(padding, frame.take(local), 0.0)
        scales = jnp.where(padding, jnp.log(frame.factor), 0.0)
        return standard_log_prob(standard) + 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(~padding) - jnp.sum(scales)

    @property
    def _pads(self) -> bool:
        return self.continuous and any(p.ragged for p in self.joint.structure.plates)

    def log_prob(self, local: Float[Array, " d"], shared: Array, unit: Batch) -> Float[Array, ""]:
        """log p(d, u | v), in nats."""
        if self._sums:
            return jax.nn.logsumexp(self._of_choices(local, shared, unit))
        value = self.joint.unit_log_prob(local, shared, unit).unit
        return value + self._padded(local, unit) if self._pads else value

    def _of_choices(self, local: Array, shared: Array, unit: Batch) -> Float[Array, " assignments"]:
        """log p(d, u, c | v) of every listed choice."""
        assert isinstance(self.guide.classifier, Categorical)
        choices = jnp.arange(self.guide.classifier.size)
        return jax.vmap(lambda c: self.joint.unit_log_prob(local, shared, unit.at(c)).unit)(choices)

    def draw(self, key: Array, context: Context, shared: Array, unit: Batch) -> tuple[Array, Array]:
        """A draw of the guide's q at a context, and its log density."""
        padding_key, key = jax.random.split(key) if self._pads else (key, key)
        local, log_q = self.guide.sample_local(key, context, shared, unit, self.joint)
        if self._sums:
            return local[:-1], self.guide_log_prob(local[:-1], context, shared, unit)
        if not self._pads:
            return local, log_q
        noise = self.prior_frame(unit).place(jax.random.normal(padding_key, local.shape))  # the guide's has no spread
        local = jnp.where(self.padding(unit), noise, local)
        return local, log_q + self._padded(local, unit)

    def guide_log_prob(self, local: Array, context: Context, shared: Array, unit: Batch) -> Array:
        """log q of the guide at a context."""
        if self._sums:
            log_choice = self.guide.choice_log_probs(context, shared, unit, self.joint)
            each = jax.vmap(lambda c: self.guide.local_log_prob(local, context, shared, unit.at(c), self.joint))
            return jax.nn.logsumexp(log_choice + each(jnp.arange(len(log_choice))))
        log_q = self.guide.local_log_prob(local, context, shared, unit, self.joint)
        return log_q + self._padded(local, unit) if self._pads else log_q

    def with_choice(self, key: Array, local: Float[Array, " d"], shared: Array, unit: Batch) -> Float[Array, " n"]:
        """The locals as the joint has them: with a choice, drawn given the numbers, where it was summed."""
        if not self._sums:
            return local
        choice = jax.random.categorical(key, self._of_choices(local, shared, unit))
        return jnp.append(local, choice.astype(local.dtype))
