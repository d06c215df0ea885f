"""Are both forms of the item response models one model, with the density that their file says?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats

import amortax as am
from amortax.models import item_response
from amortax.models.item_response import Priors

PRIORS = Priors(ability_scale=0.8, difficulty_mean=-0.3, difficulty_scale=1.5, discrimination_scale=0.4)


@pytest.mark.parametrize("discriminating", [False, True])
def test_both_forms_have_the_density_of_scipy(discriminating):
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 2, (5, 3))
    difficulty, ability, slope = rng.standard_normal(3), rng.standard_normal((5, 1)), rng.uniform(0.5, 2.0, 3)
    latents = {"difficulty": difficulty, "u": ability / 0.8} | ({"discrimination": slope} if discriminating else {})
    chance = 1 / (1 + np.exp(-(slope if discriminating else 1.0) * (ability - difficulty)))
    expected = stats.bernoulli(chance).logpmf(correct).sum() + stats.norm.logpdf(ability / 0.8).sum()
    expected += stats.norm(-0.3, 1.5).logpdf(difficulty).sum()
    expected += stats.lognorm(0.4).logpdf(slope).sum() if discriminating else 0.0
    model = item_response.two_parameters if discriminating else item_response.one_parameter
    values = jax.tree.map(jnp.asarray, latents)
    shuffled = np.argsort(rng.uniform(size=(5, 3)), axis=1)
    long = (jnp.asarray(np.take_along_axis(correct, shuffled, axis=1)), jnp.asarray(shuffled))
    for arguments, options in (((jnp.asarray(correct),), {}), (long, {"num_items": 3})):
        found, _ = log_density(model, arguments, options | {"priors": PRIORS}, values)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("item", [None, jnp.zeros((2, 3), int)])
def test_it_is_said_where_the_items_are_not_known(item):
    with pytest.raises(am.ModelError, match="num_items"):
        item_response.one_parameter(None, item)
