"""How do the numbers of one block follow each other? One after the other, in many blocks side by side.

    z_i = e^{c_i} S_i(y_i) + b_i
    b_i = shift_i + Σ_{l<i} U_il y_l + U'_il (y_l² - 1),   c_i = stretch_i + Σ_{l<i} U''_il y_l
    S(y) = sinh(asinh(y) + σ) = y cosh σ + √(1 + y²) sinh σ

The last is the skewing part of sinh-arcsinh (Jones and Pewsey 2009): e^σ times as wide on the right as a normal, and
e^-σ times on the left.

Straight, z = y + shift + U y. The loops over a block's few numbers are unrolled, and all blocks of a group stand along
the last axis.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEEPEST = 3.0  # |c|: a factor of 20 in the spread at most
SKEWEST = 1.5  # |σ|


class Map(eqx.Module):
    """`y → z = e^c y + b` in every row of a group, number after number."""

    shift: Float[Array, "width rows"]  # the part of b that follows the top
    stretch: Float[Array, "width rows"] | None  # that of c; None: straight
    skew: Float[Array, "width rows"] | None  # free σ
    inside: tuple[Float[Array, "entries rows"], ...]  # U and, curved, U' and U'': row by row below the diagonal

    def _at(self, before: list[Array]) -> tuple[Array, Array]:
        """`b` and `c` of the number after those of `y` in `before`."""
        i, first = len(before), below(len(before))
        terms = [self.inside[0][first + j] * y for j, y in enumerate(before)]
        if self.stretch is None:
            return sum(terms, self.shift[i]), jnp.zeros(())
        terms += [self.inside[1][first + j] * (y**2 - 1.0) for j, y in enumerate(before)]
        stretch = sum((self.inside[2][first + j] * y for j, y in enumerate(before)), self.stretch[i])
        return sum(terms, self.shift[i]), STEEPEST * jnp.tanh(stretch / STEEPEST)

    def forward(self, y: Float[Array, "width rows"]) -> tuple[Float[Array, "width rows"], Float[Array, ""]]:
        """The image, and the log determinant of the map there."""
        found, log_det = [], jnp.zeros(())
        for i in range(y.shape[0]):
            shift, stretch = self._at(list(y[:i]))
            bent, log_slope = self._bend(i, y[i], 1.0)
            found.append(jnp.exp(stretch) * bent + shift)
            log_det += jnp.sum(log_slope + stretch)
        return jnp.stack(found), log_det

    def inverse(self, z: Float[Array, "width rows"]) -> tuple[Float[Array, "width rows"], Float[Array, ""]]:
        """What `forward` maps to `z`, and the log determinant of `forward` there."""
        found, log_det = [], jnp.zeros(())
        for i in range(z.shape[0]):
            shift, stretch = self._at(found)
            y, log_slope = self._bend(i, (z[i] - shift) * jnp.exp(-stretch), -1.0)
            found.append(y)
            log_det += jnp.sum(stretch - log_slope)
        return jnp.stack(found), log_det

    def _bend(self, i: int, y: Array, sign: float) -> tuple[Array, Array]:
        """`S` of number i, or with sign -1 its inverse, and the log of the slope there."""
        if self.skew is None:
            return y, jnp.zeros(())
        skew = sign * SKEWEST * jnp.tanh(self.skew[i] / SKEWEST)
        bent = y * jnp.cosh(skew) + jnp.sqrt(1.0 + y**2) * jnp.sinh(skew)
        return bent, 0.5 * (jnp.log1p(bent**2) - jnp.log1p(y**2))


def variances(inside: Array, loads: Array, shared: Array) -> Float[Array, "width rows"]:
    """Variances of `y + B ε + U y` in every row, `y` with the directions (rank, width, rows) in it."""
    times = jax.vmap(Map(jnp.zeros(loads.shape[1:]), None, None, (inside,)).forward)
    width, rows = loads.shape[1:]
    own = times(jnp.broadcast_to(jnp.eye(width)[:, :, None], (width, width, rows)))[0]
    together = jnp.concatenate([own, loads, times(shared)[0]])
    return jnp.sum(together**2, axis=0)


def below(width: int) -> int:
    """Entries below the diagonal."""
    return width * (width - 1) // 2
