"""Does a unit of many rare values stay near the others, whatever steps the weights of a dense encoder took?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit

import amortax as am
from amortax._types import Batch, Fixed
from amortax.encoders.base import Feature, Inputs, training_statistics
from amortax.encoders.dense import LARGEST
from amortax.models import lda, prodlda

WIDTH, INPUTS, RARE = 16, 600, 100


def encoder_of(inputs, width=WIDTH):
    return am.dense(width=width, depth=1).build(Inputs((Feature("x", (inputs,)),)), key=jax.random.key(0))


def silu(x):
    return x * expit(x)


@pytest.mark.parametrize("size", [0.1, 10.0, 100.0, 1e4])
def test_sums_of_many_inputs_are_scaled_to_the_largest_and_smaller_ones_left_alone(size):
    encoder = encoder_of(INPUTS)
    x = size * np.random.default_rng(0).standard_normal(INPUTS)
    sums = x @ np.asarray(encoder.layers[0].weights[0], float) + np.asarray(encoder.layers[0].bias, float)
    root = np.sqrt(np.mean(sums**2))
    assert (root > LARGEST) == (size >= 100.0)  # both cases are here
    (context,) = encoder(Batch({"x": jnp.asarray(x, jnp.float32)}, {}, {}))
    np.testing.assert_allclose(context, silu(sums / max(root / LARGEST, 1.0)), rtol=1e-4, atol=1e-5)


def test_few_inputs_are_not_bounded():
    encoder = encoder_of(WIDTH)
    x = jnp.linspace(300.0, 600.0, WIDTH)
    (context,) = encoder(Batch({"x": x}, {}, {}))
    sums = np.asarray(x) @ np.asarray(encoder.layers[0].weights[0]) + np.asarray(encoder.layers[0].bias)
    assert np.sqrt(np.mean(sums**2)) > 10 * LARGEST
    np.testing.assert_allclose(context, np.concatenate([silu(sums), x]), rtol=1e-4, atol=1e-3)


def test_a_hundred_steps_of_adam_leave_a_unit_of_many_rare_values_near_the_others():
    """Its gradient is the same all the time, so that each step moves every weight by the whole rate."""
    encoder = encoder_of(INPUTS)
    x = np.random.default_rng(0).binomial(1, 0.001, (5000, INPUTS)).astype(np.float32)
    x[0] = 0.0
    x[0, :RARE] = 1.0
    statistics = training_statistics(encoder.features.inputs, Batch({"x": x}, {}, {}))
    known = Fixed(jax.tree.map(jnp.asarray, statistics))
    encoder = eqx.tree_at(lambda e: e.features.statistics, encoder, known)
    units = [Batch({"x": jnp.asarray(row)}, {}, {}) for row in x[:50]]
    optimizer, weight = optax.adam(0.003), encoder.layers[0].weights[0]
    state = optimizer.init(weight)
    gradient = -jnp.sign(encoder.features.plain(units[0]))[:, None] * jnp.ones_like(weight)
    for _ in range(100):
        updates, state = optimizer.update(gradient, state)
        weight = optax.apply_updates(weight, updates)
    moved = eqx.tree_at(lambda e: e.layers[0].weights[0], encoder, weight)
    sizes = [float(jnp.linalg.norm(moved(unit)[0])) for unit in units]
    print("context of the unit of rare values", sizes[0], "of the others", np.median(sizes[1:]))
    assert sizes[0] <= 1.001 * LARGEST * np.sqrt(WIDTH)  # 3,400 without a bound


@pytest.mark.slow
def test_long_documents_of_rare_words_leave_the_fit_sound():
    """Three documents of a thousand, a hundred times as long as the others, hold most of the rare words."""
    rng = np.random.default_rng(0)
    frequencies = 1.0 / np.arange(1, 3001)
    lengths = np.full(1000, 30)
    lengths[:3] = 3000
    counts = np.stack([rng.multinomial(n, frequencies / frequencies.sum()) for n in lengths])
    plan = am.amortize(prodlda.amortized(5, counts.sum(axis=0)), data := lda.documents(counts), plate="document")
    key, adam = jax.random.key(0), optax.adam(0.003)
    posterior = am.fit(plan, data, key=key, num_steps=400, batch_size=100, optimizer=adam)
    bounds = np.asarray(posterior.record.elbo_per_unit)
    draws = posterior.sample(data, num_samples=20, key=jax.random.key(1))["log_shares"].values
    farthest = np.abs(draws.mean(axis=0)).max()
    print("bounds", bounds, "farthest mean", farthest)
    assert np.all(np.diff(bounds) > -1.0)  # without the bound of the encoder it is off by 1e5 from the first block on
    assert farthest < 10 * lda.shares_sd(5, 0.1)
