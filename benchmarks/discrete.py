"""Which estimator learns a sigmoid belief network? 200 binary latents per image, equal time, held-out bounds.

Binarised 8x8 digits (shared data beside the repository): 1,500 images to train on, 297 held out. The decoder is
one linear layer, the prior's logits are learned. Each estimator gets the same seconds of training, compiling left out;
then ELBO and log evidence by 500 draws of each held-out image.

    python benchmarks/discrete.py [--seconds 20]
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module

import amortax as am

DIGITS = Path(__file__).parents[1].parent / "shared/data/digits8x8/digits.npz"
LATENTS = 200
ESTIMATORS = {
    "ELBO, leave-one-out, 2 draws": am.ELBO(num_choices=2),
    "ELBO, leave-one-out, 4 draws": am.ELBO(num_choices=4),
    "IWELBO, VIMCO, 4 draws": am.IWELBO(4),
    "straight-through, biased": am.ELBO(straight_through=0.5),
    "wake-sleep": am.WakeSleep(),
}


def belief_network(x):
    decoder = eqx_module("decoder", eqx.nn.Linear(LATENTS, 64, key=jax.random.key(0)))
    logits = numpyro.param("logits", jnp.zeros(LATENTS))
    with numpyro.plate("image", x.shape[0]):
        h = numpyro.sample("h", dist.Bernoulli(logits=logits).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=jax.vmap(decoder)(h.astype(jnp.float32))).to_event(1), obs=x)


def images():
    """(training, held-out) binarised digits."""
    pixels = np.load(DIGITS)["images"].reshape(-1, 64)
    x = (pixels > 7).astype(np.int32)[np.random.default_rng(0).permutation(len(pixels))]
    return {"x": x[:1500]}, {"x": x[1500:]}


def seconds_per_step(plan, data, objective):
    """From two runs that are compiled by the first."""
    taken = [
        am.fit(plan, data, key=jax.random.key(0), objective=objective, num_steps=n, batch_size=100).record.seconds
        for n in (100, 100, 400)
    ]
    return (taken[2] - taken[1]) / 300


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    training, held_out = images()
    encoder, classifier = am.dense(width=200, depth=1), am.factorised(width=200)
    plan = am.amortize(belief_network, training, plate="image", encoder=encoder, classifier=classifier)
    print(plan)
    for name, objective in ESTIMATORS.items():
        step = seconds_per_step(plan, training, objective)
        num_steps = int(options.seconds / step)
        began = time.perf_counter()
        run = {"objective": objective, "num_steps": num_steps, "batch_size": 100}
        posterior = am.fit(plan, training, key=jax.random.key(0), **run)
        units = posterior.check(held_out, key=jax.random.key(1), num_samples=500).units
        print(
            f"{name:30}: {1000 * step:.2f} ms a step, {posterior.record.num_steps:,} steps "
            f"({posterior.record.stopped}), held-out ELBO {units['elbo'].mean():.2f}, log evidence by 500 draws "
            f"{units['log_evidence'].mean():.2f}; {time.perf_counter() - began:.0f} s in all",
            flush=True,
        )


if __name__ == "__main__":
    main()
