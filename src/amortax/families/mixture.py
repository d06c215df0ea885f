"""What is a mixture? Several members of one family, each with a share that follows the context.

    q(u) = Σ_k π_k q_k(u - c_k)

Expectations are sums over the components, each drawn from (stratified), so that the gradient of the shares is exact
(see `estimators`). The constants c_k set the components apart at the start, at the quantiles of a standard normal in an
order of its own along every dimension; where they end is learned.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, ndtri
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import Context, Fixed, whole_number
from .base import AbstractFamily, Component, Conditioner
from .flow import stacked


@dataclasses.dataclass(frozen=True)
class mixture(Recipe, slots=("family", "shared_family")):
    """Recipe of `Mixture`: `components` members of `family`.

    `depth` hidden layers of `width` between context and shares. Cost: training and densities evaluate every draw of
    every component under every component.

    **Raises** `GuideError` when built with fewer than 2 components or from another mixture.
    """

    family: Recipe
    components: int = 4
    width: int = 64
    depth: int | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Mixture:
        """The family on R^size."""
        if whole_number("am.mixture: components", self.components, GuideError) < 2:
            raise GuideError("am.mixture needs components from 2; one is the family itself")
        if isinstance(self.family, mixture):
            raise GuideError("am.mixture of a mixture is a mixture: give all components to one")
        members_key, shares_key, apart_key = jax.random.split(key, 3)
        members = stacked(lambda k: self.family.build(size, context_sizes, key=k), self.components, members_key)
        shares = Conditioner(self.components, 0, context_sizes, self.width, self.depth or 0, key=shares_key)
        return Mixture(size, self.components, members, shares, Fixed(_apart(self.components, size, apart_key)))


def _apart(components: int, size: int, key: Array) -> Float[Array, "components d"]:
    """A Latin hypercube of standard normal quantiles."""
    quantiles = ndtri((jnp.arange(components) + 0.5) / components)
    return quantiles[jnp.argsort(jax.random.uniform(key, (components, size)), axis=0)]


class Mixture(AbstractFamily):
    """Members of one family, their arrays with a leading axis, and their shares."""

    size: int = eqx.field(static=True)
    components: int = eqx.field(static=True)
    members: AbstractFamily
    shares: Conditioner
    locations: Fixed  # (components, d)

    @property
    def cheap_log_prob(self) -> bool:
        """As the members say."""
        return self.members.cheap_log_prob

    @property
    def noise_size(self) -> int:
        """What one member takes."""
        return self.members.noise_size

    @property
    def num_components(self) -> int:
        """How many members."""
        return self.components

    def log_shares(self, context: Context) -> Float[Array, " components"]:
        """Log probabilities of the components."""
        return jax.nn.log_softmax(self.shares(context))

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The draw of `component` (may be traced), and its log density under the whole mixture in nats."""
        # All members at this noise: weights of one, picked draw by draw, would be copied for each of a million draws.
        each = eqx.filter_vmap(lambda member: member.sample_and_log_prob(noise, 0, context)[0])(self.members)
        value = (self.locations.value + each)[component]
        return value, self.log_prob(value, context)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""
        each = eqx.filter_vmap(lambda member, location: member.log_prob(value - location, context))
        return logsumexp(self.log_shares(context) + each(self.members, self.locations.value))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Of the mixture, from those of its members: `Σ π m`, and the root of `Σ π (s² + (m - mean)²)`."""
        means, sds = eqx.filter_vmap(lambda member: member.mean_and_sd(context))(self.members)
        shares, means = jnp.exp(self.log_shares(context)), means + self.locations.value
        mean = shares @ means
        return mean, jnp.sqrt(shares @ (sds**2 + (means - mean) ** 2))

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """`(value - mean) / sd`, which keeps the modes apart."""
        mean, sd = self.mean_and_sd(context)
        return (value - mean) / sd
