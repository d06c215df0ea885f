"""How does a flow bend one number? By a monotone rational-quadratic spline (Durkan and others 2019).

Within [-B, B], bins of widths w_k and heights h_k, slopes d_k at their ends, t = (x - x_k) / w_k and r = h_k / w_k:

    y = y_k + h_k (r t² + d_k t (1 - t)) / (r + (d_k + d_{k+1} - 2 r) t (1 - t)),

whose inverse is the root of a quadratic. Outside it is the identity, met with slope 1. Bins are picked by sums over
masks, as fast as a search with gathers, and lie on the last axis: on the first, draws take twice as long.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import GuideError
from .._recipe import Recipe
from .._types import whole_number
from .transforms import AbstractTransform

SMALLEST = 1e-3  # bin, as a share of all, and slope at a knot
_ONE = float(np.log(np.expm1(1.0 - SMALLEST)))  # softplus of it, plus the smallest slope, is 1


@dataclasses.dataclass(frozen=True)
class spline(Recipe):
    """Recipe of `Spline` with `bins` bins within `bound` of zero, about that many sd of the flow's own scale."""

    bins: int = 8
    bound: float = 5.0

    def build(self) -> Spline:
        """The transform."""
        if not 2 <= whole_number("am.spline: bins", self.bins, GuideError) <= 100:
            raise GuideError(f"am.spline(bins={self.bins}): bins must be 2 to 100")
        if not (self.bound > 0 and np.isfinite(self.bound)):
            raise GuideError(f"am.spline(bound={self.bound}): bound must be a positive number")
        return Spline(self.bins, float(self.bound))


class Spline(AbstractTransform):
    """Widths, heights and inner slopes from `3 bins - 1` free numbers."""

    bins: int = eqx.field(static=True)
    bound: float = eqx.field(static=True)
    pace: ClassVar[float] = 0.2

    @property
    def count(self) -> int:
        """Free numbers of one spline."""
        return 3 * self.bins - 1

    def _shape(self, free: Float[Array, "count d"]) -> tuple[Array, Array, Array]:
        """Widths (d, bins), heights (d, bins), slopes (d, bins + 1)."""
        bins, scale = self.bins, 2.0 * self.bound
        rows = free.T
        shares = (jax.nn.softmax(rows[:, part], axis=1) for part in (slice(bins), slice(bins, 2 * bins)))
        widths, heights = (scale * (SMALLEST + (1.0 - SMALLEST * bins) * share) for share in shares)
        inner = SMALLEST + jax.nn.softplus(rows[:, 2 * bins :] + _ONE)
        return widths, heights, jnp.pad(inner, ((0, 0), (1, 1)), constant_values=1.0)

    def _bin(self, value: Array, along: Array, widths: Array, heights: Array, slopes: Array) -> tuple[Array, ...]:
        """Of the bin of `value` on the axis whose bins have the sizes `along`: start in, start out, w, h, d, d'."""
        ends = -self.bound + along @ jnp.asarray(np.tri(self.bins - 1, self.bins, dtype=np.float32).T)
        before = (value[:, None] >= jax.lax.stop_gradient(ends)).astype(value.dtype)  # (d, bins - 1): left behind
        here = jnp.concatenate([jnp.ones_like(before[:, :1]), before], 1) - jnp.pad(before, ((0, 0), (0, 1)))
        start_in = -self.bound + jnp.sum(before * widths[:, :-1], axis=1)
        start_out = -self.bound + jnp.sum(before * heights[:, :-1], axis=1)
        picked = (jnp.sum(here * x, axis=1) for x in (widths, heights, slopes[:, :-1], slopes[:, 1:]))
        return start_in, start_out, *picked

    def forward(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Images, and the logs of the slopes there."""
        widths, heights, slopes = self._shape(free)
        inside = jnp.abs(value) < self.bound
        within = jnp.where(inside, value, 0.0)
        x, y, w, h, low, high = self._bin(within, widths, widths, heights, slopes)
        t, r = jnp.clip((within - x) / w, 0.0, 1.0), h / w
        image = y + h * (r * t**2 + low * t * (1.0 - t)) / (r + (low + high - 2.0 * r) * t * (1.0 - t))
        return jnp.where(inside, image, value), jnp.where(inside, _log_slope(t, r, low, high), 0.0)

    def inverse(
        self, value: Float[Array, " d"], free: Float[Array, "count d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """What `forward` maps to `value`, and the logs of the slopes of `forward` there."""
        widths, heights, slopes = self._shape(free)
        inside = jnp.abs(value) < self.bound
        within = jnp.where(inside, value, 0.0)
        x, y, w, h, low, high = self._bin(within, heights, widths, heights, slopes)
        r, up = h / w, jnp.clip((within - y) / h, 0.0, 1.0)
        bend = up * (low + high - 2.0 * r)
        a, b, c = r - low + bend, low - bend, -r * up
        t = jnp.clip(2.0 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 1e-12))), 0.0, 1.0)
        return jnp.where(inside, x + t * w, value), jnp.where(inside, _log_slope(t, r, low, high), 0.0)


def _log_slope(t: Array, r: Array, low: Array, high: Array) -> Array:
    rises = high * t**2 + 2.0 * r * t * (1.0 - t) + low * (1.0 - t) ** 2
    return 2.0 * jnp.log(r) + jnp.log(rises) - 2.0 * jnp.log(r + (low + high - 2.0 * r) * t * (1.0 - t))
