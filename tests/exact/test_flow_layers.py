"""Is every layer of a flow the map that its paper writes? Structure of dependence, splines by NumPy, bounds, cost."""

import math
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import amortax as am
from amortax.families.autoregressive import Autoregressive, Masked
from amortax.families.flow import build_flow
from amortax.families.spline import SMALLEST, Spline
from amortax.families.transforms import BOUND, Affine

KEY = jax.random.key(0)


@pytest.mark.parametrize(("size", "width", "depth"), [(1, 8, 1), (5, 8, 2), (12, 8, 1), (12, 3, 2), (4, 1, 0)])
def test_a_masked_network_tells_each_number_all_that_stand_before_it_and_no_more(size, width, depth):
    network = Masked(size, (2,), Affine(), width, depth, key=KEY)
    context = (jnp.asarray([0.4, -1.0]),)
    told = lambda value, context: network.told(value, context)  # noqa: E731
    by_value, by_context = jax.jit(jax.jacobian(told, argnums=(0, 1)))(jnp.ones(size), context)
    before = np.tril(np.ones((size, size), bool), -1)
    for each in np.asarray(by_value):  # (told about i, of number j), for every free number of the transform
        np.testing.assert_array_equal(each != 0, before)
    assert np.all(np.asarray(by_context[0]) != 0)


def equations(jaxpr, times=1):
    """(equation, how often it runs) of a jaxpr and of all inside it."""
    for equation in jaxpr.eqns:
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        yield equation, inside
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))):
            if isinstance(inner, (Jaxpr, ClosedJaxpr)):
                yield from equations(getattr(inner, "jaxpr", inner), inside)


@pytest.mark.parametrize(("recipe", "draw", "density"), [(am.iaf, 1, 5), (am.maf, 5, 1), (am.coupling, 1, 1)])
def test_draws_and_densities_take_the_passes_of_the_paper(recipe, draw, density):
    layers, size = 3, 6
    family = recipe(layers, width=8).build(size, (), key=KEY)
    drawn = jax.make_jaxpr(lambda noise: family.sample_and_log_prob(noise, 0, ()))(jnp.zeros(size))
    dense = jax.make_jaxpr(lambda value: family.log_prob(value, ()))(jnp.zeros(size))
    assert max(times for _, times in equations(drawn.jaxpr)) == layers * draw
    assert max(times for _, times in equations(dense.jaxpr)) == layers * density
    assert family.cheap_log_prob == (density == 1)


@pytest.mark.parametrize("recipe", [am.coupling, am.maf, am.iaf, am.planar])
def test_more_layers_are_not_a_longer_program(recipe):
    def program(layers):
        family = recipe(layers, width=8).build(4, (2,), key=KEY)
        made = jax.make_jaxpr(lambda noise: family.sample_and_log_prob(noise, 0, (jnp.ones(2),)))(jnp.zeros(4))
        return len(list(equations(made.jaxpr)))

    assert program(2) == program(16)


def test_the_context_of_many_draws_is_multiplied_once():
    family = am.coupling(2, width=8).build(4, (32,), key=KEY)
    draw = jax.vmap(lambda noise, given: family.sample_and_log_prob(noise, 0, (given,)), in_axes=(0, None))
    made = jax.make_jaxpr(draw)(jnp.zeros((100, 4)), jnp.ones(32))
    products = [e for e, _ in equations(made.jaxpr) if e.primitive.name == "dot_general"]
    of_context = [[v.aval.shape for v in e.invars] for e in products if any(32 in v.aval.shape for v in e.invars)]
    assert of_context
    assert all(100 not in shape for shapes in of_context for shape in shapes)


