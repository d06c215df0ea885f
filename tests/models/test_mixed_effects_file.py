"""Are the mixed models what their file says: densities against SciPy's, designs and priors by hand?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import stats

import amortax as am
from amortax.models import mixed_effects
from amortax.models.mixed_effects import Priors

RATS = {
    "rat": ["a", "a", "b", "b", "b"],
    "weight": [2.0, 3.0, 4.0, 4.5, 6.0],
    "week": [0.0, 1.0, 0.0, 1.0, 2.0],
    "diet": ["low", "low", "high", "high", "high"],
    "eaten": [3, 4, 9, 8, 9],
}


@pytest.fixture
def numbers():
    """Arguments for three groups of four rows, two fixed and two random effects, and a value of every latent."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 2))
    trials, y = rng.integers(3, 9, (3, 4)), rng.integers(0, 4, (3, 4))
    cholesky = np.array([[1.0, 0.0], [0.6, 0.8]])
    latents = {"beta": np.array([0.3, -0.2]), "sd": np.array([0.5, 1.2]), "u": rng.standard_normal((3, 1, 2))}
    return x, trials, y, latents | {"cholesky": cholesky}


def prior(latents):
    """Log density of all latents but σ under the default priors."""
    return (
        stats.norm(0, 2.5).logpdf(latents["beta"]).sum()
        + stats.halfnorm(0, 2.5).logpdf(latents["sd"]).sum()
        + stats.norm.logpdf(latents["u"]).sum()
        + float(dist.LKJCholesky(2, 1.0).log_prob(latents["cholesky"]))
    )


def test_densities_are_those_of_scipy(numbers):
    x, trials, y, latents = numbers
    b = latents["u"][:, 0] @ (latents["sd"][:, None] * latents["cholesky"]).T
    predictor = x @ latents["beta"] + np.einsum("grq,gq->gr", x, b)
    sigma = 0.7
    expected = {
        "gaussian": stats.norm(predictor, sigma).logpdf(y).sum() + stats.halfnorm(0, 2.5).logpdf(sigma),
        "binomial": stats.binom(trials, 1 / (1 + np.exp(-predictor))).logpmf(y).sum(),
        "poisson": stats.poisson(trials * np.exp(predictor)).logpmf(y).sum(),
    }
    values = jax.tree.map(jnp.asarray, latents)
    arguments = {"gaussian": (x, x), "binomial": (x, x, trials), "poisson": (x, x, trials)}
    for name, known in arguments.items():
        own = values | ({"sigma": jnp.asarray(sigma)} if name == "gaussian" else {})
        found, trace = log_density(getattr(mixed_effects, name), (*map(jnp.asarray, known), jnp.asarray(y)), {}, own)
        np.testing.assert_allclose(found, expected[name] + prior(latents), rtol=1e-5)
        np.testing.assert_allclose(trace["effect"]["value"][:, 0], b, rtol=1e-5)


def test_a_design_has_intercepts_contrasts_and_names():
    rows = mixed_effects.design(
        RATS,
        group="rat",
        response="weight",
        fixed=["week", "diet"],
        random=["week"],
        categories={"diet": None},
        beside={"trials": "eaten"},
    )
    assert rows.fixed == ("1", "week", "diet[low]")
    assert rows.random == ("1", "week")
    x, z, trials = (rows.units.arrays[name] for name in ("x", "z", "trials"))
    np.testing.assert_array_equal(x[0, :2], [[1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(x[1], [[1, 0, 0], [1, 1, 0], [1, 2, 0]])
    np.testing.assert_array_equal(z, x[..., :2])
    np.testing.assert_array_equal(trials[1], [9, 8, 9])
    assert rows.units.lengths["x"].tolist() == [2, 3]
    assert not rows.units.masks["x"][0, 2].any()


def test_new_groups_have_the_columns_of_the_first_design():
    first = mixed_effects.design(RATS, group="rat", response="weight", fixed=["diet"], categories={"diet": None})
    new = {"rat": ["c"], "diet": ["low"]}
    rows = mixed_effects.design(new, group="rat", response=None, fixed=["diet"], categories=first.categories)
    assert rows.fixed == first.fixed
    np.testing.assert_array_equal(rows.units.arrays["x"], [[[1, 1]]])
    assert "y" not in rows.units.arrays


def test_a_missing_covariate_is_named_and_a_missing_response_is_masked():
    with pytest.raises(am.DataError, match="'week' is missing at rat 'b', row 1 of it"):
        mixed_effects.design(
            RATS | {"week": [0.0, 1.0, 0.0, None, 2.0]}, group="rat", response="weight", fixed=["week"]
        )
    rows = mixed_effects.design(RATS | {"weight": [2.0, None, 4.0, 4.5, 6.0]}, group="rat", response="weight")
    np.testing.assert_array_equal(rows.units.masks["y"], [[True, False, False], [True, True, True]])
    assert rows.units.masks["x"][0, 1].all()


def test_priors_have_the_scale_of_the_data():
    rows = mixed_effects.design(RATS, group="rat", response="weight", fixed=["week"], random=["week"])
    y, week = np.array(RATS["weight"]), np.array(RATS["week"])
    slope = 2.5 * y.std() / week.std()
    middle = np.hypot(2.5 * y.std(), slope * week.mean())
    found = mixed_effects.gaussian_priors(rows.units)
    np.testing.assert_allclose(found.beta.loc, [y.mean(), 0], rtol=1e-6)
    np.testing.assert_allclose(found.beta.scale, [middle, slope], rtol=1e-6)
    np.testing.assert_allclose(found.sd.scale, [2.5 * y.std(), slope], rtol=1e-6)
    np.testing.assert_allclose(found.sigma.scale, 2.5 * y.std(), rtol=1e-6)
    np.testing.assert_allclose(mixed_effects.link_priors(rows.units).beta.loc, [0, 0])
    np.testing.assert_allclose(mixed_effects.link_priors(rows.units).sd.scale, [2.5, 2.5 / week.std()], rtol=1e-6)


def test_responses_that_are_all_one_number_have_no_scale():
    rows = mixed_effects.design(RATS | {"weight": [2.0] * 5}, group="rat", response="weight")
    with pytest.raises(am.DataError, match=r"all 5 responses data\['y'\] are 2.0"):
        mixed_effects.gaussian_priors(rows.units)


@pytest.mark.parametrize("name", ["gaussian", "binomial", "poisson"])
def test_ragged_groups_pass_the_probe(name):
    """Density of three groups together and one by one, with gaps: `amortize` refuses anything else."""
    beside = {"gaussian": {}, "binomial": {"trials": "trials"}, "poisson": {"exposure": "trials"}}[name]
    table = RATS | {"trials": [9, 9, 9, 9, 9], "eaten": [3.0, 4.0, 9.0, None, 9.0]}
    rows = mixed_effects.design(table, group="rat", response="eaten", fixed=["week"], random=["week"], beside=beside)
    model = functools.partial(getattr(mixed_effects, name), priors=Priors(concentration=None))
    plan = am.amortize(model, rows.units, plate="group")
    assert [site.name for site in plan.structure.of("local")] == ["u"]
