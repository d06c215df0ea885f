"""What is q of a series step by step? The product of the beliefs q(z_t | x_1, ..., x_t), one family for all steps.

    log q = Σ_t log q(z_t | context_t),

with contexts that know nothing of later steps (`encoders.causal`). Trained by simulations of the model, the loss
E[-log q] is least where every factor is the filtering distribution p(z_t | x_1, ..., x_t), and above it by the sum of
their divergences. The product itself is no posterior of the series: between steps, and of what comes later, it knows
nothing.

All steps share the parameters, so that a belief can be carried on for any number of steps. Discrete states have the
same with probabilities of their values (`families.discrete.Factorised` over `Stepwise` logits).
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._network import Network
from .._recipe import Recipe
from .._types import Context, Fixed
from .base import AbstractFamily, AbstractSingle, Component
from .discrete import Factorised
from .normal import diagonal, full

FULL = 8  # largest number of a step for which a full normal is chosen
Index = tuple[tuple[int, ...], ...]  # positions (T, k) of the numbers, or elements, of every step


@dataclasses.dataclass(frozen=True)
class filtering(Recipe, slots=("family", "classifier")):
    """Recipe of beliefs q(z_t | x_1, ..., x_t), for latents along time; with `am.ForwardKL()`, and `Posterior.filter`.

    **Arguments:**

    - `family`: recipe of q of the numbers of one step; None: a full normal up to 8 numbers, else a diagonal one.
    - `width`, `depth`: hidden layers between a step's context and the probabilities of discrete states.

    Time is the first axis of every observed argument after the units'. Latents are either numbers or discrete, in sites
    that have that axis too, or in as many sites as there are steps (a loop in the model). A covariate with that axis,
    an action say, is seen with its step.

    **Raises** `GuideError` where the model has globals, learned parameters, or latents of no step.
    """

    family: Recipe | None = None
    width: int = 64
    depth: int = 1

    def build(self, index: Index, context_sizes: tuple[int, ...], *, key: Array) -> Filtering:
        """The beliefs of numbers that stand at `index`."""
        width = len(index[0])
        recipe = self.family or (full(depth=1) if width <= FULL else diagonal(depth=1))
        return Filtering(width * len(index), recipe.build(width, context_sizes, key=key), index)

    def build_choices(
        self, counts: tuple[int, ...], index: Index, context_sizes: tuple[int, ...], *, key: Array
    ) -> Factorised:
        """The beliefs of discrete elements with so many values each, all steps' alike, that stand at `index`."""
        free = len(index[0]) * (max(counts) - 1)
        network = Network(context_sizes, free, self.width, self.depth, key=key, last_scale=0.1)
        return Factorised(counts, False, Stepwise(network, index))


class Stepwise(eqx.Module):
    """A network of every step's context: the logits of all elements, in their places."""

    network: Network
    index: Index = eqx.field(static=True)

    def __call__(self, *context: Float[Array, "steps _"]) -> Float[Array, " logits"]:
        """As many logits for every element."""
        by_step = jax.vmap(self.network)(*context)
        return by_step.reshape(by_step.shape[0] * len(self.index[0]), -1)[np.argsort(np.ravel(self.index))].ravel()


class Filtering(AbstractSingle):
    """One family for the numbers of every step, independent given the contexts."""

    size: int = eqx.field(static=True)
    step: AbstractFamily
    index: Index = eqx.field(static=True)

    @property
    def cheap_log_prob(self) -> bool:
        """As of the family of a step."""
        return self.step.cheap_log_prob

    @property
    def noise_size(self) -> int:
        """That of every step, and one that picks its component."""
        return len(self.index) * (self.step.noise_size + 1)

    def sample_and_log_prob(
        self, noise: Float[Array, " noise"], component: Component, context: Context
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """A draw of every step's belief; which component of a mixture is no smooth function of the noise."""
        rows = noise.reshape(len(self.index), -1)
        values, log_q = jax.vmap(lambda row, *told: draw(self.step, row, told))(rows, *context)
        return self.flat(values), jnp.sum(log_q)

    def log_prob(self, value: Float[Array, " d"], context: Context) -> Float[Array, ""]:
        """The sum over steps, in nats."""
        rows = value[np.asarray(self.index)]
        return jnp.sum(jax.vmap(lambda row, *told: self.step.log_prob(row, told))(rows, *context))

    def mean_and_sd(self, context: Context) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """As the family of a step gives them."""
        mean, sd = jax.vmap(lambda *told: self.step.mean_and_sd(told))(*context)
        return self.flat(mean), self.flat(sd)

    def standardize(self, value: Float[Array, " d"], context: Context) -> Float[Array, " d"]:
        """As the family of a step does."""
        rows = value[np.asarray(self.index)]
        return self.flat(jax.vmap(lambda row, *told: self.step.standardize(row, told))(rows, *context))

    def flat(self, by_step: Float[Array, "steps width"]) -> Float[Array, " d"]:
        """Numbers of all steps in their places."""
        return jnp.ravel(by_step)[np.argsort(np.ravel(self.index))]

    def tied(self, whitening: Fixed) -> Fixed:
        """A whitening that is the same at every step: the mean over all."""
        index = np.asarray(self.index)

        def mean(x: Array) -> Array:
            return self.flat(jnp.broadcast_to(jnp.mean(x[index], axis=0), index.shape))

        return Fixed(jax.tree.map(mean, whitening.value))


def draw(family: AbstractFamily, noise: Float[Array, " noise"], context: Context) -> tuple[Array, Array]:
    """(a draw of one step, its log density); the last number of the noise picks the component."""
    shares = jnp.cumsum(jnp.exp(family.log_shares(context)))[:-1]
    component = jnp.sum(jax.scipy.stats.norm.cdf(noise[-1]) > shares)
    return family.sample_and_log_prob(noise[:-1], component, context)