def spline_by_numpy(x, free, bins, bound):
    """Durkan et al. 2019, equations 4 and 5, in double precision, for one number."""
    if abs(x) >= bound:
        return x, 0.0
    softmax = lambda a: np.exp(a - a.max()) / np.exp(a - a.max()).sum()  # noqa: E731
    width, height = (2 * bound * (SMALLEST + (1 - SMALLEST * bins) * softmax(free[i * bins :][:bins])) for i in (0, 1))
    inner = SMALLEST + np.log1p(np.exp(free[2 * bins :] + np.log(np.expm1(1 - SMALLEST))))
    slope = np.concatenate([[1.0], inner, [1.0]])
    left, bottom = (-bound + np.concatenate([[0.0], np.cumsum(sizes)]) for sizes in (width, height))
    k = min(np.searchsorted(left, x, side="right") - 1, bins - 1)
    s, xi = height[k] / width[k], (x - left[k]) / width[k]
    below = s + (slope[k + 1] + slope[k] - 2 * s) * xi * (1 - xi)
    y = bottom[k] + height[k] * (s * xi**2 + slope[k] * xi * (1 - xi)) / below
    rise = s**2 * (slope[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slope[k] * (1 - xi) ** 2)
    return y, math.log(rise / below**2)


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_a_spline_is_that_of_the_paper_and_its_inverse_undoes_it(spread):
    spline = Spline(6, 4.0)
    free = spread * np.random.default_rng(0).standard_normal(spline.count)
    x = np.concatenate([np.linspace(-6, 6, 2001), [-4.0, 4.0, 30.0, -30.0]]).astype(np.float32)
    told = jnp.broadcast_to(jnp.asarray(free, jnp.float32)[:, None], (spline.count, len(x)))
    y, log_slope = jax.jit(spline.forward)(jnp.asarray(x), told)
    image, expected = np.array([spline_by_numpy(float(value), free, 6, 4.0) for value in x]).T
    # A number is known to about 16 roundings of float32 at 4; a slope makes more or less of that.
    rounding = 16 * np.finfo(np.float32).eps * 4
    assert np.all(np.abs(y - image) < rounding * (1 + np.exp(expected)))
    back, again = jax.jit(spline.inverse)(y, told)
    assert np.all(np.abs(back - x) < rounding * (1 + np.exp(-expected)))
    print(f"spread {spread}: log slopes off by {np.abs(log_slope - expected).max():.1e}, ", end="")
    there = np.array([spline_by_numpy(float(value), free, 6, 4.0)[1] for value in np.asarray(back)])
    print(f"of the inverse by {np.abs(again - there).max():.1e}; they reach {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(log_slope, expected, atol=1e-3)
    np.testing.assert_allclose(again, there, atol=1e-3)
    if spread == 0:
        np.testing.assert_allclose(y, x, atol=rounding)


@pytest.mark.parametrize("recipe", [am.coupling(2, width=8), am.maf(2, width=8), am.iaf(2, width=8), am.planar(2)])
def test_the_scales_of_a_flow_are_bounded_whatever_its_numbers(recipe):
    family = recipe.build(3, (), key=KEY)
    for free, expected in ((-1e6, math.exp(-15)), (1e6, math.exp(5))):
        extreme = eqx.tree_at(lambda f: f.outer.parameters.offset, family, jnp.zeros(9).at[:6].set(free))
        np.testing.assert_allclose(extreme.mean_and_sd(())[1], expected, rtol=1e-4)


def test_a_layer_scales_within_its_bound_whatever_its_network_says():
    told = jnp.asarray([[-1e6, 0.0, 1e6], [0.0, 0.0, 0.0]])
    for move in (Affine().forward, Affine().inverse):
        np.testing.assert_allclose(move(jnp.ones(3), told)[1], [-BOUND, 0.0, BOUND])


@pytest.mark.parametrize("recipe", [am.coupling(), am.coupling(transform=am.spline())])
def test_a_coupling_on_one_dimension_is_refused_with_what_fits(recipe):
    with pytest.raises(am.GuideError, match=r"one half of the numbers by the other; take am.maf\(.*am.mixture"):
        recipe.build(1, (), key=KEY)


def test_the_outer_map_of_a_flow_must_be_affine():
    recipe = SimpleNamespace(layers=2, width=8, depth=1, base=None, outer=am.low_rank(1))  # types are checked in tests
    with pytest.raises(am.GuideError, match="an affine map, got low_rank"):
        build_flow(recipe, 3, (), lambda key: Autoregressive(Masked(3, (), Affine(), 8, 1, key=key)), key=KEY)
