"""How fast does `fit` train beside a loop written by hand in JAX for the same model?

Both sides train in one process, in turns, on the same data, batch, cores, optimizer, decoder and estimator (path
derivative with its share, see `objectives/estimators.py`): blocks of steps in one compiled loop, data on the device,
indices shuffled on the host; the networks have the same inputs and weights. What only amortax does is inside its time:
roll-back of steps that are not finite, and the average of the parameters. Printed: median units per second of each side
over the turns, and the ratio (ours / by hand).

    python benchmarks/training.py [--rounds 7]
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.contrib.module
import numpyro.distributions as dist
import optax

import amortax as am
from amortax.fitting import conform
from amortax.intake import to_batch
from amortax.joint.joint import Joint
from amortax.objectives.estimators import SHARE_UNITS
from amortax.train.initialise import initialise
from amortax.train.minibatches import BLOCK
from amortax.train.step import Setting, State, run_block, split_trainable

LEARNING_RATE = 1e-3


def adam():
    return optax.with_extra_args_support(
        optax.chain(optax.clip_by_global_norm(10.0), optax.adam(LEARNING_RATE, b1=0.9, b2=0.99))
    )


# --- the two models -----------------------------------------------------------------------------------------------


def vae_data(size=60_000):
    rng = np.random.default_rng(0)
    return {"image": (rng.random((size, 784)) < rng.random(784) * 0.3).astype(np.float32)}


class Decoder(eqx.Module):
    """A decoder as a user writes it, and as fast as can be: weights (in, out)."""

    first: tuple[jax.Array, jax.Array]
    second: tuple[jax.Array, jax.Array]

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.second = linear(keys[0], 20, 400), linear(keys[1], 400, 784)

    def __call__(self, z):
        return apply(self.second, jax.nn.silu(apply(self.first, z)))


def vae_model(decoder):
    def vae(image):
        network = numpyro.contrib.module.eqx_module("decoder", decoder)
        with numpyro.plate("image", image.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
            logits = jax.vmap(network)(z)
            numpyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=image)

    return vae


def groups_data(size=100_000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 10)).astype(np.float32)
    z = rng.normal(size=(size, 3)) * [1.0, 0.5, 0.3] + [1.0, -0.5, 0.2]
    y = z[:, :1] + z[:, 1:2] * x + z[:, 2:] * x**2 + 0.5 * rng.normal(size=(size, 10))
    return {"x": x, "y": y.astype(np.float32)}


def groups(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("group", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, spread).to_event(1))
        predicted = z[..., 0, None] + z[..., 1, None] * x + z[..., 2, None] * x**2
        numpyro.sample("y", dist.Normal(predicted, noise).to_event(1), obs=y)


# --- by hand --------------------------------------------------------------------------------------------------------


def normal_log_prob(value, mean, scale):
    return -0.5 * ((value - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def stop(tree):
    return jax.tree.map(jax.lax.stop_gradient, tree)


def path_share(z, slope, log_joint, rows):
    """The share of the path derivative, from every `spacing`-th unit, as `amortax.objectives.estimators` has it."""
    spacing = -(-len(z) // SHARE_UNITS)
    z, slope, rows = jax.tree.map(lambda x: stop(x)[::spacing], (z, slope, rows))
    along = jax.jvp(lambda z: log_joint(z, rows), (z,), (slope,))[1]
    square = (slope**2).sum(1)
    first, second = (along[i::2].sum() / jnp.maximum(square[i::2].sum(), 1e-30) for i in (0, 1))
    shares = stop(jnp.clip(jnp.stack([second, first]), 0.0, 1.0))
    return shares[(jnp.arange(spacing * len(z)) // spacing) % 2]


def linear(key, inputs, outputs):
    bound = 1 / np.sqrt(inputs)
    return jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), jnp.zeros(outputs)


def apply(layer, x):
    return x @ layer[0] + layer[1]


def hand_vae(data):
    center, scale = data["image"].mean(0), np.maximum(data["image"].std(0), 0.05)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "hidden": linear(keys[0], 784, 400),
        "heads": linear(keys[1], 400, 40),
        "decoder": Decoder(keys[2]),
    }

    def log_joint(decoder, z, x):
        logits = jax.vmap(decoder)(z)
        return normal_log_prob(z, 0.0, 1.0).sum(1) + (x * logits - jax.nn.softplus(logits)).sum(1)

    def loss(params, key, rows):
        x = rows["image"]
        mean, log_scale = jnp.split(
            apply(params["heads"], jax.nn.silu(apply(params["hidden"], (x - center) / scale))), 2, axis=1
        )
        noise = jax.random.normal(key, mean.shape)
        z = mean + jnp.exp(log_scale) * noise
        plain = normal_log_prob(noise, 0.0, 1.0).sum(1) - log_scale.sum(1)
        path = normal_log_prob(z, stop(mean), jnp.exp(stop(log_scale))).sum(1)
        slope = -(z - mean) * jnp.exp(-2 * log_scale)
        share = path_share(z, slope, lambda z, x: log_joint(stop(params["decoder"]), z, x), x)
        log_q = share * path + (1 - share) * plain
        return -jnp.mean(log_joint(params["decoder"], z, x) - log_q)

    return params, loss


def hand_groups(data):
    size = len(data["x"])
    inputs = {name: (x.mean(0), x.std(0)) for name, x in data.items()}
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "layers": [linear(keys[0], 20, 64), linear(keys[1], 64, 64)],
        "heads": [linear(keys[2], 64 + 20 + 14, 64), linear(keys[3], 64, 6)],
        "shared": jnp.concatenate([jnp.zeros(7), jnp.full(7, -1.2)]),
    }

    def log_joint(z, shared, rows):
        mean, spread, noise = 2 * shared[:3], jnp.exp(shared[3:6]), jnp.exp(shared[6])
        x = rows["x"]
        predicted = z[:, :1] + z[:, 1:2] * x + z[:, 2:] * x**2
        return normal_log_prob(z, mean, spread).sum(1) + normal_log_prob(rows["y"], predicted, noise).sum(1)

    def loss(params, key, rows):
        shared_key, local_key = jax.random.split(key)
        shared_mean, shared_log = jnp.split(params["shared"], 2)
        shared = shared_mean + jnp.exp(shared_log) * jax.random.normal(shared_key, (7,))
        plain = hidden = jnp.concatenate([(rows[n] - c) / s for n, (c, s) in inputs.items()], axis=1)
        for layer in params["layers"]:
            hidden = jax.nn.silu(apply(layer, hidden))
        own_scale = (shared - stop(shared_mean)) * jnp.exp(-stop(shared_log))
        shared_told = jnp.broadcast_to(jnp.concatenate([shared, own_scale]), (len(plain), 14))
        told = jnp.concatenate([hidden, plain, shared_told], axis=1)
        m, log_s = jnp.split(apply(params["heads"][1], jax.nn.silu(apply(params["heads"][0], told))), 2, axis=1)
        noise_z = jax.random.normal(local_key, m.shape)
        z = m + jnp.exp(log_s) * noise_z
        told_still = jnp.concatenate([stop(hidden), plain, shared_told], axis=1)
        still = stop(params["heads"])
        m_, log_s_ = jnp.split(apply(still[1], jax.nn.silu(apply(still[0], told_still))), 2, axis=1)
        plain_q = normal_log_prob(noise_z, 0.0, 1.0).sum(1) - log_s.sum(1)
        share = path_share(z, -(z - m) * jnp.exp(-2 * log_s), lambda z, r: log_joint(z, stop(shared), r), rows)
        log_q = share * normal_log_prob(z, m_, jnp.exp(log_s_)).sum(1) + (1 - share) * plain_q
        log_p = log_joint(z, shared, rows)
        log_shared = normal_log_prob(shared, 0.0, 1.0).sum()
        log_shared -= normal_log_prob(shared, stop(shared_mean), jnp.exp(stop(shared_log))).sum()
        return -(log_shared + size / len(z) * jnp.sum(log_p - log_q)) / size

    return params, loss


class ByHand:
    def __init__(self, make, data, batch):
        params, loss = make(data)
        self.data, self.optimizer = jax.tree.map(jnp.asarray, data), adam()
        self.state = (params, self.optimizer.init(params), jax.random.key(1))
        self.indices = shuffled(len(next(iter(data.values()))), batch)

        def block(state, data, indices):
            def step(state, rows):
                params, optimizer, key = state
                key, noise = jax.random.split(key)
                batch = jax.tree.map(lambda x: x[rows], data)
                value, gradient = jax.value_and_grad(loss)(params, noise, batch)
                updates, optimizer = self.optimizer.update(gradient, optimizer, params)
                return (optax.apply_updates(params, updates), optimizer, key), value

            return jax.lax.scan(step, state, indices)

        self.block = jax.jit(block, donate_argnums=0)

    def run(self):
        self.state, values = self.block(self.state, self.data, next(self.indices))
        return float(-values.mean())


# --- amortax ----------------------------------------------------------------------------------------------------------


class Ours:
    """The engine of `fit` (its compiled block, its sources of indices), stopped between blocks to be timed."""

    def __init__(self, model, data, plate, batch, **choices):
        units = am.units(data, name=plate)
        plan = am.amortize(model, units, plate=plate, **choices)
        found = to_batch(
            conform(units, Joint(model, plan.structure, initialise(plan, to_batch(units), jax.random.key(0))[0].params))
        )
        joint, guide = initialise(plan, found, jax.random.key(0))
        params, rest = split_trainable(joint, guide)
        optimizer = adam()
        resident = (jax.tree.map(jnp.asarray, found),)
        self.setting = Setting(rest, am.ELBO(), optimizer, resident, jnp.asarray(float(len(units))))
        params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        self.state = State(params, optimizer.init(params), jax.random.key(1), jnp.zeros((), jnp.int32))
        self.indices = shuffled(len(units), batch)

    def run(self):
        self.state, result = run_block((self.setting, next(self.indices), jnp.asarray(BLOCK)), self.state)
        return float(np.asarray(result.elbo_per_unit).mean())


def shuffled(size, batch):
    rng = np.random.default_rng(0)
    while True:
        rows = np.concatenate([rng.permutation(size) for _ in range(1 + BLOCK * batch // size)])[: BLOCK * batch]
        yield jnp.asarray(rows.reshape(BLOCK, batch), jnp.int32)


def compare(name, ours, by_hand, batch, rounds):
    sides, seconds, bound, compile_seconds = {"amortax": ours, "by hand": by_hand}, {}, {}, {}
    for label, side in sides.items():
        start = time.perf_counter()
        side.run()
        compile_seconds[label] = time.perf_counter() - start
        seconds[label] = []
    for _ in range(rounds):
        for label, side in sides.items():
            start = time.perf_counter()
            bound[label] = side.run()
            seconds[label].append(time.perf_counter() - start)
    rate = {label: BLOCK * batch / statistics.median(times) for label, times in seconds.items()}
    for label in sides:
        first = f"first block {compile_seconds[label]:5.1f} s"
        print(f"{name:12} {label:8} {rate[label]:12,.0f} units/s   {first}   ELBO {bound[label]:.3f}")
    ratios = [b / a for a, b in zip(seconds["amortax"], seconds["by hand"], strict=True)]
    print(f"{name:12} ratio    {statistics.median(ratios):12.2f} (median of {rounds} turns)\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    decoder = Decoder(jax.random.key(2))
    images = vae_data()
    ours = Ours(vae_model(decoder), images, "image", 128, encoder=am.dense(width=400, depth=1), family=am.diagonal())
    compare("VAE", ours, ByHand(hand_vae, images, 128), 128, rounds)
    data = groups_data()
    ours = Ours(
        groups,
        data,
        "group",
        256,
        head=am.concatenate(),
        family=am.diagonal(depth=1),
        shared_family=am.diagonal(),
    )
    compare("hierarchical", ours, ByHand(hand_groups, data, 256), 256, rounds)
