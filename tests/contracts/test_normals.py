"""Are the normal families the normals that their draws say? Mean and covariance by another way than the density."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import NORMALS, cases, context_of, density_of, draw_many, family_of
from scipy import stats

import amortax as am

EXACTLY_STANDARD = {"diagonal", "full"}  # `standardize` inverts the draw itself; else it scales the margins alone
EVERY = cases(NORMALS, (1, False), (2, True), (5, True))


def normal_of(family, context):
    """(mean, covariance) by another way than the family's own density: the draw is affine in its noise."""
    noises = np.random.default_rng(4).standard_normal((family.noise_size + 1, family.noise_size))
    draw = eqx.filter_jit(jax.vmap(lambda noise: family.sample_and_log_prob(noise, 0, context)[0]))
    draws = np.asarray(draw(jnp.asarray(noises, jnp.float32)), np.float64)
    solved = np.linalg.solve(np.column_stack([np.ones(len(noises)), noises]), draws)
    return solved[0], solved[1:].T @ solved[1:]


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_the_density_of_draws_is_that_of_a_normal_with_their_covariance(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    values, log_prob = draw_many(family, context, 2_000)
    again = density_of(family, values, context)
    np.testing.assert_allclose(again, log_prob, rtol=1e-4, atol=1e-4)
    mean, covariance = normal_of(family, context)
    expected = stats.multivariate_normal(mean, covariance).logpdf(np.asarray(values, np.float64))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)

    # and the draws have that mean and covariance, within five standard errors of each entry
    away = np.asarray(values, np.float64) - mean
    products = np.einsum("ni,nj->nij", away, away)
    error = products.std(axis=0) / math.sqrt(len(away))
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 5 * error)
    assert np.all(np.abs(away.mean(axis=0)) < 5 * np.sqrt(np.diag(covariance) / len(away)))


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_standardize_makes_standard_normals_of_the_draws(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    values, log_prob = draw_many(family, context, 2_000)
    standard = np.asarray(eqx.filter_jit(jax.vmap(lambda v: family.standardize(v, context)))(values), np.float64)
    error = 5 / math.sqrt(len(standard))
    assert np.all(np.abs(standard.mean(axis=0)) < error)
    assert np.all(np.abs(standard.var(axis=0) - 1) < math.sqrt(2) * error)
    if name in EXACTLY_STANDARD:  # then the two densities differ by a constant, the log-determinant
        off = stats.norm.logpdf(standard).sum(axis=1) - np.asarray(log_prob)
        np.testing.assert_allclose(off, off[0], atol=2e-4)


@pytest.mark.parametrize("name", [name for name in NORMALS if name != "blocks"])  # whose top is a full normal
def test_scales_are_bounded_whatever_the_numbers(name):
    family = family_of(name, 2, False)
    offset = family.parameters.offset
    for free, expected in ((-1e6, math.exp(-15)), (1e6, math.exp(5))):
        extreme = eqx.tree_at(lambda f: f.parameters.offset, family, jnp.zeros_like(offset).at[2:4].set(free))
        _, covariance = normal_of(extreme, ())
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), expected, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_does_not_fit_is_an_error(rank):
    with pytest.raises(am.GuideError, match=rf"rank={rank}\) on 5 dimensions: rank must be 1 to 5"):
        am.low_rank(rank).build(5, (), key=jax.random.key(0))
