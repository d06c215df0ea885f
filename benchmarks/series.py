"""A draw of `am.markov()` and its gradient: the recurrence in log T rounds (`associative_scan`) or in T steps (`scan`).

    python benchmarks/series.py [--batch 128]

Both sides in one run, the median of 20 calls after compilation; on whatever device JAX finds.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from amortax.families.markov import in_rounds, in_steps


def milliseconds(recurrence, carry, moved):
    @jax.jit
    def loss_and_slopes(carry, moved):
        return jax.value_and_grad(lambda c, m: jnp.sum(jax.vmap(recurrence)(c, m) ** 2), (0, 1))(carry, moved)

    jax.block_until_ready(loss_and_slopes(carry, moved))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(loss_and_slopes(carry, moved))
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    batch = parser.parse_args().batch
    print(jax.devices()[0].device_kind)
    print("| steps | numbers | rounds [ms] | steps [ms] | steps / rounds |\n|---|---|---|---|---|")
    for length in (50, 500, 2000):
        for width in (1, 4):
            rng = np.random.default_rng(0)
            carry = jnp.asarray(
                0.9 * np.eye(width) + 0.01 * rng.normal(size=(batch, length, width, width)), jnp.float32
            )
            moved = jnp.asarray(rng.normal(size=(batch, length, width)), jnp.float32)
            rounds, steps = milliseconds(in_rounds, carry, moved), milliseconds(in_steps, carry, moved)
            print(f"| {length} | {width} | {rounds:.2f} | {steps:.2f} | {steps / rounds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
