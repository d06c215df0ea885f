"""What every family of distributions promises: a density, its draws, gradients, one trace, finite at the extremes."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import amortax as am
from amortax._recipe import from_json
from amortax._types import trainable
from amortax.families.base import draw_noise
from amortax.plan import RECIPES

CONTEXT = 3
EXACTLY_STANDARD = {"diagonal", "full"}  # `standardize` inverts the draw itself; else it scales the margins alone
FAMILIES = {
    "diagonal": lambda size: am.diagonal(width=8, depth=1),
    "full": lambda size: am.full(width=8, depth=1),
    "low_rank": lambda size: am.low_rank(min(2, size), width=8, depth=1),
}
EVERY = [(name, size, told) for name in FAMILIES for size, told in ((1, False), (2, True), (5, True))]
ON_A_GRID = [(name, size, told) for name in FAMILIES for size, told in ((1, True), (2, False))]


def family_of(name, size, told):
    """A built family whose every number is away from where training starts."""
    built = built_of(name, size, told)
    leaves, treedef = jax.tree.flatten(built)
    rng = np.random.default_rng(2)
    moved = [x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) if eqx.is_array(x) else x for x in leaves]
    return jax.tree.unflatten(treedef, moved)


def built_of(name, size, told):
    return FAMILIES[name](size).build(size, (CONTEXT, 1) if told else (), key=jax.random.key(1))


def context_of(told, scale=1.0):
    return (scale * jnp.asarray([0.5, -1.0, 2.0]), scale * jnp.asarray([-0.3])) if told else ()


def noise_of(family, seed, *count):
    return draw_noise(jax.random.key(seed), family, count)


def draw_many(family, context, count):
    return eqx.filter_jit(jax.vmap(lambda e: family.sample_and_log_prob(e, 0, context)))(noise_of(family, 3, count))


def normal_of(family, context):
    """(mean, covariance) by another way than the family's own density: the draw is affine in its noise."""
    noises = np.random.default_rng(4).standard_normal((family.noise_size + 1, family.noise_size))
    draw = eqx.filter_jit(jax.vmap(lambda noise: family.sample_and_log_prob(noise, 0, context)[0]))
    draws = np.asarray(draw(jnp.asarray(noises, jnp.float32)), np.float64)
    solved = np.linalg.solve(np.column_stack([np.ones(len(noises)), noises]), draws)
    return solved[0], solved[1:].T @ solved[1:]


