"""What every family of distributions promises: a density, its draws, gradients, one trace, finite at the extremes."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import (
    CONTEXT,
    FAMILIES,
    WITHOUT_CONTEXT,
    built_of,
    cases,
    context_of,
    density_of,
    draw_many,
    family_of,
    noise_of,
)

import amortax as am
from amortax._recipe import from_json
from amortax._types import trainable
from amortax.recipes import RECIPES

EVERY = cases(FAMILIES, (1, False), (5, True))
ALL = EVERY + cases(WITHOUT_CONTEXT, (5, False))
ON_A_GRID = cases(FAMILIES, (1, True), (2, False)) + cases(WITHOUT_CONTEXT, (1, False), (2, False))
NO_MAP = (
    "low_rank",
    "blocks",
    "curved_blocks",
    "student_t",
    "heavy_coupling",
    "mixture",
    "mixture_of_flows",
)  # more noise than numbers
MAPS = cases([name for name in FAMILIES if name not in NO_MAP], (5, True))


@pytest.mark.parametrize(("name", "size", "told"), ON_A_GRID)
def test_the_density_integrates_to_one(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    mean, sd = (np.asarray(x, np.float64) for x in family.mean_and_sd(context))
    steps = np.linspace(-7, 7, 8001 if size == 1 else 501)  # sinh of it reaches 500 sd, where heavy tails end
    grid = np.stack(np.meshgrid(*[np.sinh(steps)] * size, indexing="ij"), axis=-1).reshape(-1, size)
    log_cell = np.log(np.sqrt(1 + grid**2) * sd * (steps[1] - steps[0])).sum(axis=1)
    density = density_of(family, jnp.asarray(mean + sd * grid, jnp.float32), context)
    assert np.exp(np.asarray(density, np.float64) + log_cell).sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("name", "size", "told"), ALL)
def test_a_draw_comes_with_its_density_under_the_whole_family(name, size, told):
    family, context = family_of(name, size, told), context_of(told)
    values, log_prob = draw_many(family, context, 500)
    np.testing.assert_allclose(density_of(family, values, context), log_prob, rtol=1e-4, atol=2e-3)
    assert np.exp(family.log_shares(context)).sum() == pytest.approx(1.0, abs=1e-6)
    assert len(family.log_shares(context)) == family.num_components


@pytest.mark.parametrize(("name", "size", "told"), MAPS)
def test_the_log_determinant_is_that_of_the_map_from_noise(name, size, told):
    family, context = family_of(name, size, told), context_of(told)

    @eqx.filter_jit
    @jax.vmap
    def both(noise):
        value, log_prob = family.sample_and_log_prob(noise, 0, context)
        return log_prob, jax.jacfwd(lambda e: family.sample_and_log_prob(e, 0, context)[0])(noise)

    noise = noise_of(family, 5, 50)
    log_prob, jacobian = both(noise)
    standard = -0.5 * np.asarray(noise, np.float64) ** 2 - 0.5 * math.log(2 * math.pi)
    expected = standard.sum(axis=1) - np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("name", "size", "told"), ALL)
def test_gradients_reach_every_number(name, size, told):
    # Both ways in which training uses a family: through a draw, and through the density of a given value.
    family, context = family_of(name, size, told), context_of(told)
    noises, values = noise_of(family, 6, 4), jnp.arange(1.0, 4 * size + 1).reshape(4, size) / size

    @eqx.filter_jit
    @eqx.filter_grad
    def through_draw(family):
        draw = jax.vmap(family.sample_and_log_prob, in_axes=(0, None, None))
        each = jax.vmap(lambda component: draw(noises, component, context))
        drawn, log_prob = each(jnp.arange(family.num_components))
        return jnp.exp(family.log_shares(context)) @ jnp.sum(jnp.sum(jnp.sin(drawn), axis=2) + log_prob, axis=1)

    @eqx.filter_jit
    @eqx.filter_grad
    def through_density(family):
        return jnp.sum(jax.vmap(family.log_prob, in_axes=(0, None))(values, context))

    trained = eqx.filter(family, trainable(family))
    for gradient in (through_draw(family), through_density(family)):
        leaves = jax.tree.leaves(eqx.filter(gradient, trainable(family)))
        assert len(leaves) == len(jax.tree.leaves(trained))
        for leaf in leaves:
            assert np.all(np.isfinite(leaf))
            # The first axis is that of layers or components where there are any.
            assert leaf.size == 0 or np.all(np.any(np.asarray(leaf) != 0, axis=tuple(range(1, leaf.ndim))))


@pytest.mark.parametrize(("name", "size", "told"), EVERY)
def test_a_family_starts_near_standard_normal(name, size, told):
    built, context = built_of(name, size, told), context_of(told)
    values = np.asarray(draw_many(built, context, 2000)[0], np.float64)
    largest, smallest = (2.0, 0.4) if told else (0.7, 0.1)  # globals start at about a third of the prior's spread
    if built.num_components > 1:  # the components start apart
        largest += 0.5
    assert np.all(np.abs(values.mean(axis=0)) < 1)
    assert np.all((values.std(axis=0) > smallest) & (values.std(axis=0) < largest))
    standard = np.asarray(jax.vmap(lambda value: built.standardize(value, context))(jnp.asarray(values, jnp.float32)))
    assert np.all(np.abs(standard.mean(axis=0)) < 0.3)
    assert np.all((standard.std(axis=0) > 0.7) & (standard.std(axis=0) < 1.5))


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
    contexts = tuple(jnp.asarray(rng.standard_normal((4, size)), jnp.float32) for size in CONTEXT)
    together = batch(family, values, contexts)
    other = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, family)
    batch(other, values + 1, jax.tree.map(lambda x: x - 1, contexts))
    assert len(traces) == 1
    alone = eqx.filter_jit(lambda value, context: family.log_prob(value, context))
    one_by_one = [alone(value, tuple(context)) for value, *context in zip(values, *contexts, strict=True)]
    np.testing.assert_allclose(together, np.stack(one_by_one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "size", "told"), ALL)
def test_extremes_are_finite_in_value_and_gradient(name, size, told):
    family = family_of(name, size, told)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def both(numbers):
        family, value, context = numbers
        drawn, log_prob = family.sample_and_log_prob(noise_of(family, 8), 0, context)
        return family.log_prob(value, context) + log_prob + jnp.sum(drawn) + jnp.sum(family.standardize(value, context))

    mean, sd = family.mean_and_sd(context_of(told))
    for away in (-30.0, 30.0):
        value, gradient = both((family, mean + away * sd, context_of(told)))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradient)))
    built = built_of(name, size, told)
    for scale in (-1e3, 1e3) if told else ():
        value, gradient = both((built, jnp.ones(size), context_of(told, scale)))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradient)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_survives_json(name):
    recipe = FAMILIES[name](5)
    again = from_json(json.loads(json.dumps(recipe.to_json())), RECIPES)
    assert again == recipe
    assert type(again) is type(recipe)
    assert again != FAMILIES["full" if name == "diagonal" else "diagonal"](5)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_known_without_numbers_and_building_compiles(name):
    recipe = FAMILIES[name](5)
    shapes = eqx.filter_eval_shape(lambda key: recipe.build(5, CONTEXT, key=key), jax.random.key(0))
    built = eqx.filter_jit(lambda key: eqx.filter(recipe.build(5, CONTEXT, key=key), eqx.is_array))(jax.random.key(0))
    assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(built)]


def test_recipes_of_other_versions_are_refused():
    with pytest.raises(am.ArtifactError, match="'spline_of_old' is not one of"):
        from_json({"recipe": "spline_of_old"}, RECIPES)
    with pytest.raises(am.ArtifactError, match=r"'full' has no option \['knots'\]"):
        from_json({"recipe": "full", "knots": 3}, RECIPES)
