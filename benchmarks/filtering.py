"""How fast is one update of one belief? The learned filter beside the exact Kalman update, each in the same `lax.scan`.

Linear-Gaussian state space (persistence 0.9, variances one): trained on the model's own series of 20 steps, then
carried over 50 steps of new ones for the divergence KL(Kalman filter || q), and over 100,000 for the time of an update
alone and of an update whose mean and covariance are read. Medians over rounds.

    python benchmarks/filtering.py [--steps 1500] [--updates 100000] [--rounds 9]
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import amortax as am
from amortax.models import state_space

PHI = 0.9


def series(count, steps, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, steps))
    z[:, 0] /= (1 - PHI**2) ** 0.5
    for t in range(1, steps):
        z[:, t] += PHI * z[:, t - 1]
    return (z + rng.normal(size=z.shape)).astype(np.float32)


def trained(width, num_steps):
    data = {"y": series(512, 20, seed=0)}
    recipes = {"family": am.filtering(), "encoder": am.causal(width=width)}
    plan = am.amortize(functools.partial(state_space.many, persistence=PHI), data, plate="series", **recipes)
    return am.fit(plan, data, key=jax.random.key(0), num_steps=num_steps, batch_size=64)


def kalman_step(state, y):
    """(mean, variance before y) → the same one step on, and (mean, variance) given y."""
    mean, variance = state
    gain = variance / (variance + 1.0)
    mean, variance = mean + gain * (y - mean), (1.0 - gain) * variance
    return (PHI * mean, PHI**2 * variance + 1.0), (mean, variance)


KALMAN_START = (jnp.zeros(()), jnp.asarray(1.0 / (1.0 - PHI**2)))


def divergence(filtered):
    """Mean nats per step, and that of the worst step of the worst series."""

    def step(state, y):
        state = filtered.update(state, {"y": y})
        mean, covariance = filtered.belief(state).mean_and_cov()
        return state, (mean[0], covariance[0, 0])

    y = series(2000, 50, seed=1)
    mean, variance = jax.jit(jax.vmap(lambda own: jax.lax.scan(step, filtered.init(), own)[1]))(y)
    exact_mean, exact_variance = jax.jit(jax.vmap(lambda own: jax.lax.scan(kalman_step, KALMAN_START, own)[1]))(y)
    ratio = exact_variance / variance
    each = 0.5 * (ratio + (mean - exact_mean) ** 2 / variance - 1.0 - jnp.log(ratio))
    return float(each.mean()), float(each.max())


def per_second(function, updates, rounds):
    y = jnp.asarray(series(1, updates, seed=2)[0])
    jax.block_until_ready(function(y))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function(y))
        seconds.append(time.perf_counter() - start)
    return updates / float(np.median(seconds))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    exact = jax.jit(lambda y: jax.lax.scan(kalman_step, KALMAN_START, y))
    print(f"exact Kalman update: {per_second(exact, options.updates, options.rounds):12,.0f} a second")
    for width in (32, 64):
        posterior = trained(width, options.steps)
        filtered = posterior.filter()

        def alone(state, y, filtered=filtered):
            return filtered.update(state, {"y": y}), None

        def read(state, y, filtered=filtered):
            state = filtered.update(state, {"y": y})
            return state, filtered.belief(state).mean_and_cov()

        mean, worst = divergence(filtered)
        seconds = posterior.record.seconds
        print(f"causal(width={width}), trained in {seconds:.0f} s")
        print(f"  KL(Kalman filter || q) {mean:.5f} nats a step, worst {worst:.4f}")
        for name, step in (("update alone", alone), ("update and moments", read)):
            scan = jax.jit(lambda y, step=step, filtered=filtered: jax.lax.scan(step, filtered.init(), y))
            print(f"  {name:18} {per_second(scan, options.updates, options.rounds):12,.0f} a second")


if __name__ == "__main__":
    main()
