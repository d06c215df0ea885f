"""What is q of a unit with parameters of its own? Any family, its trained numbers read from the unit's row.

    q(u | context) = family with parameters row[-P:],   context = (row, ...)

Every family serves unchanged: one family without context is built, its trained arrays are what every row starts from,
and each unit puts its own row in their place. What a head tells besides (globals, a step) is not read: weights on it,
of each unit's own, drown q of the globals in their noise (`docs/inside/architecture.md`).
"""

from __future__ import annotations

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._types import Context, Fixed, trainable
from .base import AbstractFamily, Component


class Own(AbstractFamily):
    """A family whose parameters are the last P numbers of the first part of the context."""

    size: int = eqx.field(static=True)
    start: Fixed  # the family as built

    def first_row(self) -> Float[Array, " p"]:
        """The P numbers that a row starts from."""
        return ravel_pytree(eqx.filter(self.start.value, trainable(self.start.value)))[0]

    def _of(self, context: Context) -> AbstractFamily:
        """The unit's family."""
        row = context[0]
        start = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, self.start.value)
        trained, rest = eqx.partition(start, trainable(start))
        flat, fill = ravel_pytree(trained)
        return eqx.combine(fill(row[row.shape[0] - flat.shape[0] :]), rest)

    @property
    def cheap_log_prob(self) -> bool:
        """As the family says."""
        return self.start.value.cheap_log_prob

    @property
    def noise_size(self) -> int:
        """What the family takes."""
        return self.start.value.noise_size

    @property
    def num_components(self) -> int:
        """As many as the family has."""
        return self.start.value.num_components

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The draw of `component` at standard normal `noise`, and its log density, in nats."""
        return self._of(context).sample_and_log_prob(noise, component, ())

    def log_shares(self, context: Context) -> Float[Array, " components"]:
        """Log probabilities of the components."""
        return self._of(context).log_shares(())

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        return self._of(context).log_prob(value, ())

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Mean and standard deviation of every number, as the family says."""
        return self._of(context).mean_and_sd(())

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """The family's own map to about standard normal."""
        return self._of(context).standardize(value, ())
