"""How many global numbers can a model have? Time and memory of a training step at 1,000 to 100,000 of them.

Item response with two numbers per item and three on top; 5,000 persons answer 40 items each, drawn at random:

    python benchmarks/globals.py [--largest 100000]

prints, for each size and in a process of its own: seconds to read the model, whiten and compile, milliseconds per step
of 256 persons (median of blocks of 25 steps), and peak memory.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise
from amortax.train.schedule import adam
from amortax.train.step import Setting, State, run_block, split_trainable

PERSONS, ANSWERS, BATCH, STEPS, BLOCKS = 5_000, 40, 256, 25, 4
SIZES = {"full": (200, 1_000), "blocks": (200, 1_000, 10_000, 100_000)}


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
    return {"item": item, "correct": correct.astype(np.int32)}


def measure(family, num_globals):
    """Prints one row; runs in a process of its own, so that peak memory is its own."""
    num_items = (num_globals - 3) // 2
    data, model = simulated(num_items), functools.partial(response, num_items=num_items)
    start = time.perf_counter()
    plan = am.amortize(model, data, plate="person", shared_family={"full": am.full(), "blocks": am.blocks()}[family])
    batch = to_batch(as_units(data, model, "person"))
    params, rest = split_trainable(*initialise(plan, batch, jax.random.key(0)))
    resident = (jax.tree.map(jnp.asarray, batch),)
    setting = Setting(rest, am.ELBO(), adam(), resident, jnp.asarray(float(PERSONS)))
    state = State(params, adam().init(params), jax.random.key(1), jnp.zeros((), jnp.int32))
    rows = jnp.asarray(np.random.default_rng(1).integers(0, PERSONS, (STEPS, BATCH)), jnp.int32)
    first, seconds = 0.0, []
    for _ in range(1 + BLOCKS):
        begun = time.perf_counter()
        state, result = run_block((setting, rows, jnp.asarray(STEPS)), state)
        jax.block_until_ready(result.loss)
        seconds.append(time.perf_counter() - begun)
        first = first or time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    step = 1000 * np.median(seconds[1:]) / STEPS
    print(f"| {family} | {num_globals:,} | {first:.1f} | {step:.2f} | {peak:,.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", type=int, default=100_000)
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "GLOBALS"))
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], int(given.one[1]))
        return
    print("| family | globals | until the first block [s] | step [ms] | peak memory [MB] |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    for family, sizes in SIZES.items():
        for size in sizes:
            if size <= given.largest:
                subprocess.run([sys.executable, __file__, "--one", family, str(size)], check=True)


if __name__ == "__main__":
    main()
