"""Do PPCA and factor analysis reach the maximum likelihood that eigenvalues and EM give?"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of, ppca
from conjugate import factor_analysis as factor_analysis_by_em
from numpyro.contrib.module import eqx_module

import amortax as am
from amortax.models import factor_analysis

SIZE, LATENTS = 8, 2


def with_module(x, start):
    decoder = eqx_module("decoder", start)
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Normal(jax.vmap(decoder)(z), noise).to_event(1), obs=x)


def fixed_noise(x, weight, noise):
    decoder = numpyro.param("decoder", jnp.asarray(weight))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ decoder.T, noise).to_event(1), obs=x)


def start(size):
    return 0.1 * np.random.default_rng(9).standard_normal((SIZE, size)).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    truth = LinearGaussian(1.5 * rng.standard_normal((SIZE, LATENTS)), rng.standard_normal(SIZE), 0.6)
    return {"x": truth.simulate(rng, 4_000)[1]}


def judge(name, posterior, learned, data):
    """ELBO per unit, as evidence at the learned parameters minus the exact KL, against the maximum likelihood."""
    _, _, noise, best = ppca(data["x"], LATENTS)
    kl = normal_kl(*normals_of(posterior, data), *learned.posterior(data["x"])).mean()
    elbo = learned.log_evidence(data["x"]).mean() - kl
    ratio = learned.noise / noise
    print(f"{name}: ELBO/N {elbo:.4f}, maximum likelihood {best:.4f} (KL {kl:.4f}), sigma ratio {ratio:.4f}, ", end="")
    print(f"{posterior.record.num_steps} steps")
    assert best - 0.02 <= elbo <= best + 1e-6
    assert abs(ratio - 1) <= 0.01


def test_parameters_reach_the_maximum_likelihood(data):
    plan = am.amortize(functools.partial(factor_analysis.ppca, num_factors=LATENTS), data, plate="unit")
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=3000)
    judge("ready-made", posterior, linear_gaussian(posterior), data)


def linear_gaussian(posterior):
    found = {name: value.astype(np.float64) for name, value in factor_analysis.learned(posterior).items()}
    return LinearGaussian(found["loadings"], found["mean"], found["noise"])


def test_factor_analysis_reaches_the_maximum_likelihood():
    """Of EM, with a noise for each measurement."""
    rng = np.random.default_rng(1)
    truth = LinearGaussian(rng.standard_normal((SIZE, LATENTS)), rng.standard_normal(SIZE), np.linspace(0.3, 1.0, SIZE))
    x = truth.simulate(rng, 4_000)[1]
    best = factor_analysis_by_em(x, LATENTS)
    plan = am.amortize(functools.partial(factor_analysis.factor_analysis, num_factors=LATENTS), {"x": x}, plate="unit")
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), num_steps=2000)
    learned = linear_gaussian(posterior)
    kl = normal_kl(*normals_of(posterior, {"x": x}), *learned.posterior(x)).mean()
    gap = (best.log_evidence(x) - learned.log_evidence(x)).mean()
    ratio = learned.noise / best.noise
    print(f"log-likelihood of EM - learned {gap:.5f}, KL {kl:.5f} nats per unit, ", end="")
    print(f"noise {ratio.min():.4f} to {ratio.max():.4f} of EM's, of which one noise loses ", end="")
    print(f"{best.log_evidence(x).mean() - ppca(x, LATENTS)[3]:.3f} nats")
    assert gap >= -1e-6
    assert gap + kl <= 0.02


def test_a_decoder_module_reaches_the_maximum_likelihood(data):
    first = eqx.nn.Linear(LATENTS, SIZE, key=jax.random.key(1))
    plan = am.amortize(functools.partial(with_module, start=first), data, plate="unit")
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=3000)
    leaves = {np.ndim(x): np.asarray(x, np.float64) for x in jax.tree.leaves(posterior.joint.params)}
    learned = LinearGaussian(leaves[2], leaves[1], math.exp(leaves[0]))
    judge("eqx_module", posterior, learned, data)


def test_exactly_the_dimensions_that_the_noise_leaves_are_active():
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    x = (rng.standard_normal((4_000, SIZE)) * np.sqrt([9.0, 6.0, 4.0, 0.8, 0.7, 0.6, 0.5, 0.4])) @ rotation
    x = (x - x.mean(axis=0)).astype(np.float32)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    noise = math.sqrt(2.0)
    expected = int(np.sum(values > noise**2))
    plan = am.amortize(
        functools.partial(fixed_noise, weight=start(6), noise=noise), {"x": x}, plate="unit", family=am.diagonal()
    )
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(0), num_steps=3000)
    mean, covariance = normals_of(posterior, {"x": x})
    moved = mean.var(axis=0)  # Burda, Grosse and Salakhutdinov (2016): active where the mean of q varies with the data
    kl = 0.5 * (np.diagonal(covariance, axis1=1, axis2=2) + mean**2 - 1)
    kl = (kl - 0.5 * np.log(np.diagonal(covariance, axis1=1, axis2=2))).mean(axis=0)
    print(
        "variance of the means", np.sort(moved)[::-1].round(4), "KL", np.sort(kl)[::-1].round(4), "expected", expected
    )
    assert expected == 3
    assert np.sum(moved > 0.01) == expected
    assert np.sum(kl > 0.01) == expected
