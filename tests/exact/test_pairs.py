"""Do (latents, data) pairs train q to the exact posterior, held-out ones choosing; and are wrong pairs named?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl

import amortax as am
from amortax._errors import DataError, FitError, ModelError
from amortax._types import Batch
from amortax.joint.joint import Joint
from amortax.objectives.base import Minibatch
from amortax.pairs import split_pairs, with_latents

RNG = np.random.default_rng(0)
LINEAR = LinearGaussian(RNG.normal(size=(3, 2)), np.array([0.5, 0.0, -0.5]), 0.7)
WEIGHT, MEAN = jnp.asarray(LINEAR.weight, jnp.float32), jnp.asarray(LINEAR.mean, jnp.float32)


def linear(x):
    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0))
    numpyro.sample("x", dist.Normal(WEIGHT @ z + MEAN, LINEAR.noise), obs=x)


def scaled(x, dose):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("element", x.shape[0]):
        numpyro.sample("x", dist.Exponential(rate / dose), obs=x)


@pytest.fixture(scope="module")
def plan():
    return am.amortize(linear, {"x": np.zeros((1, 3), np.float32)}, plate=None)


def test_simulations_are_the_models(plan):
    latents, data = am.simulate(plan, 5000, key=jax.random.key(0))
    assert (latents["z"].shape, data.arrays["x"].shape, len(data)) == ((5000, 2), (5000, 3), 5000)
    joined = np.concatenate([latents["z"], data.arrays["x"] - LINEAR.mean], axis=1)
    exact = np.block(
        [[np.eye(2), LINEAR.weight.T], [LINEAR.weight, LINEAR.weight @ LINEAR.weight.T + 0.49 * np.eye(3)]]
    )
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 5000)
    assert np.all(np.abs(np.cov(joined, rowvar=False) - exact) < 5 * error)
    fewer, _ = am.simulate(plan, 3, key=jax.random.key(0))
    np.testing.assert_allclose(fewer["z"], latents["z"][:3], rtol=1e-5)


def test_simulations_keep_covariates_and_lengths():
    like = {"x": [[1.0, 2.0], [3.0]], "dose": [[1.0, 2.0], [5.0]]}
    plan = am.amortize(scaled, like, plate=None)
    latents, data = am.simulate(plan, 5, key=jax.random.key(0), like=like)
    assert data.lengths["x"].tolist() == [2, 1, 2, 1, 2]
    assert data.arrays["dose"][[0, 2], :2].tolist() == [[1.0, 2.0]] * 2
    assert np.all(latents["rate"] > 0)
    with pytest.raises(DataError, match="give like="):
        am.simulate(plan, 5, key=jax.random.key(0))


def test_loss_is_minus_log_q_of_the_pairs(plan):
    latents, data = am.simulate(plan, 6, key=jax.random.key(0))
    posterior = am.fit(plan, (latents, data), key=jax.random.key(1), objective=am.ForwardKL(), num_steps=1)
    batch = Batch({"x": jnp.asarray(data.arrays["x"])}, {}, {}, latents=jnp.asarray(latents["z"]))
    loss = eqx.filter_jit(am.ForwardKL())(
        jax.random.key(0), posterior.guide, posterior.joint, Minibatch((batch,), jnp.array(6.0), jnp.array(0))
    )
    np.testing.assert_allclose(loss.value, -np.mean(posterior.log_prob(latents, data).unit), rtol=1e-5)


def test_constrained_latents_become_unconstrained_ones():
    like = {"x": [[1.0, 2.0], [3.0]], "dose": [[1.0, 2.0], [5.0]]}
    plan = am.amortize(scaled, like, plate=None)
    joint = Joint(plan.model, plan.structure, {})
    latents, data = am.simulate(plan, 40, key=jax.random.key(0), like=like)
    local = with_latents(latents, data, joint)
    np.testing.assert_allclose(local[:, 0], np.log(latents["rate"]), rtol=1e-5)
    kept, kept_local, held_out = split_pairs(local, data, plan.structure)
    assert (len(kept), len(held_out.latents)) == (36, 4)
    np.testing.assert_array_equal(kept_local, local[kept.labels])
    latents["rate"][7] = -1.0
    with pytest.raises(DataError, match=r"dataset '7', \{'rate': -1.0\}, lie outside"):
        with_latents(latents, data, joint)


def no_density(x):
    numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0))
    numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)), obs=x)


def test_pairs_from_a_file_train_to_the_exact_posterior(plan, tmp_path):
    latents, data = am.simulate(plan, 4000, key=jax.random.key(0))
    np.savez(tmp_path / "pairs.npz", z=latents["z"], x=data.arrays["x"])
    with np.load(tmp_path / "pairs.npz") as stored:
        pairs = {"z": stored["z"]}, {"x": stored["x"]}
    without = am.amortize(no_density, pairs[1], plate=None)  # their simulator's density is told to nobody
    posterior = am.fit(without, pairs, key=jax.random.key(1), num_steps=1000, batch_size=256)
    assert posterior.record.num_units == 3600
    assert posterior.record.validation_elbo_per_unit == ()
    _, x = LINEAR.simulate(np.random.default_rng(3), 100)
    draws = posterior.sample({"x": x}, num_samples=2000, key=jax.random.key(5)).z.transpose("dataset", "sample", ...)
    means, covariance = LINEAR.posterior(x)
    each = np.stack([np.cov(unit, rowvar=False) for unit in draws.values])
    assert float(np.mean(normal_kl(draws.mean("sample").values, each, means, covariance))) < 0.02


def test_what_has_no_sampler_is_not_simulated():
    without = am.amortize(no_density, {"x": np.zeros((2, 3))}, plate=None)
    reason = "can't be simulated: observed site 'x' has no sampler"
    with pytest.raises(ModelError, match=reason):
        am.simulate(without, 5, key=jax.random.key(0))
    with pytest.raises(ModelError, match=reason):
        am.fit(without, {"x": np.zeros((2, 3))}, key=jax.random.key(1), objective=am.ForwardKL(), num_steps=1)


def test_wrong_pairs_are_refused(plan):
    latents, data = am.simulate(plan, 20, key=jax.random.key(0))
    fit = {"key": jax.random.key(1), "objective": am.ForwardKL(), "num_steps": 1}
    with pytest.raises(DataError, match="has 'w', which is no latent"):
        am.fit(plan, ({**latents, "w": latents["z"]}, data), **fit)
    with pytest.raises(FitError, match=r"run.validation: of \(latents, data\) pairs a tenth is held out"):
        am.fit(plan, (latents, data), run=am.Run(validation=data), **fit)
    with pytest.raises(DataError, match="values has no site 'z'"):
        am.fit(plan, ({}, data), **fit)
    with pytest.raises(DataError, match="one value for each of the 20 units"):
        am.fit(plan, ({"z": latents["z"][:5]}, data), **fit)

    def plated(x):
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    other = am.amortize(plated, {"x": np.zeros(20)}, plate="unit")
    with pytest.raises(FitError, match="for whole data sets"):
        am.fit(other, ({"z": np.zeros(20)}, {"x": np.zeros(20)}), **fit)
    with pytest.raises(ModelError, match="along plate 'unit'"):
        am.simulate(other, 5, key=jax.random.key(0))
