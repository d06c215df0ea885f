"""Are units unlike the training units flagged, and those like them hardly ever?

Linear-Gaussian, 10 measurements and 3 latents. The decoder is known, so KL(q || p) of every unit is exact. Units are
flagged by k-hat, effective sample size, or shift.

    python benchmarks/shifted.py [--units 2000]
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "exact"))
from conjugate import LinearGaussian, normal_kl, normals_of

CASES = {"like training": (1, 1), "latents x 6": (6, 1), "latents x 10": (10, 1), "inputs x 10": (1, 10)}


def model(x, weight, mean, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T + mean, noise).to_event(1), obs=x)


def units(exact, rng, count, latents, inputs):
    z = latents * rng.standard_normal((count, exact.weight.shape[1]))
    x = z @ exact.weight.T + exact.mean + exact.noise * rng.standard_normal((count, len(exact.mean)))
    return (inputs * x).astype(np.float32)


def row(posterior, exact, name, x):
    checks = am.Checks(num_samples=1000, simulated_units=0, gap_units=0, predictive_draws=0)
    found = posterior.check({"x": x}, key=jax.random.key(2), checks=checks).units
    kl = normal_kl(*normals_of(posterior, {"x": x}), *exact.posterior(x))
    flagged, off = found["verdict"] != "PASS", kl > 0.1
    weights = np.isin(found["reason"], ["pareto-k", "low-ess", "non-finite"])
    of_off = f"{flagged[off].mean():.3f}" if off.any() else "-"
    missed = kl[~flagged].max(initial=0)
    print(
        f"  {name:14} {flagged.mean():.4f}   {weights.mean():.4f}   {np.mean(found['input_shift'] > 1):.4f}   "
        f"{np.mean(found['context_shift'] > 1):.4f}     {off.mean():.3f}   {of_off:>6}   {missed:.4f}"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=2000)
    count = parser.parse_args().units
    rng = np.random.default_rng(0)
    exact = LinearGaussian(rng.standard_normal((10, 3)), rng.standard_normal(10), 0.5)
    numbers = {"weight": exact.weight.astype(np.float32), "mean": exact.mean.astype(np.float32), "noise": exact.noise}
    data = {"x": units(exact, rng, 10_000, 1, 1)}
    plan = am.amortize(functools.partial(model, **numbers), data, plate="unit")
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=1500)
    print("shares: flagged, by weights, by inputs, by context; KL > 0.1, of these flagged; largest KL not flagged")
    for name, (latents, inputs) in CASES.items():
        row(posterior, exact, name, units(exact, rng, count, latents, inputs))


if __name__ == "__main__":
    main()
