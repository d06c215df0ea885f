"""What is q of a unit's discrete choice? A categorical over all assignments, its logits from the context.

Numbers of the unit follow the choice: q(c | e, v) q(u | e, c, v). An expectation over c is a sum, which keeps the
gradient of its probabilities exact; no draw of c is ever differentiated.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._network import Network
from .._recipe import Recipe
from .._types import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class categorical(Recipe):
    """Recipe of `Categorical`: a network with `depth` hidden layers of `width` from the context to the logits."""

    width: int = 64
    depth: int = 1
    most: int = 32

    def build(self, size: int, context_sizes: tuple[int, ...], whitened_size: int, *, key: Array) -> Categorical:
        """The family over `size` assignments, told up to `most` globals beside the context."""
        tells = 0 < whitened_size <= 2 * self.most
        sizes = (*context_sizes, whitened_size) if tells else context_sizes
        return Categorical(size, tells, Network(sizes, size, self.width, self.depth, key=key, last_scale=0.1))


class Categorical(eqx.Module):
    """Probabilities of all assignments; close to equal before training."""

    size: int = eqx.field(static=True)
    told_globals: bool = eqx.field(static=True)
    network: Network

    def log_probs(self, context: Context) -> Float[Array, " assignments"]:
        """Log probabilities of all assignments given a context."""
        return jax.nn.log_softmax(self.network(*context))
