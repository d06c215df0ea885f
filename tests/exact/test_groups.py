"""Are Gamma-Poisson and Beta-Binomial groups as close to their conjugate posteriors as a normal can be?"""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from conjugate import best_normal, normals_of
from scipy.special import expit

import amortax as am


def counts_model(y, shape, rate):
    with numpyro.plate("group", y.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Gamma(shape, rate))
        with numpyro.plate("count", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(level), obs=y)


def count_model(y, shape, rate):
    with numpyro.plate("group", y.shape[0]):
        level = numpyro.sample("level", dist.Gamma(shape, rate))
        numpyro.sample("y", dist.Poisson(level), obs=y)


def share_model(y, n, first, second):
    with numpyro.plate("group", y.shape[0]):
        share = numpyro.sample("share", dist.Beta(first, second))
        numpyro.sample("y", dist.Binomial(n, share), obs=y)


def judge(name, posterior, held_out, log_densities, constrain, exact_means, starts):
    """Excess KL over the best normal of every held-out group, and the ratio of posterior means."""
    means, covariances = normals_of(posterior, held_out)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    excess, ratio = [], []
    for i, (log_density, start) in enumerate(zip(log_densities, starts, strict=True)):
        mean, sd = means[i, 0], np.sqrt(covariances[i, 0, 0])
        _, _, least, kl = best_normal(log_density, start, 8.0)
        excess.append(kl(mean, np.log(sd)) - least)
        ratio.append(weights @ constrain(mean + sd * nodes) / exact_means[i])
    print(f"{name}: excess KL mean {np.mean(excess):.5f}, worst {np.max(excess):.5f}; ", end="")
    print(f"mean ratio {np.mean(ratio):.4f}; {posterior.record.num_steps} steps")
    assert np.min(excess) >= -1e-6
    assert np.mean(excess) <= 0.01
    assert abs(np.mean(ratio) - 1) <= 0.01


def gamma_poisson(model, y, held_out, shape, rate, name):
    bound = functools.partial(model, shape=shape, rate=rate)
    posterior = am.fit(am.amortize(bound, {"y": y}, plate="group"), {"y": y}, key=jax.random.key(0), num_steps=2000)
    total, number = held_out.reshape(len(held_out), -1).sum(axis=1), held_out.reshape(len(held_out), -1).shape[1]
    a, b = shape + total, rate + number
    densities = [lambda u, a=a_i: a * u - b * np.exp(u) for a_i in a]
    judge(name, posterior, {"y": held_out}, densities, np.exp, a / b, np.log(a / b))


def test_several_counts_of_a_group():
    rng = np.random.default_rng(0)
    y = rng.poisson(rng.gamma(2.0, 1 / 0.5, (3_100, 1)), (3_100, 5))
    gamma_poisson(counts_model, y[:3000], y[3000:], 2.0, 0.5, "Gamma-Poisson, five counts")


def test_one_count_of_a_group():
    rng = np.random.default_rng(1)
    y = rng.poisson(rng.gamma(2.0, 1 / 0.5, 3_100))
    gamma_poisson(count_model, y[:3000], y[3000:], 2.0, 0.5, "Gamma-Poisson, one count")


def test_successes_of_a_group_among_its_own_number_of_trials():
    rng = np.random.default_rng(2)
    n = rng.integers(1, 40, 3_100)
    y = rng.binomial(n, rng.beta(2.0, 3.0, 3_100))
    data, held_out = {"y": y[:3000], "n": n[:3000]}, {"y": y[3000:], "n": n[3000:]}
    bound = functools.partial(share_model, first=2.0, second=3.0)
    posterior = am.fit(am.amortize(bound, data, plate="group"), data, key=jax.random.key(0), num_steps=2000)
    a, b = 2.0 + held_out["y"], 3.0 + held_out["n"] - held_out["y"]
    densities = [lambda u, a=a_i, b=b_i: a * u - (a + b) * np.logaddexp(0, u) for a_i, b_i in zip(a, b, strict=True)]
    judge("Beta-Binomial", posterior, held_out, densities, expit, a / (a + b), np.log(a / b))
