"""Small factors and solves against NumPy's, with their gradients; and nothing of LAPACK's in a compiled sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax._linalg import LARGEST, cholesky, solve_lower
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise

SIZES = (1, 2, 3, 8, LARGEST, LARGEST + 1)


def positive(size, count=20):
    half = np.random.default_rng(size).standard_normal((count, size, size + 2))
    return (half @ half.transpose(0, 2, 1) / size + 0.1 * np.eye(size)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_factors_and_solves_are_numpys(size):
    matrices, rng = positive(size), np.random.default_rng(0)
    factors = jax.jit(jax.vmap(cholesky))(matrices)
    expected = np.linalg.cholesky(matrices.astype(np.float64))
    np.testing.assert_allclose(factors, expected, atol=2e-5 * np.abs(expected).max())
    for value in (rng.standard_normal(size), rng.standard_normal((size, 3))):
        solved = jax.jit(jax.vmap(solve_lower, in_axes=(0, None)))(expected, jnp.asarray(value, jnp.float32))
        exact = np.stack([np.linalg.solve(factor, value) for factor in expected])
        np.testing.assert_allclose(solved, exact, atol=1e-4 * np.abs(exact).max())


def test_gradients_are_those_of_jax():
    matrix, value = jnp.asarray(positive(4)[0]), jnp.arange(1.0, 5.0)

    def by(factor, solve):
        return jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(solve(factor(0.5 * (m + m.T)), value)))))(matrix)

    theirs = by(jnp.linalg.cholesky, lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True))
    np.testing.assert_allclose(by(cholesky, solve_lower), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3, LARGEST + 1])
def test_what_is_not_positive_definite_has_no_finite_factor(size):
    matrix = jnp.asarray(positive(size)[0])
    for row in range(size):
        assert not np.all(np.isfinite(jax.jit(cholesky)(matrix.at[row, row].set(-1.0))))


def test_a_compiled_sampler_of_small_units_calls_no_lapack():
    # Two batched calls of LAPACK in one program can wait for each other for good where the pool has two threads.
    def model(x):
        level = numpyro.sample("level", dist.Normal(0, 1).expand([3]).to_event(1))
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(level, 1).to_event(1))
            numpyro.sample("x", dist.Normal(jnp.sin(z), 1).to_event(1), obs=x)

    plan = am.amortize(model, {"x": np.zeros((20, 3), np.float32)}, plate="unit", head=am.newton(), family=am.full())
    batch = to_batch(as_units({"x": np.zeros((20, 3), np.float32)}, model, "unit"))
    joint, guide = initialise(plan, batch, jax.random.key(0))

    def both_ways(key):
        shared, log_shared = guide.sample_shared(key)
        noise, contexts = guide.local_noise(key, joint, batch, 20), guide.encode(batch)
        local, log_q = guide.place_locals(noise, 0, contexts, shared, batch, joint)
        return log_shared + jnp.sum(log_q + guide.locals_log_prob(local, contexts, shared, batch, joint))

    program = jax.jit(jax.vmap(both_ways)).lower(jax.random.split(jax.random.key(0), 4)).as_text()
    assert "lapack" not in program
