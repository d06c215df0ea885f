"""How are many small matrices factored at once? By the textbook's loops, unrolled, over all of them side by side.

JAX's own batched Cholesky and triangular solves call LAPACK once per matrix. Up to `LARGEST` rows this is faster, and
it can't hang: on a CPU two such calls of one program wait for threads of the pool in which they themselves run, and on
a machine of two cores that pool has two (jaxlib 0.10.2; 256 units with 1,000 draws each stopped for good at one call
in twenty).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

LARGEST = 16  # rows; the loops' compilation grows with them


def cholesky(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The lower triangular factor of a symmetric matrix; not finite somewhere unless that is positive definite."""
    size = matrix.shape[0]
    if size > LARGEST:
        return jnp.linalg.cholesky(matrix)
    columns, rest = [], matrix
    for j in range(size):
        column = rest[:, 0] / jnp.sqrt(rest[0, 0])
        columns.append(jnp.pad(column, (j, 0)))
        rest = rest[1:, 1:] - column[1:, None] * column[None, 1:]
    return jnp.stack(columns, axis=1)


def solve_lower(factor: Float[Array, "d d"], value: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """`factor⁻¹ value` for a lower triangular factor and a value (d,) or (d, m)."""
    size = factor.shape[0]
    if size > LARGEST:
        return solve_triangular(factor, value, lower=True)
    found, rest = [], value
    for j in range(size):
        found.append(rest[0] / factor[j, j])
        below = factor[j + 1 :, j].reshape((-1,) + (1,) * (value.ndim - 1))
        rest = rest[1:] - below * found[-1]
    return jnp.stack(found)
