"""What is a family? A distribution on R^d with parameters from a context, or free where there is none.

A draw is a map of standard normal noise, `value = T(noise; context)`: whoever draws decides where the noise comes from
(a key, its mirror image, quasi-random points). A mixture has several such maps, its components, with shares that sum
to one; expectations over it are sums over the components, which keeps the shares' gradient exact.
"""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._network import Network
from .._types import Context

Component = int | Int[Array, ""]


class AbstractFamily(eqx.Module):
    """A distribution of one unit's d numbers given its context; vmapped by the guide."""

    size: eqx.AbstractVar[int]

    @property
    @abstractmethod
    def cheap_log_prob(self) -> bool:
        """Whether `log_prob` costs about as much as a draw."""

    @property
    @abstractmethod
    def noise_size(self) -> int:
        """Standard normals that one draw takes."""

    @property
    @abstractmethod
    def num_components(self) -> int:
        """1 but for mixtures."""

    @abstractmethod
    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The draw of `component` at standard normal `noise`, and its log density under the whole family, in nats."""

    @abstractmethod
    def log_shares(self, context: Context) -> Float[Array, " components"]:
        """Log probabilities of the components."""

    @abstractmethod
    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """Log density of `value` in nats."""

    @abstractmethod
    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Mean and standard deviation of every number; those of a flow are its outermost affine map's."""

    @abstractmethod
    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """A smooth map of `value` under which the family is about standard normal."""


class AbstractSingle(AbstractFamily):
    """A family of one component."""

    @property
    def num_components(self) -> int:
        """One."""
        return 1

    def log_shares(self, context: Context) -> Float[Array, " components"]:
        """All of it."""
        return jnp.zeros(1)


class AbstractNatural(AbstractSingle):
    """An exponential family without context: it can step along the natural gradient of a bound of log p.

    Its log density is `ξ · t(u) - A(ξ)`. At draws u_s = T(noise_s; ξ) the slopes r_s = ∇ log p - ∇ log q are known.
    Were log p such a density, with ξ*, then r_s = ∇t(u_s)ᵀ (ξ* - ξ), so that with instruments D_s = ∂u_s / ∂ξ

        E[D r] = E[D ∇tᵀ] (ξ* - ξ),

    where the left side is the gradient of the bound by ξ, and the matrix the Fisher information (Salimans and Knowles
    2013; Khan and Lin 2017). Draws count by their share `rate`, and q itself, in closed form, for the rest:

        Δξ = [(1 - rate) F + rate F_drawn]⁻¹ rate E_drawn[D r].

    With small rates that is a step of length `rate` along the natural gradient; with rate 1 a least squares fit that is
    exact, whatever the draws, where log p is of the family: there the noise of E[D r] is that of F_drawn.
    """

    @property
    @abstractmethod
    def draws_needed(self) -> int:
        """Fewest draws, in pairs of opposite noise, from which a step of rate 1 is determined."""

    @abstractmethod
    def own_frame(self, center: Float[Array, " d"], scale: Float[Array, " d"]) -> tuple[Array, Array]:
        """Center and scale of the prior as far as the family remains one when shifted and stretched."""

    @abstractmethod
    def natural_step(
        self, noise: Float[Array, "draws noise"], slopes: Float[Array, "draws d"], rate: Float[Array, ""]
    ) -> AbstractNatural:
        """The family after a step, from the slopes of log p - log q at the draws of `noise`."""


def least_share(rate: Float[Array, ""]) -> Float[Array, ""]:
    """Share of a natural parameter (a precision, shape, rate, concentration) that a step leaves at least.

    Those of log p are not negative, so of a step to `(1 - rate) ξ + rate ξ*` only noise goes below.
    """
    return jnp.maximum(1.0 - rate, 1e-3)


class Conditioner(eqx.Module):
    """`offset + network(context)`: the numbers that parametrise a family; without context, free numbers.

    They are in this order: `size` means, `size` free log scales, the rest. Families with a context start near the
    standard normal whatever it is; free ones (globals) with a third of the prior's spread, since draws far out in a
    vague prior overflow and tell nothing.
    """

    offset: Float[Array, " count"]
    network: Network | None

    def __init__(
        self, count: int, size: int, context_sizes: tuple[int, ...], width: int, depth: int, *, key: Array
    ) -> None:
        self.offset = jnp.zeros(count).at[size : 2 * size].set(0.0 if context_sizes else -1.2)
        self.network = None
        if context_sizes:
            self.network = Network(context_sizes, count, width, depth, key=key, last_bias=False, last_scale=0.1)

    def __call__(self, context: Context) -> Float[Array, " count"]:
        """The parameters for one context."""
        return self.offset if self.network is None else self.offset + self.network(*context)


def bounded_log_scale(free: Array) -> Array:
    """Log scales kept within (-15, 5): slope close to 1 at the start, never exploding, with a gradient everywhere."""
    return 10.0 * jnp.tanh((free + 5.0 * _START) / 10.0) - 5.0


def free_log_scale(log_scale: Array) -> Array:
    """The inverse of `bounded_log_scale`."""
    return 10.0 * jnp.arctanh(jnp.clip((log_scale + 5.0) / 10.0, -0.9999, 0.9999)) - 5.0 * _START


# chosen so that free = 0 gives log scale 0: 10 tanh(0.5 c) = 5 at c = 2 atanh(1/2)
_START = 2.0 * 0.5493061443340549


def triangular(free: Float[Array, " count"], size: int) -> Float[Array, "d d"]:
    """A strictly lower triangular matrix from its d (d - 1) / 2 numbers, row by row."""
    rows, columns = jnp.tril_indices(size, -1)
    return jnp.zeros((size, size)).at[rows, columns].set(free)


def standard_log_prob(noise: Float[Array, " d"]) -> Float[Array, ""]:
    """Log density of independent standard normals, in nats."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.shape[0] * jnp.log(2.0 * jnp.pi)


def draw_noise(key: Array, family: AbstractFamily, count: tuple[int, ...] = ()) -> Float[Array, "*count noise"]:
    """Standard normal noise of `count` draws."""
    return jax.random.normal(key, (*count, family.noise_size))
