"""Mixed models on real tables: exact posteriors by `marginal`, published anchors, and what the recipes reach.

`shared` holds the data; a clone without it skips. Printed by `pytest -m slow -s`: worst mean difference in exact sd and
the range of sd ratios, over the globals.
"""

import math

import jax
import jax.numpy as jnp
import mixed_targets
import numpy as np
import pytest
from marginal import mode, weigh
from references import answer, differences, read_reference

import amortax as am


def test_the_likelihood_has_the_maximum_of_lme4(shared):
    """sleepstudy: -2 log L, coefficients, sds, correlation and σ to the printed digits."""
    units = mixed_targets.sleepstudy(shared).units
    found, value = mode(lambda v: mixed_targets.log_likelihood(units, v), mixed_targets.sleepstudy(shared).start)
    beta, sd, r, sigma = mixed_targets.split(found, 2, 2)
    assert abs(-2 * value - 1751.93934) < 1e-4
    np.testing.assert_allclose(beta, [251.40510, 10.46729], rtol=1e-5)
    np.testing.assert_allclose(sd, [23.7805, 5.7168], rtol=1e-4)
    np.testing.assert_allclose([r, sigma], [0.081, 25.5918], atol=5e-4)


def test_the_likelihood_has_the_maximum_of_nlme(shared):
    """orthodont: coefficients and their standard errors, which have nlme's factor of degrees of freedom."""
    target = mixed_targets.orthodont(shared)
    found, _ = mode(lambda v: mixed_targets.log_likelihood(target.units, v), target.start)
    np.testing.assert_allclose(found[:3], [17.70671, 0.66019, -2.32102], atol=2e-5)
    with jax.enable_x64(True):
        fixed = jnp.asarray(found[3:])
        curve = jax.jit(jax.hessian(lambda b: -mixed_targets.log_likelihood(target.units, jnp.concatenate([b, fixed]))))
        errors = np.sqrt(np.diagonal(np.linalg.inv(np.asarray(curve(jnp.asarray(found[:3]))))))
    np.testing.assert_allclose(errors * math.sqrt(108 / 105), [0.83155, 0.06209, 0.74307], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleepstudy", "orthodont", "seeds", "rats"])
def test_the_recipe_reaches_the_exact_posterior(shared, name):
    target = getattr(mixed_targets, name)(shared)
    exact = weigh(target.log_density, target.start, size=2**15)
    print(f"\n{name}: exact by {exact.ess:.0f} draws; ", end="")
    assert exact.ess > 4000
    draws, report = answer(target.model, target.units, "group", am.coupling(4), num_steps=2000)
    draws = target.of_draws(draws)
    off, low, high = differences(draws, exact.moments(target.quantities))
    assert off < 0.15
    assert low > 0.85
    assert high < 1.15
    assert report.verdict != "FAIL"
    if name in ("seeds", "rats"):
        file = {"seeds": "reference_exp_prior.csv", "rats": "reference.csv"}[name]
        print("  against JAGS: ", end="")
        off, low, high = differences(draws, read_reference(shared / "data/bugs" / name / file))
        assert off < 0.15  # upstream's own tolerance
        assert low > 0.85
        assert high < 1.15


@pytest.mark.slow
def test_counts_in_ragged_groups_with_correlated_slopes():
    target = mixed_targets.visits()
    exact = weigh(target.log_density, target.start, size=2**12, chunk=8)
    print(f"\nvisits: exact by {exact.ess:.0f} draws; ", end="")
    assert exact.ess > 2000
    draws, report = answer(target.model, target.units, "group", am.coupling(4), num_steps=2000)
    off, low, high = differences(target.of_draws(draws), exact.moments(target.quantities))
    assert off < 0.2
    assert low > 0.85
    assert high < 1.15
    assert report.verdict != "FAIL"
