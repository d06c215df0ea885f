"""A family with parameters from a row is that family: same density, draws, shares, moments and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import built_of, context_of, family_of, noise_of
from jax.flatten_util import ravel_pytree

from amortax._types import Fixed, trainable
from amortax.families.own import Own

SIZE = 3
VALUE = jnp.array([0.3, -1.0, 2.0])


def row_of(family):
    return ravel_pytree(eqx.filter(family, trainable(family)))[0]


@pytest.mark.parametrize(("name", "told"), [("full", True), ("coupling", False), ("mixture", True)])
def test_the_row_stands_for_the_family(name, told):
    family, context = family_of(name, SIZE, told), context_of(told)
    if name == "mixture":  # what is fixed does not come from the row
        family = eqx.tree_at(lambda f: f.locations, family, built_of(name, SIZE, told).locations)
    own, row = Own(SIZE, Fixed(built_of(name, SIZE, told))), row_of(family)
    np.testing.assert_array_equal(own.first_row(), row_of(built_of(name, SIZE, told)))
    full_row = jnp.concatenate([jnp.array([7.0, 8.0]), row])  # a head reads the first numbers of a row
    noise = noise_of(family, 0)
    for one, other in (
        (own.log_prob(VALUE, (full_row, *context)), family.log_prob(VALUE, context)),
        (own.log_shares((full_row, *context)), family.log_shares(context)),
        (own.sample_and_log_prob(noise, 0, (full_row, *context)), family.sample_and_log_prob(noise, 0, context)),
        (own.mean_and_sd((full_row, *context)), family.mean_and_sd(context)),
        (own.standardize(VALUE, (full_row, *context)), family.standardize(VALUE, context)),
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), one, other)
    assert (own.noise_size, own.num_components) == (family.noise_size, family.num_components)
    assert own.cheap_log_prob == family.cheap_log_prob
    gradient = jax.grad(lambda r: own.log_prob(VALUE, (r, *context)))(full_row)
    expected = eqx.filter_grad(lambda f: f.log_prob(VALUE, context))(family)
    np.testing.assert_allclose(gradient[2:], row_of(expected), rtol=1e-4, atol=1e-5)
    assert not np.any(gradient[:2])
