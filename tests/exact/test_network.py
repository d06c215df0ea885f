"""Is the activation, whose slope is written by hand, what it says, forwards, backwards, and twice?"""

import jax
import jax.numpy as jnp
import numpy as np

from amortax._network import silu


def test_silu_and_its_slopes_are_those_of_the_formula():
    x = np.linspace(-30.0, 30.0, 1201)
    share = 1 / (1 + np.exp(-x))
    slope = share * (1 + x * (1 - share))
    bend = share * (1 - share) * (2 + x * (1 - 2 * share))
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(silu(given), x * share, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(silu))(given), slope, atol=1e-6)
    np.testing.assert_allclose(jax.jvp(silu, (given,), (jnp.ones_like(given),))[1], slope, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.hessian(silu))(given), bend, atol=1e-6)
