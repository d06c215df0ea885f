"""How many global numbers can a model have? Time and memory of a training step at 1,000 to 100,000 of them.

Item response with two numbers per item and three on top; 20,000 persons answer 40 items each, drawn at random:

    python benchmarks/globals.py [--largest 100000] [--steps 2000]

prints, for each size and in a process of its own: seconds until the first step (reading, compiling, whitening),
milliseconds per step of 256 persons, peak memory, and for the largest how the trained items stand to the truth.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am

PERSONS, ANSWERS = 20_000, 40
FEW, MANY = 100, 300  # steps of the two fits whose difference is timed
SIZES = (200, 1_000, 10_000, 100_000)
FULL = (200, 1_000)


def response(item, correct=None, num_items=0):
    location = numpyro.sample("location", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    steepness = numpyro.sample("steepness", dist.HalfNormal(1.0))
    with numpyro.plate("item", num_items, dim=-1):
        log_slope = numpyro.sample("log_slope", dist.Normal(0.0, steepness))
        difficulty = numpyro.sample("difficulty", dist.Normal(location, spread))
    with numpyro.plate("person", item.shape[0], dim=-2):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
        with numpyro.plate("answer", item.shape[1], dim=-1):
            logits = jax.numpy.exp(log_slope[item]) * (ability - difficulty[item])
            numpyro.sample("correct", dist.Bernoulli(logits=logits), obs=correct)


def simulated(num_items):
    rng = np.random.default_rng(0)
    log_slope, difficulty = 0.3 * rng.standard_normal(num_items), 0.5 + rng.standard_normal(num_items)
    item = rng.integers(0, num_items, (PERSONS, ANSWERS)).astype(np.int32)
    away = rng.standard_normal((PERSONS, 1)) - difficulty[item]
    correct = rng.random(item.shape) < 1.0 / (1.0 + np.exp(-np.exp(log_slope[item]) * away))
    return {"item": item, "correct": correct.astype(np.int32)}, {"log_slope": log_slope, "difficulty": difficulty}


def measure(num_globals, family, steps):
    """Prints one row; runs in a process of its own, so that peak memory is its own."""
    num_items = (num_globals - 3) // 2
    data, truth = simulated(num_items)
    model = functools.partial(response, num_items=num_items)
    start = time.perf_counter()
    recipe = {"full": am.full(), "blocks": am.blocks()}[family]
    plan = am.amortize(model, data, plate="person", shared_family=recipe)

    def seconds(num_steps):
        begun = time.perf_counter()
        posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=num_steps, batch_size=256)
        return time.perf_counter() - begun, posterior

    seconds(1)
    first = time.perf_counter() - start
    few, many = (min(seconds(count)[0] for _ in range(2)) for count in (FEW, MANY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = f"| {family} | {num_globals:,} | {first:.1f} | {1000 * (many - few) / (MANY - FEW):.2f} | {peak:,.0f} |"
    if steps:
        took, posterior = seconds(steps)
        family, whitening = posterior.guide.shared.family, posterior.guide.shared.whitening.value
        mean, sd = (np.asarray(x, np.float64) for x in family.mean_and_sd(()))
        mean, sd = np.asarray(whitening["center"]) + whitening["scale"] * mean, whitening["scale"] * sd
        places = {"log_slope": slice(3, 3 + num_items), "difficulty": slice(3 + num_items, None)}
        for name, place in places.items():
            z = (truth[name] - mean[place]) / sd[place]
            row += f"\n{name} after {steps:,} steps, {took:.0f} s: (truth - mean) / sd has mean {z.mean():+.3f}, "
            row += f"root mean square {np.sqrt((z**2).mean()):.3f}; mean sd {np.mean(sd[place]):.3f}"
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", type=int, default=max(SIZES))
    parser.add_argument("--steps", type=int, default=2000, help="of training at the largest size; 0: none")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "GLOBALS"))
    given = parser.parse_args()
    if given.one:
        return measure(int(given.one[1]), given.one[0], given.steps)
    print(
        "| family | globals | until the first step [s] | step [ms] | peak memory [MB] |\n|---|---|---|---|---|",
        flush=True,
    )
    rows = [("full", size) for size in FULL] + [("blocks", size) for size in SIZES]
    for family, size in rows:
        if size <= given.largest:
            steps = given.steps if size == given.largest else 0
            one = [sys.executable, __file__, "--one", family, str(size), "--steps", str(steps)]
            subprocess.run(one, check=True)
    return None


if __name__ == "__main__":
    main()
