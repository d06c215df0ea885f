"""Do all objectives end at the exact posterior of a hierarchy, globals and locals given them, from the same start?"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import normal_kl, normals_of, shared_normal

import amortax as am

NUM, SPREAD, NOISE = 60, 1.0, 0.5


def model(x):
    level = numpyro.sample("level", dist.Normal(0.0, 5.0))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, SPREAD))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(am.IWELBO(4), id="iwelbo", marks=pytest.mark.slow),
        pytest.param(am.WakeSleep(), id="wake-sleep", marks=pytest.mark.slow),
        pytest.param(am.WakeSleep(4, wake_share=0.5), id="reweighted"),
        pytest.param(am.Sum(am.ELBO(2), am.ForwardKL()), id="sum", marks=pytest.mark.slow),
    ],
)
def test_an_objective_reaches_the_exact_posterior_of_a_hierarchy(objective):
    rng = np.random.default_rng(0)
    x = (3.0 + np.hypot(SPREAD, NOISE) * rng.standard_normal(NUM)).astype(np.float32)
    plan = am.amortize(model, {"x": x}, plate="unit", encoder=am.dense(width=8, depth=1), head=am.concatenate())
    posterior = am.fit(plan, {"x": x}, key=jax.random.key(1), objective=objective, num_steps=2000)
    variance = SPREAD**2 + NOISE**2
    exact_sd = (1 / 25 + NUM / variance) ** -0.5
    exact_mean = exact_sd**2 * x.sum() / variance
    mean, covariance = shared_normal(posterior)
    away, ratio = (mean[0] - exact_mean) / exact_sd, covariance[0, 0] ** 0.5 / exact_sd
    share = SPREAD**2 / variance
    kls = []
    for level in (exact_mean - 2 * exact_sd, exact_mean + 2 * exact_sd):
        exact = (level + share * (x.astype(np.float64) - level))[:, None], np.full((1, 1), share * NOISE**2)
        kls.append(normal_kl(*normals_of(posterior, {"x": x}, [level]), *exact).mean())
    print(f"{objective}: global {away:+.3f} sd off, sd ratio {ratio:.3f}; KL of locals {max(kls):.5f}")
    assert abs(away) < 0.15
    assert 0.9 < ratio < 1.1
    assert max(kls) < 0.01