@pytest.mark.parametrize(("name", "size", "told"), ON_A_GRID)
def test_the_density_integrates_to_one(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    mean, covariance = normal_of(family, context)
    axes = [m + np.sqrt(v) * np.linspace(-9, 9, 301) for m, v in zip(mean, np.diag(covariance), strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, size)
    density = eqx.filter_jit(jax.vmap(lambda value: family.log_prob(value, context)))(jnp.asarray(grid))
    cell = math.prod(axis[1] - axis[0] for axis in axes)
    assert np.exp(np.asarray(density, np.float64)).sum() * cell == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_the_density_of_draws_is_that_of_a_normal_with_their_covariance(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    values, log_prob = draw_many(family, context, 2_000)
    again = eqx.filter_jit(jax.vmap(lambda value: family.log_prob(value, context)))(values)
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


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_gradients_reach_every_number(name, size, told):
    # Both ways in which training uses a family: through a draw, and through the density of a given value.
    family, context = family_of(name, size, told), context_of(told)
    value = jnp.arange(1.0, size + 1)

    @eqx.filter_jit
    @eqx.filter_grad
    def through_draw(family):
        drawn, log_prob = family.sample_and_log_prob(noise_of(family, 6), 0, context)
        return jnp.sum(jnp.sin(drawn)) + log_prob

    @eqx.filter_jit
    @eqx.filter_grad
    def through_density(family):
        return family.log_prob(value, context)

    numbers = [x for x in jax.tree.leaves(family) if eqx.is_array(x)]
    assert len(jax.tree.leaves(eqx.filter(family, trainable(family)))) == len(numbers)  # none is left out of training
    for gradient in (through_draw(family), through_density(family)):
        assert len(jax.tree.leaves(gradient)) == len(numbers)
        for leaf in jax.tree.leaves(gradient):
            assert np.all(np.isfinite(leaf))
            assert np.all(np.any(np.asarray(leaf) != 0, axis=tuple(range(1, leaf.ndim))))


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_a_family_starts_near_standard_normal_and_still_has_a_gradient_everywhere(name, size, told):
    built = built_of(name, size, told)
    mean, covariance = normal_of(built, context_of(told))
    largest, smallest = (2.0, 0.4) if told else (0.7, 0.1)  # globals start at about a third of the prior's spread
    assert np.all(np.abs(mean) < 1)
    assert np.all((np.sqrt(np.diag(covariance)) > smallest) & (np.sqrt(np.diag(covariance)) < largest))
    gradient = eqx.filter_grad(lambda f: f.log_prob(jnp.arange(1.0, size + 1), context_of(told)))(built)
    assert np.all(np.asarray(gradient.parameters.offset) != 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_units_and_one_trace(name):
    family, size = family_of(name, 5, True), 5
    traces = []

    @eqx.filter_jit
    def batch(family, values, contexts):
        traces.append(1)
        return jax.vmap(family.log_prob)(values, contexts)

    rng = np.random.default_rng(7)
    values = jnp.asarray(rng.standard_normal((4, size)), jnp.float32)
    contexts = tuple(jnp.asarray(rng.standard_normal((4, size)), jnp.float32) for size in (CONTEXT, 1))
    together = batch(family, values, contexts)
    other = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, family)
    batch(other, values + 1, jax.tree.map(lambda x: x - 1, contexts))
    assert len(traces) == 1
    alone = [family.log_prob(value, tuple(context)) for value, *context in zip(values, *contexts, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_extremes_are_finite_in_value_and_gradient(name, size, told):
    family = family_of(name, size, told)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def both(numbers):
        family, value, context = numbers
        drawn, log_prob = family.sample_and_log_prob(noise_of(family, 8), 0, context)
        return family.log_prob(value, context) + log_prob + jnp.sum(drawn) + jnp.sum(family.standardize(value, context))

    mean, covariance = normal_of(family, context_of(told))
    sd = np.sqrt(np.diag(covariance))
    for away in (-30.0, 30.0):
        value, gradient = both((family, jnp.asarray(mean + away * sd, jnp.float32), context_of(told)))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradient)))
    built = built_of(name, size, told)
    for scale in (-1e3, 1e3) if told else ():
        value, gradient = both((built, jnp.ones(size), context_of(told, scale)))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradient)))


@pytest.mark.parametrize("name", FAMILIES)
def test_scales_are_bounded_whatever_the_numbers(name):
    family = family_of(name, 2, False)
    offset = family.parameters.offset
    for free, expected in ((-1e6, math.exp(-15)), (1e6, math.exp(5))):
        extreme = eqx.tree_at(lambda f: f.parameters.offset, family, jnp.zeros_like(offset).at[2:4].set(free))
        _, covariance = normal_of(extreme, ())
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), expected, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_survives_json(name):
    recipe = FAMILIES[name](5)
    again = from_json(json.loads(json.dumps(recipe.to_json())), RECIPES)
    assert again == recipe
    assert type(again) is type(recipe)
    assert again != FAMILIES["full" if name == "diagonal" else "diagonal"](5)


def test_recipes_of_other_versions_are_refused():
    with pytest.raises(am.ArtifactError, match="'spline' is not one of"):
        from_json({"recipe": "spline"}, RECIPES)
    with pytest.raises(am.ArtifactError, match=r"'full' has no option \['knots'\]"):
        from_json({"recipe": "full", "knots": 3}, RECIPES)


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_that_does_not_fit_is_an_error(rank):
    with pytest.raises(am.GuideError, match=rf"rank={rank}\) on 5 dimensions: rank must be 1 to 5"):
        am.low_rank(rank).build(5, (), key=jax.random.key(0))
