"""A variational autoencoder of handwritten digits: a diagonal posterior against a flow, equal encoder, equal time.

    python examples/vae/vae.py                      # 8 x 8 digits, which are in examples/data
    python examples/vae/vae.py --data mnist.npz     # MNIST
    python examples/vae/vae.py --small              # a minute and a half, for CI

Prints, for each posterior, on test images: the ELBO, the evidence by importance draws, k-hat, and what it took.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module

import amortax as am

DIGITS = Path(__file__).parents[1] / "data" / "digits.npz"


class Decoder(eqx.Module):
    """Latents of one image -> logits of its pixels (H, W): any Equinox module will do."""

    network: eqx.nn.MLP
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, latents: int, width: int, shape: tuple[int, int], *, key: jax.Array) -> None:
        self.network = eqx.nn.MLP(latents, shape[0] * shape[1], width, depth=1, activation=jax.nn.silu, key=key)
        self.shape = shape

    def __call__(self, z: jax.Array) -> jax.Array:
        """The logits at `z`."""
        return self.network(z).reshape(self.shape)


def vae(image: jax.Array, decoder: Decoder, latents: int) -> None:
    """The model: standard normal latents, pixels on or off, a decoder learned by maximum likelihood."""
    network = eqx_module("decoder", decoder)
    with numpyro.plate("image", image.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([latents]).to_event(1))
        numpyro.sample("pixels", dist.Bernoulli(logits=jax.vmap(network)(z)).to_event(2), obs=image)


def read(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images (N, H, W) of zeros and ones, each pixel drawn once by its intensity."""
    random = np.random.RandomState(0)
    if path is None:
        grey = np.load(DIGITS)["images"] / 16
        kept = random.permutation(len(grey))
        training, test = grey[kept[300:]], grey[kept[:300]]
    else:
        arrays = np.load(path)
        training, test = arrays["train_images"] / 255, arrays["test_images"] / 255
    test = random.random_sample(test.shape) < test
    training = random.random_sample(training.shape) < training
    return training.astype(np.float32), test.astype(np.float32)


def train(plan: am.Plan, images: np.ndarray, num_steps: int, batch_size: int) -> am.Posterior:
    """The posterior after so many steps."""
    options = {"num_steps": num_steps, "batch_size": batch_size, "optimizer": optimizer(num_steps)}
    return am.fit(plan, {"image": images}, key=jax.random.key(0), **options)


@functools.cache  # one object for one number: a second fit compiles nothing
def optimizer(num_steps: int) -> optax.GradientTransformation:
    """Adam with smaller steps than the default: with those, two runs of a flow differed by two nats."""
    rate = optax.cosine_decay_schedule(2e-3, num_steps, alpha=0.05)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate, b2=0.99))


def paces(plans: dict[str, am.Plan], images: np.ndarray, batch_size: int) -> dict[str, float]:
    """Steps per second of each plan: the slower of two runs of 1,000 steps, by turn, after one that compiles."""
    slowest = dict.fromkeys(plans, 0.0)
    for turn in range(3):
        for name, plan in plans.items():
            seconds = train(plan, images, 1000, batch_size).record.seconds
            slowest[name] = max(slowest[name], seconds) if turn else 0.0
    return {name: 1000 / seconds for name, seconds in slowest.items()}


def independent_pixels(training: np.ndarray, test: np.ndarray) -> float:
    """Mean log probability of test images if pixels were independent: what any decoder must beat."""
    share = (training.sum(axis=0) + 0.5) / (len(training) + 1)
    return float(np.where(test > 0, np.log(share), np.log1p(-share)).sum(axis=(1, 2)).mean())


def row(name: str, posterior: am.Posterior, test: np.ndarray, num_samples: int) -> tuple[str, np.ndarray]:
    """One line of the table, and the ELBO of every test image."""
    start = time.perf_counter()
    found = posterior.evidence({"image": test}, key=jax.random.key(1), num_samples=num_samples)
    record, took = posterior.record, time.perf_counter() - start
    numbers = {key: float(found[key].mean()) for key in ("elbo", "log_evidence")}
    error = float(np.sqrt((found["standard_error"] ** 2).sum())) / len(test)
    above = float((found["pareto_k"] > 0.7).mean())
    line = (
        f"{name:10} {numbers['elbo']:10.2f} {numbers['log_evidence']:10.2f} ± {error:.2f}"
        f" {numbers['log_evidence'] - numbers['elbo']:7.2f} {above:9.0%} {record.num_steps:8,}"
        f" {record.seconds:7.1f} s {took:9.1f} s"
    )
    return line, found["elbo"].values


