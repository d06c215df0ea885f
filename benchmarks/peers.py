"""How fast do others train the models of `training.py`? NumPyro SVI, Pyro and PyTorch beside amortax, in one run.

All sides, JAX by hand too, take turns in one process: the same data, batch, sizes of networks, Adam at the same rate,
blocks of 100 steps, and one draw per step. NumPyro runs each block in one compiled loop around `svi.update`, as its VAE
example does; Pyro and PyTorch run eagerly, a step at a time, data in memory. Printed: median units a second, the first
block (compilation included), and the bound per unit as the mean over the last block, all after equally many steps.
Peers that are not installed are left out; they belong in an environment of their own (`pip install torch pyro-ppl`),
with this repository's `src` on PYTHONPATH.

    python benchmarks/peers.py [--rounds 7] [--models VAE,hierarchical]
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from peers_torch import pyro_side, torch_side
from training import (
    BLOCK,
    ByHand,
    Decoder,
    Ours,
    adam,
    apply,
    groups,
    groups_data,
    hand_groups,
    hand_vae,
    linear,
    shuffled,
    vae_data,
    vae_model,
)

import amortax as am

BATCH = {"VAE": 128, "hierarchical": 256}


class NumPyro:
    """`svi.update` in one compiled loop of 100 steps, the batch given."""

    def __init__(self, model, guide, data, batch):
        self.svi = SVI(model, guide, numpyro.optim.optax_to_numpyro(adam()), Trace_ELBO())
        self.data = jax.tree.map(jnp.asarray, data)
        self.indices, self.size = shuffled(len(next(iter(data.values()))), batch), len(next(iter(data.values())))
        self.state = self.svi.init(jax.random.key(0), **jax.tree.map(lambda x: x[:batch], self.data))

        def block(state, data, indices):
            def step(state, rows):
                return self.svi.update(state, **jax.tree.map(lambda x: x[rows], data))

            return jax.lax.scan(step, state, indices)

        self.block = jax.jit(block)

    def run(self):
        self.state, losses = self.block(self.state, self.data, next(self.indices))
        return -float(losses.mean()) / self.size


def numpyro_vae(data, batch):
    size, keys = len(data["image"]), jax.random.split(jax.random.key(0), 3)
    center, scale = data["image"].mean(0), np.maximum(data["image"].std(0), 0.05)
    start = {"hidden": linear(keys[0], 784, 400), "heads": linear(keys[1], 400, 40)}
    decoder = Decoder(keys[2])

    def model(image):
        (net,) = numpyro.param("decoder", (decoder,))  # a callable alone would be taken for an initialiser
        with numpyro.plate("image", len(image)), numpyro.handlers.scale(scale=size / len(image)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
            numpyro.sample("pixels", dist.Bernoulli(logits=net(z)).to_event(1), obs=image)

    def guide(image):
        net = numpyro.param("encoder", start)
        hidden = jax.nn.silu(apply(net["hidden"], (image - center) / scale))
        mean, log_scale = jnp.split(apply(net["heads"], hidden), 2, axis=-1)
        with numpyro.plate("image", len(image)), numpyro.handlers.scale(scale=size / len(image)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    return NumPyro(model, guide, data, batch)


def numpyro_groups(data, batch):
    size, start = len(data["x"]), hand_groups(data)[0]
    inputs = {name: (x.mean(0), x.std(0)) for name, x in data.items()}

    def model(x, y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        spread = numpyro.sample("spread", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("group", len(x)), numpyro.handlers.scale(scale=size / len(x)):
            z = numpyro.sample("z", dist.Normal(mean, spread).to_event(1))
            predicted = z[..., 0, None] + z[..., 1, None] * x + z[..., 2, None] * x**2
            numpyro.sample("y", dist.Normal(predicted, noise).to_event(1), obs=y)

    def guide(x, y):
        net = numpyro.param("guide", start)
        mean, log_scale = jnp.split(net["shared"], 2)
        sd = jnp.exp(log_scale)
        drawn = [
            numpyro.sample("mean", dist.Normal(2 * mean[:3], 2 * sd[:3]).to_event(1)) / 2,
            jnp.log(numpyro.sample("spread", dist.LogNormal(mean[3:6], sd[3:6]).to_event(1))),
            jnp.log(numpyro.sample("noise", dist.LogNormal(mean[6], sd[6])))[None],
        ]
        free = jnp.concatenate(drawn)
        plain = jnp.concatenate([(v - c) / s for v, (c, s) in zip((x, y), inputs.values(), strict=True)], axis=1)
        hidden = plain
        for layer in net["layers"]:
            hidden = jax.nn.silu(apply(layer, hidden))
        told = jnp.broadcast_to(jnp.concatenate([free, (free - mean) / sd]), (len(x), 14))
        inner = jax.nn.silu(apply(net["heads"][0], jnp.concatenate([hidden, plain, told], axis=1)))
        m, log_s = jnp.split(apply(net["heads"][1], inner), 2, axis=1)
        with numpyro.plate("group", len(x)), numpyro.handlers.scale(scale=size / len(x)):
            numpyro.sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))

    return NumPyro(model, guide, data, batch)


def sides_of(name):
    """(label, side) of every side, built when its turn comes."""
    batch = BATCH[name]
    if name == "VAE":
        data = vae_data()
        choices = {"encoder": am.dense(width=400, depth=1), "family": am.diagonal()}
        yield "amortax", Ours(vae_model(Decoder(jax.random.key(2))), data, "image", batch, **choices)
        yield "JAX by hand", ByHand(hand_vae, data, batch)
        yield "NumPyro SVI", numpyro_vae(data, batch)
    else:
        data = groups_data()
        choices = {"head": am.concatenate(), "family": am.diagonal(depth=1), "shared_family": am.diagonal()}
        yield "amortax", Ours(groups, data, "group", batch, **choices)
        yield "JAX by hand", ByHand(hand_groups, data, batch)
        yield "NumPyro SVI", numpyro_groups(data, batch)
    for label, build in (("PyTorch by hand", torch_side), ("Pyro SVI", pyro_side)):
        try:
            yield label, build(name, data, batch)
        except ImportError as error:
            print(f"left out: {label} ({error})")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default=",".join(BATCH))
    options = parser.parse_args()
    print("| model | code | units/s | of amortax | first block | bound per unit |\n|---|---|--:|--:|--:|--:|")
    for name in options.models.split(","):
        sides, first, seconds, bound = dict(sides_of(name)), {}, {}, {}
        for label, side in sides.items():
            start = time.perf_counter()
            side.run()
            first[label], seconds[label] = time.perf_counter() - start, []
        for _ in range(options.rounds):
            for label, side in sides.items():
                start = time.perf_counter()
                bound[label] = side.run()
                seconds[label].append(time.perf_counter() - start)
        rate = {label: BLOCK * BATCH[name] / statistics.median(times) for label, times in seconds.items()}
        for label in sides:
            share = rate[label] / rate["amortax"]
            print(
                f"| {name} | {label} | {rate[label]:,.0f} | {share:.2f} | {first[label]:.1f} s | {bound[label]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
