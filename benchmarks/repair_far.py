"""Are units far from the training repaired, none made worse, and how fast? Linear-Gaussian, where KL(q || p) is exact.

    python benchmarks/repair_far.py [--units 100] [--samples 4000]

The model of TRUST §1: 10 measurements, 3 latents, decoder known, 10,000 training units. New units have latents or
inputs ten times as large, or are like those of the training. KL before is of q's own normals; after, of the mean and
covariance of the answer's draws, whose noise alone is about 9 / (2 samples). Seconds include compiling, in one process,
kind by kind: the first pays for the others.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "exact"))
from conjugate import LinearGaussian, normal_kl, normals_of
from shifted import model, units

import amortax as am

KINDS = {"latents x10": (10.0, 1.0), "latents x6": (6.0, 1.0), "inputs x10": (1.0, 10.0), "like training": (1.0, 1.0)}


def from_draws(draws, exact, x):
    """KL of the normals with the draws' moments."""
    covariances = np.stack([np.cov(d.T) for d in np.swapaxes(draws, 0, 1)])
    return normal_kl(draws.mean(axis=0), covariances, *exact.posterior(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    exact = LinearGaussian(rng.standard_normal((10, 3)).astype(np.float32), rng.standard_normal(10), 0.5)
    data = {"x": exact.simulate(np.random.default_rng(1), 10_000)[1]}
    bound = functools.partial(model, weight=exact.weight, mean=exact.mean.astype(np.float32), noise=exact.noise)
    posterior = am.fit(am.amortize(bound, data, plate="unit"), data, key=jax.random.key(0), num_steps=1500)
    for number, (name, (latents, inputs)) in enumerate(KINDS.items()):
        x = units(exact, np.random.default_rng(10 + number), arguments.units, latents, inputs)
        before = normal_kl(*normals_of(posterior, {"x": x}), *exact.posterior(x))
        began, cpu = time.perf_counter(), time.process_time()
        refined = posterior.refine({"x": x}, key=jax.random.key(1), num_samples=arguments.samples)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        kept = refined["rung"].values == "encoder"
        after = np.where(kept, before, from_draws(refined["z"].values, exact, x))
        worst = {str(r): float(after[refined["rung"].values == r].max().round(4)) for r in np.unique(refined["rung"])}
        rungs = {str(r): int(n) for r, n in zip(*np.unique(refined["rung"], return_counts=True), strict=True)}
        print(
            f"{name:14} KL before: mean {before.mean():.4f}, above 0.1 {np.mean(before > 0.1):.0%}; "
            f"after: at most 0.1 {np.mean(after <= 0.1):.0%}, largest {after.max():.4f}, "
            f"most made worse {np.max(after - before):.4f}; {seconds:.1f} s ({cpu:.1f} s CPU), {rungs}, "
            f"largest KL by rung {worst}, PASS {np.mean(refined['verdict'] == 'PASS'):.0%}"
        )


if __name__ == "__main__":
    main()
