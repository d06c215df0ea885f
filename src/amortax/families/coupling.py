"""What is a coupling flow? Each layer moves one half of the numbers as a network of the other half says.

    x = (kept, moved)   →   reversed(kept, t(moved; network(kept, context)))

Both directions cost one pass of the network. The order is reversed between layers, so that what was kept is moved next.
The transform t is affine (RealNVP, Dinh et al. 2017) or a spline (Durkan et al. 2019). Plain JAX, built under one
compilation with scanned layers; `benchmarks/flows.py` times it beside FlowJAX's.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import GuideError
from .._network import Network
from .._recipe import Recipe
from .._types import Context
from .flow import START, AbstractLayer, Flow, build_flow
from .heavy import student_t
from .normal import diagonal, full
from .transforms import AbstractTransform, affine


@dataclasses.dataclass(frozen=True)
class coupling(Recipe, slots=("family", "shared_family")):
    """Recipe of a `Flow` of `Coupling` layers.

    **Arguments:**

    - `layers`: how many; two move every number once.
    - `transform`: `am.affine()`, or `am.spline()` for more freedom at about six times the cost.
    - `width`, `depth`: hidden layers of the networks.
    - `base`: None for standard normals, `am.student_t(df)` for heavy tails.
    - `outer`: the affine map after all layers, `am.diagonal()` or `am.full()`; None: full without a context.

    **Raises** `GuideError` when built on one dimension, where there is nothing to condition on.
    """

    layers: int = 6
    transform: Recipe = affine()
    width: int = 64
    depth: int = 1
    base: student_t | None = None
    outer: diagonal | full | None = None

    def build(self, size: int, context_sizes: tuple[int, ...], *, key: Array) -> Flow:
        """The family on R^size."""
        if size < 2:
            raise GuideError(
                f"am.coupling on {size} dimension: a coupling moves one half of the numbers by the other; "
                "take am.maf(2, transform=am.spline()), am.mixture(am.diagonal()) or am.diagonal()"
            )

        def layer(key: Array) -> Coupling:
            transform, kept = self.transform.build(), size // 2
            count = transform.count * (size - kept)
            network = Network((kept, *context_sizes), count, self.width, self.depth, key=key, last_scale=START)
            return Coupling(kept, transform, network)

        return build_flow(self, size, context_sizes, layer, key=key)


class Coupling(AbstractLayer):
    """Moves all but the first `kept` numbers, and reverses the order."""

    kept: int = eqx.field(static=True)
    transform: AbstractTransform
    network: Network
    cheap_inverse: ClassVar[bool] = True

    def _told(self, kept: Array, context: Context) -> Array:
        return self.network(kept, *context).reshape(self.transform.count, -1)

    def forward(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""
        kept, moved = value[: self.kept], value[self.kept :]
        moved, log_slopes = self.transform.forward(moved, self._told(kept, context))
        return jnp.concatenate([kept, moved])[::-1], jnp.sum(log_slopes)

    def inverse(self, value: Float[Array, " d"], context: Context) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """What `forward` maps to `value`, and the log determinant of `forward` there."""
        value = value[::-1]
        kept, moved = value[: self.kept], value[self.kept :]
        moved, log_slopes = self.transform.inverse(moved, self._told(kept, context))
        return jnp.concatenate([kept, moved]), jnp.sum(log_slopes)
