"""How many units are judged per minute? k-hat, ESS, bounds and shift of each from 1,000 draws; ArviZ's k-hat beside it.

The linear-Gaussian model of `shifted.py`, without globals; then k-hat alone, on the same weights as ArviZ.

    python benchmarks/judged.py [--units 100000] [--draws 1000]
"""

import argparse
import functools
import time
import warnings

import jax
import numpy as np
from shifted import LinearGaussian, model, units

import amortax as am
from amortax.psis import pareto_k


def judged(count, num_draws):
    rng = np.random.default_rng(0)
    exact = LinearGaussian(rng.standard_normal((10, 3)), rng.standard_normal(10), 0.5)
    numbers = {"weight": exact.weight.astype(np.float32), "mean": exact.mean.astype(np.float32), "noise": exact.noise}
    data = {"x": units(exact, rng, 10_000, 1, 1)}
    plan = am.amortize(functools.partial(model, **numbers), data, plate="unit")
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=500)
    checks = am.Checks(num_samples=num_draws, simulated_units=0, gap_units=0, predictive_draws=0)
    new = {"x": units(exact, rng, count, 1, 1)}
    for label, part in (("compiling", {"x": new["x"][:256]}), ("judging", new)):
        start = time.perf_counter()
        report = posterior.check(part, key=jax.random.key(1), checks=checks)
        seconds = time.perf_counter() - start
        size = len(part["x"])
        print(f"  {label:10} {size:8,} units x {num_draws:,}: {seconds:7.2f} s, {60 * size / seconds:12,.0f} a minute")
    print(f"  {report.headline()}")


def beside_arviz(count, num_draws):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from arviz import psislw
    rng = np.random.default_rng(1)
    weights = (rng.uniform(0.3, 3.0, (count, 1)) * rng.standard_normal((count, num_draws))).astype(np.float32)
    compiled = jax.jit(jax.vmap(pareto_k))
    compiled(weights).block_until_ready()
    start = time.perf_counter()
    ours = np.asarray(compiled(weights))
    middle = time.perf_counter()
    theirs = np.asarray(psislw(weights.astype(np.float64))[1])
    end = time.perf_counter()
    each, other = (1e6 * seconds / count for seconds in (middle - start, end - middle))
    print(f"  k-hat of {count:,} units: {each:.1f} µs each, ArviZ {other:.0f}")
    print(f"  largest difference {np.abs(ours - theirs).max():.1e}, k from {theirs.min():.2f} to {theirs.max():.2f}")


def known():
    for variance in (0.25, 0.5, 0.75):
        x = np.sqrt(variance) * np.random.default_rng(7).standard_normal(1_000_000)
        k = float(pareto_k((-(x**2) / 2 + x**2 / (2 * variance)).astype(np.float32)))
        print(f"  q = N(0, {variance}), p = N(0, 1), a million draws: k-hat {k:.3f}, exact {1 - variance:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    judged(given.units, given.draws)
    beside_arviz(2000, given.draws)
    known()
