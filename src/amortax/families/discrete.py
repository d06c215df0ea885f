"""What is q of a unit's discrete choice? Probabilities of all assignments, or of each element's values by itself.

*Listed* (`categorical`): q(c | e, v) is a categorical over all assignments, and an expectation over c a sum, which
keeps the gradient of its probabilities exact.

*Drawn* (`factorised`): q(c | e, v) = Π_j Categorical(c_j | logits_j(e, v)) for any number of elements. An expectation
is a mean over draws, of which none is differentiated: how the logits learn is the objective's (`objectives.score`).

Numbers of the unit follow the choice in both: q(c | e, v) q(u | e, c, v).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._network import Network
from .._recipe import Recipe
from .._types import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class categorical(Recipe, slots=("classifier",)):
    """Recipe of `Categorical`: a network with `depth` hidden layers of `width` from the context to the logits."""

    width: int = 64
    depth: int = 1
    most: int = 32

    def build(
        self, counts: Sequence[int], context_sizes: tuple[int, ...], whitened_size: int, *, key: Array
    ) -> Categorical:
        """The family over all assignments of elements with so many values, told up to `most` globals too."""
        size = math.prod(counts)
        sizes, tells = _told(context_sizes, whitened_size, self.most)
        return Categorical(size, tells, Network(sizes, size, self.width, self.depth, key=key, last_scale=0.1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class factorised(Recipe, slots=("classifier",)):
    """Recipe of `Factorised`: a network with `depth` hidden layers of `width` from the context to all logits.

    For discrete sites of the unit itself that are too many to list; `am.ELBO`, `am.IWELBO` and `am.Renyi` learn it from
    several draws of each unit. Elements are independent given the data: what they have in common in the posterior is
    lost, as with `diagonal` for numbers.
    """

    width: int = 64
    depth: int = 1
    most: int = 32

    def build(
        self, counts: Sequence[int], context_sizes: tuple[int, ...], whitened_size: int, *, key: Array
    ) -> Factorised:
        """The family over elements with so many values each, told up to `most` globals beside the context."""
        sizes, tells = _told(context_sizes, whitened_size, self.most)
        free = len(counts) * (max(counts) - 1)
        network = Network(sizes, free, self.width, self.depth, key=key, last_scale=0.1)
        return Factorised(tuple(counts), tells, network)


def _told(context_sizes: tuple[int, ...], whitened_size: int, most: int) -> tuple[tuple[int, ...], bool]:
    """(sizes of what the network sees, whether the globals are among it)."""
    tells = 0 < whitened_size <= 2 * most
    return ((*context_sizes, whitened_size) if tells else context_sizes), tells


class Categorical(eqx.Module):
    """Probabilities of all assignments; close to equal before training."""

    size: int = eqx.field(static=True)
    told_globals: bool = eqx.field(static=True)
    network: Network

    def log_probs(self, context: Context) -> Float[Array, " assignments"]:
        """Log probabilities of all assignments given a context."""
        return jax.nn.log_softmax(self.network(*context))


class Factorised(eqx.Module):
    """Probabilities of every element's values; close to equal before training."""

    counts: tuple[int, ...] = eqx.field(static=True)
    told_globals: bool = eqx.field(static=True)
    network: Callable[..., Array]

    def log_probs(self, context: Context) -> Float[Array, "elements values"]:
        """Log probabilities of every element's values given a context, -inf for values that an element lacks."""
        most = max(self.counts)
        free = jnp.reshape(self.network(*context), (len(self.counts), most - 1))
        logits = jnp.concatenate([jnp.zeros((len(self.counts), 1)), free], axis=1)
        if min(self.counts) < most:
            logits = jnp.where(np.arange(most) < np.asarray(self.counts)[:, None], logits, -jnp.inf)
        return jax.nn.log_softmax(logits, axis=1)

    def draw(
        self, uniform: Float[Array, " elements"], context: Context, temperature: float = 0.0
    ) -> Shaped[Array, " elements"]:
        """The digits at uniform noise; with a `temperature`, of elements of two values, relaxed.

        Relaxed digits are the same numbers as floats, with the gradient of the Gumbel-softmax at that temperature
        (Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017), straight through the rounding.
        """
        log_probs = self.log_probs(context)
        below = jnp.cumsum(jnp.exp(log_probs), axis=1)[:, :-1]
        digits = jnp.sum(uniform[:, None] > below, axis=1, dtype=jnp.int32)
        digits = jnp.minimum(digits, np.asarray(self.counts, np.int32) - 1)  # a sum of floats may end below one
        if not temperature:
            return digits
        noise = jnp.clip(uniform, 1e-7, 1.0 - 1e-7)
        logistic = jnp.log(noise) - jnp.log1p(-noise)
        soft = jax.nn.sigmoid((log_probs[:, 1] - log_probs[:, 0] + logistic) / temperature)
        return digits + (soft - jax.lax.stop_gradient(soft))  # exactly the digits: 1 - 6e-8 is outside the support

    def log_prob(self, digits: Shaped[Array, " elements"], context: Context) -> Float[Array, " elements"]:
        """Log probability of every element's digit; of relaxed ones, the linear interpolation."""
        log_probs = self.log_probs(context)
        if jnp.issubdtype(digits.dtype, jnp.floating):
            return (1.0 - digits) * log_probs[:, 0] + digits * log_probs[:, 1]
        own = digits[:, None] == np.arange(max(self.counts))
        return jnp.sum(jnp.where(own, log_probs, 0.0), axis=1)
