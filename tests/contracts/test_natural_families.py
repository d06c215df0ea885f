"""What every exponential family promises a natural step: exact from few draws, where log p is of the family."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import SITES
from scipy import stats

import amortax as am
from amortax.families.base import draw_noise
from amortax.families.dirichlet import Dirichlet, to_free, to_log_shares
from amortax.families.gamma import NOISES, Gamma, implicit_slope, log_gamma

RECIPES = {
    "diagonal": (am.diagonal(), 3),
    "full": (am.full(), 3),
    "full_of_20": (am.full(), 20),
    "exponential_family": (am.exponential_family(sites=SITES[5]), 5),
    "one_rate": (am.exponential_family(sites=SITES[1]), 1),
    "shares": (am.exponential_family(sites=(("shares", "Simplex()", (3,)),)), 3),
}


def pair(name):
    """Two members of a family, both away from where training starts, the second narrower if numbers say how narrow."""
    recipe, size = RECIPES[name]
    rng, built = np.random.default_rng(1), recipe.build(size, (), key=jax.random.key(0))

    def moved(by):
        return jax.tree.map(lambda x: x + by + 0.3 * rng.standard_normal(x.shape).astype(np.float32), built)

    return moved(0.0), moved(0.4)


@eqx.filter_jit
def stepped(family, target, noise, rate):
    def slope(value):
        return jax.grad(lambda u: target.log_prob(u, ()) - family.log_prob(u, ()))(value)

    values = jax.vmap(lambda e: family.sample_and_log_prob(e, 0, ())[0])(noise)
    return family.natural_step(noise, jax.vmap(slope)(values), rate), values


@eqx.filter_jit
def log_probs(family, values):
    return jax.vmap(lambda value: family.log_prob(value, ()))(values)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("name", ["diagonal", "full", "full_of_20", "exponential_family", "one_rate"])
def test_a_step_of_rate_one_lands_on_a_density_of_the_family(name, mirrored):
    family, target = pair(name)
    noise = draw_noise(jax.random.key(2), family, (family.draws_needed,))
    noise = jnp.concatenate([noise[::2], -noise[::2]]) if mirrored else noise
    found, values = stepped(family, target, noise, jnp.ones(()))
    gap = np.abs(log_probs(found, values) - log_probs(target, values))
    print(name, "largest difference of log densities", gap.max(), "before", np.abs(log_probs(family, values)).max())
    assert gap.max() < 2e-3 * max(1.0, float(np.abs(log_probs(target, values)).max()) ** 0.5)


@pytest.mark.parametrize("name", ["diagonal", "full", "one_rate", "shares"])
def test_a_short_step_is_the_natural_gradient(name):
    """In the mean over draws: from q a step of rate ρ to p of the same family goes ρ of the way between them."""
    family, target = pair(name)
    rate, count = 0.02, 4000
    noise = draw_noise(jax.random.key(3), family, (count,))
    found, values = stepped(family, target, noise, jnp.asarray(rate))
    away = np.asarray(log_probs(target, values) - log_probs(family, values), np.float64)
    moved = np.asarray(log_probs(found, values) - log_probs(family, values), np.float64)
    slope = np.cov(away, moved)[0, 1] / away.var()
    rest = np.std(moved / rate - away) / np.std(away)
    print(name, "share of the way", slope / rate, "beside it", rest)
    assert slope / rate == pytest.approx(1.0, abs=0.05)
    assert rest < 0.1


@pytest.mark.parametrize("shape", [0.01, 0.3, 1.0, 4.0, 15.0, 60.0, 3000.0])
def test_a_gamma_is_drawn_from_normals_with_its_implicit_slope(shape):
    count = 100_000
    noise = jax.random.normal(jax.random.key(4), (count, NOISES))
    shapes = jnp.full(count, shape, jnp.float32)
    drawn = np.asarray(jax.jit(log_gamma)(shapes, noise), np.float64)
    if shape < 1:  # x ** shape, which float64 can hold
        value = np.exp(np.minimum(drawn, 700))
        assert stats.kstest(stats.gamma.cdf(value, shape), "uniform").pvalue > 1e-4
    else:
        assert stats.kstest(np.exp(drawn), stats.gamma(shape).cdf).pvalue > 1e-4
    levels = np.linspace(0.02, 0.98, 25)
    step = 1e-4 * shape
    values = stats.gamma.ppf(levels, shape)
    kept = values > 1e-30  # of those that float32 and SciPy hold
    high, low = (np.log(stats.gamma.ppf(levels[kept], shape + s)) for s in (step, -step))
    expected = (high - low) / (2 * step)
    found = jax.jit(implicit_slope)(jnp.full(kept.sum(), shape), jnp.asarray(np.log(values[kept]), jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=3e-3)


def test_shares_are_on_the_scale_of_numpyro():
    from numpyro.distributions import biject_to, constraints

    free = jnp.asarray(np.random.default_rng(5).standard_normal((3, 4)), jnp.float32)
    expected = biject_to(constraints.simplex)(free)
    np.testing.assert_allclose(jnp.exp(to_log_shares(free)), expected, rtol=1e-5)
    np.testing.assert_allclose(to_free(jnp.log(expected)), free, rtol=1e-4, atol=1e-5)


def test_a_step_never_leaves_the_family():
    """However wrong slopes are: shapes, rates and concentrations stay positive."""
    noise = jax.random.normal(jax.random.key(6), (2, NOISES * 3))
    slopes = 1e6 * jax.random.normal(jax.random.key(7), (2, 3))
    normals = [recipe.build(3, (), key=jax.random.key(9)) for recipe in (am.diagonal(), am.full())]

    @jax.jit
    def all_steps(rate):
        shares = Dirichlet.start(1, 3, key=jax.random.key(8)).natural_step(noise, slopes[:, :2], rate)
        each = [normal.natural_step(noise[:, :3], slopes, rate).parameters.offset for normal in normals]
        shapes = Gamma.near_one(3).natural_step(noise, slopes, rate)
        return each, shares.log_concentration, shapes.log_shape, shapes.log_rate

    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(all_steps(jnp.asarray(0.5))))
