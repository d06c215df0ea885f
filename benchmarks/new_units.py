"""What does an answer cost? 10,000 new units with 1,000 draws each, parameters of q alone, and one unit alone.

A small hierarchy: 10 observations and 3 locals per unit. Both heads, one run; the first call of each shape compiles and
is timed apart.

    python benchmarks/new_units.py [--units 10000] [--draws 1000]
"""

import argparse
import time

import jax
from training import groups, groups_data

import amortax as am


def timed(label, call, count):
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    start = time.perf_counter()
    call()
    again = time.perf_counter() - start
    print(f"  {label:32} first {first:7.2f} s   again {again:7.3f} s   {1e6 * again / count:10.1f} µs per unit")


def measure(head, training, new, num_draws):
    plan = am.amortize(groups, training, plate="group", head=head)
    posterior = am.fit(plan, training, key=jax.random.key(0), num_steps=300)
    key, count = jax.random.key(1), len(new["x"])
    one = {name: x[:1] for name, x in new.items()}
    print(type(head).__name__)
    timed(
        f"{count:,} units, {num_draws:,} draws",
        lambda: posterior.sample(new, num_samples=num_draws, key=key),
        count,
    )
    timed(f"{count:,} units, contexts only", lambda: posterior.encode(new), count)
    timed(f"1 unit, {num_draws:,} draws", lambda: posterior.sample(one, num_samples=num_draws, key=key), 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1_000)
    options = parser.parse_args()
    training, new = groups_data(2_000), groups_data(options.units)
    for head in (am.newton(), am.concatenate()):
        measure(head, training, new, options.draws)


if __name__ == "__main__":
    main()
