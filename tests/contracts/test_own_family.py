"""A family with parameters from a row is that family: same density, draws, shares, moments and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import built_of, family_of, noise_of
from jax.flatten_util import ravel_pytree

from amortax._types import Fixed, trainable
from amortax.families.own import Own

SIZE = 3
VALUE = jnp.array([0.3, -1.0, 2.0])


def row_of(family):
    return ravel_pytree(eqx.filter(family, trainable(family)))[0]


@pytest.mark.parametrize("name", ["full", "coupling", "mixture"])
def test_the_row_stands_for_the_family(name):
    family, built = family_of(name, SIZE, False), built_of(name, SIZE, False)
    if name == "mixture":  # what is fixed does not come from the row
        family = eqx.tree_at(lambda f: f.locations, family, built.locations)
    own, row = Own(SIZE, Fixed(built)), row_of(family)
    np.testing.assert_array_equal(own.first_row(), row_of(built))
    # A head reads the first numbers of a row, and what it tells besides is not for the family.
    full_row, told = jnp.concatenate([jnp.array([7.0, 8.0]), row]), (jnp.ones(4),)
    noise = noise_of(family, 0)
    for one, other in (
        (own.log_prob(VALUE, (full_row, *told)), family.log_prob(VALUE, ())),
        (own.log_shares((full_row, *told)), family.log_shares(())),
        (own.sample_and_log_prob(noise, 0, (full_row, *told)), family.sample_and_log_prob(noise, 0, ())),
        (own.mean_and_sd((full_row, *told)), family.mean_and_sd(())),
        (own.standardize(VALUE, (full_row, *told)), family.standardize(VALUE, ())),
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), one, other)
    assert (own.noise_size, own.num_components) == (family.noise_size, family.num_components)
    assert own.cheap_log_prob == family.cheap_log_prob
    gradient = jax.grad(lambda r: own.log_prob(VALUE, (r, *told)))(full_row)
    expected = eqx.filter_grad(lambda f: f.log_prob(VALUE, ()))(family)
    np.testing.assert_allclose(gradient[2:], row_of(expected), rtol=1e-4, atol=1e-5)
    assert not np.any(gradient[:2])