def picture(path: Path, posteriors: dict[str, am.Posterior], test: np.ndarray) -> None:
    """Test images, and what each posterior makes of them: means of 50 predictive draws."""
    import matplotlib.pyplot as plt

    rows = {"data": test[:10]}
    for name, posterior in posteriors.items():
        drawn = posterior.predict({"image": test[:10]}, num_samples=50, key=jax.random.key(2))["pixels"]
        rows[name] = drawn.mean("sample").values
    figure, axes = plt.subplots(len(rows), 10, figsize=(6, 0.65 * len(rows)))
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=90, bbox_inches="tight")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="mnist.npz; without it the 8 x 8 digits")
    parser.add_argument("--small", action="store_true", help="a small form of the 8 x 8 digits")
    parser.add_argument("--seconds", type=float, help="of training, for each posterior (default 60, MNIST 300)")
    parser.add_argument("--steps", type=int, nargs=2, help="of the diagonal posterior and of the flow, not --seconds")
    parser.add_argument("--encoder", choices=("dense", "convolution"), default="dense")
    parser.add_argument("--flow", choices=("coupling", "iaf"), default="coupling")
    parser.add_argument("--layers", type=int, default=4, help="of the flow")
    parser.add_argument("--latents", type=int, help="default 20, 8 x 8 digits 8")
    parser.add_argument("--images", type=int, help="test images to judge by (default 300, MNIST 1,000)")
    parser.add_argument("--samples", type=int, default=5000, help="importance draws for each test image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="where to write the picture")
    given = parser.parse_args()
    large = given.data is not None
    given.seconds = given.seconds or (10.0 if given.small else 300.0 if large else 60.0)
    given.latents = given.latents or (20 if large else 8)
    given.images = given.images or (1000 if large else 300)
    given.samples = 500 if given.small else given.samples
    return given


def main() -> None:
    """Trains and judges both posteriors."""
    given = arguments()
    training, test = read(given.data)
    test = test[: given.images]
    width = 400 if given.data else 128
    decoder = Decoder(given.latents, width, training.shape[1:], key=jax.random.key(0))
    model = functools.partial(vae, decoder=decoder, latents=given.latents)
    encoder = am.convolution() if given.encoder == "convolution" else am.dense(width=width, depth=2)
    flow = {"coupling": am.coupling, "iaf": am.iaf}[given.flow](layers=given.layers, outer=am.diagonal())
    posteriors: dict[str, am.Posterior] = {}
    found: dict[str, np.ndarray] = {}
    print(f"{len(training):,} training and {len(test):,} test images, {training[0].size} pixels, {jax.devices()[0]}")
    print(f"independent pixels: {independent_pixels(training, test):.2f} nats per image")
    print("posterior        ELBO   log p(image)        gap  k > 0.7    steps  trained    judged")
    plans = {
        name: am.amortize(model, {"image": training}, plate="image", encoder=encoder, family=family)
        for name, family in {"diagonal": am.diagonal(), given.flow: flow}.items()
    }
    steps = given.steps or [
        max(200, int(given.seconds * pace)) for pace in paces(plans, training, given.batch_size).values()
    ]
    for (name, plan), num_steps in zip(plans.items(), steps, strict=True):
        posteriors[name] = train(plan, training, num_steps, given.batch_size)
        line, found[name] = row(name, posteriors[name], test, given.samples)
        print(line, flush=True)
    gain = found[given.flow] - found["diagonal"]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"test ELBO of the flow less that of the diagonal posterior: {gain.mean():+.2f} ± {error:.2f} nats per image")
    if given.out:
        picture(given.out, posteriors, test)


if __name__ == "__main__":
    main()
