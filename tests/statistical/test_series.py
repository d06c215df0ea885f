"""One series at a time against exact and reference posteriors; `shared` holds the data, a clone without it skips.

Printed by `pytest -m slow -s`: worst mean difference in reference sd and the range of sd ratios.
"""

import functools

import jax
import numpy as np
import pytest
from references import differences

import amortax as am
from amortax.models import state_space, stochastic_volatility


def answered(model, data, shared_family, num_steps, **options):
    plan = am.amortize(model, data, plate="series", shared_family=shared_family)
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=num_steps, **options)
    return posterior, posterior.sample(data, num_samples=4000, key=jax.random.key(1))


def test_a_random_walk_with_known_scales_is_exact(shared):
    folder = shared / "data/inference_gym/brownian_motion"
    given, exact = np.load(folder / "data.npz"), np.load(folder / "crosscheck.npz")
    scales = {name: float(given[f"{name}_noise_scale"]) for name in ("innovation", "observation")}
    y = given["observed_locs"].astype(np.float32)[None]
    posterior, _ = answered(functools.partial(state_space.one, **scales), {"y": y}, am.full(), 1500)
    block = posterior.guide.shared
    mean, sd = (np.asarray(x, np.float64) for x in block.family.mean_and_sd(()))
    mean = mean * block.whitening.value["scale"] + block.whitening.value["center"]
    exact_sd = np.sqrt(np.diag(exact["cov"]))
    off, ratio = np.abs(mean - exact["mean"]) / exact_sd, sd * block.whitening.value["scale"] / exact_sd
    print(f"means within {off.max():.4f} sd, sds {ratio.min():.4f} to {ratio.max():.4f}")
    assert off.max() < 0.02
    np.testing.assert_allclose(ratio, 1.0, atol=0.02)


@pytest.mark.slow
def test_a_random_walk_with_unknown_scales(shared):
    folder = shared / "data/inference_gym/brownian_motion_unknown_scales"
    y = np.load(folder / "data.npz")["observed_locs"].astype(np.float32)[None]
    exact = np.load(folder / "crosscheck.npz")
    objective = am.IWELBO(1, num_shared_draws=16, weigh_shared=True)
    _, draws = answered(state_space.one, {"y": y}, am.coupling(6), 4000, objective=objective)
    draws["level"] = draws["level"][..., 0]
    names = [*(f"level[{t + 1}]" for t in range(30)), "innovation", "observation"]
    reference = dict(zip(names, zip(exact["mean"], exact["sd"], strict=True), strict=True))
    off, low, high = differences(draws, reference)
    assert off < 0.2
    assert low > 0.8
    assert high < 1.2


@pytest.mark.slow
def test_stochastic_volatility(shared):
    folder = shared / "data/inference_gym/stochastic_volatility_sp500_small"
    returns = np.load(folder / "data.npz")["centered_returns"].astype(np.float32)[None]
    reference = np.load(folder / "reference.npz")
    objective = am.ELBO(num_particles=16)
    data = {"returns": returns}
    posterior, draws = answered(stochastic_volatility.one, data, am.coupling(4), 3000, objective=objective)
    names = ("mean_log_volatility", "white_noise_shock_scale", "persistence_of_volatility")
    for name in names:
        differences(draws, {name: (float(reference[f"mean__{name}"]), float(reference[f"sd__{name}"]))})
    mean, sd = reference["mean__log_volatility"], reference["sd__log_volatility"]
    every = {f"log_volatility[{t + 1}]": (mean[t], sd[t]) for t in range(len(mean))}
    off, low, high = differences(draws, every)
    assert off < 0.2
    assert low > 0.8
    assert high < 1.2
    refined = posterior.refine(data, key=jax.random.key(2), num_samples=4000, budget="exact")
    assert refined.attrs["globals_rung"] == "hmc"
    off, low, high = differences(refined, every)
    assert off < 0.1
    assert low > 0.9
    assert high < 1.1
    known = {name: (float(reference[f"mean__{name}"]), float(reference[f"sd__{name}"])) for name in names}
    off, low, high = differences(refined, {name: known[name] for name in names[1:]})
    assert off < 0.1
    assert low > 0.9
    assert high < 1.1
    # The mean has the tail of its Cauchy prior where persistence is near 1 (kurtosis 6 to 20 by the key): no sd.
    assert differences(refined, {names[0]: known[names[0]]})[0] < 0.15
