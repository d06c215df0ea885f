"""Which layers take smaller steps? Adam's first step is its rate whatever the gradient: it shows them exactly."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise
from amortax.train.schedule import adam
from amortax.train.step import split_trainable


def decoded(x, decoder):
    network = eqx_module("decoder", decoder)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(network)(z), 1.0).to_event(1), obs=x)


@pytest.fixture(scope="module")
def first_step():
    """(joint, guide) of Adam's first step, of a rate of one."""
    data = {"x": np.random.default_rng(0).standard_normal((8, 100)).astype(np.float32)}
    model = functools.partial(decoded, decoder=eqx.nn.MLP(2, 100, 256, 2, key=jax.random.key(1)))
    plan = am.amortize(model, data, plate="unit", encoder=am.dense(width=144, depth=2), family=am.diagonal(width=16))
    params, _ = split_trainable(*initialise(plan, to_batch(as_units(data, model, "unit")), jax.random.key(0)))
    optimizer = adam(learning_rate=100.0, clip=1e9)  # warm-up starts at a hundredth
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    return jax.tree.map(lambda x: np.unique(np.abs(x).round(4)), updates)


def test_steps_of_a_layer_fall_with_the_root_of_its_smaller_side_beyond_64(first_step):
    joint, guide = first_step
    first, second = (layer.weights[0] for layer in guide.encoder.layers)
    np.testing.assert_allclose(first, 0.8, rtol=1e-3)  # 100 inputs
    np.testing.assert_allclose(second, 2 / 3, rtol=1e-3)  # 144 to 144
    inward, within, outward = (layer.weight for layer in jax.tree.leaves(joint, is_leaf=_is_layer) if _is_layer(layer))
    np.testing.assert_allclose(inward, 1.0, rtol=1e-3)  # 2 latents to 256
    np.testing.assert_allclose(within, 0.5, rtol=1e-3)
    np.testing.assert_allclose(outward, 0.8, rtol=1e-3)  # 256 to 100 pixels


def test_offsets_take_whole_steps(first_step):
    joint, guide = first_step
    offsets = [x.bias for x in jax.tree.leaves(joint, is_leaf=_is_layer) if _is_layer(x)]
    offsets += [layer.bias for layer in guide.encoder.layers]
    np.testing.assert_allclose(np.concatenate(offsets), 1.0, rtol=1e-3)


def test_networks_of_splines_within_q_of_the_globals_take_a_fifth():
    def model(x):
        centre = numpyro.sample("centre", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("unit", x.shape[0]):
            numpyro.sample("x", dist.Normal(centre, 1.0).to_event(1), obs=x)

    data = {"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)}
    for transform, pace in ((am.affine(), 1.0), (am.spline(), 0.2)):
        plan = am.amortize(model, data, plate="unit", shared_family=am.coupling(2, transform))
        params, _ = split_trainable(*initialise(plan, to_batch(as_units(data, model, "unit")), jax.random.key(0)))
        optimizer = adam(learning_rate=100.0, clip=1e9)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        shared = updates[1].shared.family
        for step in jax.tree.leaves(shared.layers):
            np.testing.assert_allclose(np.abs(step), pace, rtol=1e-3)
        for step in jax.tree.leaves(shared.outer):
            np.testing.assert_allclose(np.abs(step), 10.0, rtol=1e-3)


def _is_layer(x):
    return isinstance(x, eqx.nn.Linear)
