"""Semi-supervised learning: the M2 model of Kingma and others (2014) on digits of which few have a label.

    python examples/semisupervised/m2.py                                       # 8 x 8 digits, 100 labels
    python examples/semisupervised/m2.py --data mnist.npz --labels 100         # MNIST
    python examples/semisupervised/m2.py --small                               # two minutes, for CI

The model is ordinary NumPyro with a class site observed through `label`, which most images miss: amortax sums over the
ten classes for those and learns q(class | image), the classifier. Prints its accuracy on test images beside that of the
same model and classifier trained on the labelled images alone.

Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised learning with deep generative models.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module

import amortax as am

DIGITS = Path(__file__).parents[1] / "data" / "digits.npz"
CLASSES = 10


class Decoder(eqx.Module):
    """(Style, class) of one image -> logits of its pixels (H, W)."""

    network: eqx.nn.MLP
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, latents: int, width: int, shape: tuple[int, int], *, key: jax.Array) -> None:
        pixels = shape[0] * shape[1]
        self.network = eqx.nn.MLP(latents + CLASSES, pixels, width, depth=1, activation=jax.nn.silu, key=key)
        self.shape = shape

    def __call__(self, style: jax.Array, digit: jax.Array) -> jax.Array:
        """The logits at a style and a class."""
        return self.network(jnp.concatenate([style, jax.nn.one_hot(digit, CLASSES)])).reshape(self.shape)


def m2(image: jax.Array, label: jax.Array, decoder: Decoder, latents: int) -> None:
    """A class with equal chances, a style, and an image made of both."""
    network = eqx_module("decoder", decoder)
    with numpyro.plate("image", image.shape[0]):
        digit = numpyro.sample("digit", dist.Categorical(logits=jnp.zeros(CLASSES)), obs=label)
        style = numpyro.sample("style", dist.Normal(0.0, 1.0).expand([latents]).to_event(1))
        numpyro.sample("pixels", dist.Bernoulli(logits=jax.vmap(network)(style, digit)).to_event(2), obs=image)


class Images(NamedTuple):
    """All that is trained and judged on; pixels are drawn once as on or off, by their intensity."""

    training: dict  # "image", and "label", masked where it is missing
    validation: np.ndarray  # more images without label: their bound says when to stop
    test: np.ndarray
    answers: np.ndarray  # of the test images


def read(path: Path | None, labels: int, splits: Path | None, seed: int, copies: int) -> Images:
    """The images, with as many labels of each class, by `seed` or as `splits` says, `copies` of each."""
    random = np.random.RandomState(seed)
    if path is None:
        arrays = np.load(DIGITS)
        grey, digit = arrays["images"] / 16, arrays["labels"].astype(np.int32)
        kept = np.random.RandomState(0).permutation(len(grey))
        test, answers, validation = grey[kept[:300]], digit[kept[:300]], grey[kept[300:450]]
        grey, digit = grey[kept[450:]], digit[kept[450:]]
    else:
        arrays = np.load(path)
        grey, digit = arrays["train_images"] / 255, arrays["train_labels"][:50_000].astype(np.int32)
        grey, validation = grey[:50_000], grey[50_000:52_000]
        test, answers = arrays["test_images"] / 255, arrays["test_labels"]
    if splits is None:
        each = [random.permutation(np.flatnonzero(digit == k))[: labels // CLASSES] for k in range(CLASSES)]
        known = np.concatenate(each)
    else:
        known = np.load(splits)[f"labelled_{labels}_seed{seed}"]
    missing = ~np.isin(np.arange(len(digit)), known)
    pixels = np.random.RandomState(0)
    binary = ((pixels.random_sample(x.shape) < x).astype(np.float32) for x in (grey, validation, test))
    images, validation, test = binary
    rows = np.concatenate([np.arange(len(digit)), np.tile(known, copies - 1)])
    label = np.ma.array(digit[rows], mask=missing[rows])
    return Images({"image": images[rows], "label": label}, validation, test, answers)


def accuracy(posterior: am.Posterior, test: np.ndarray, answers: np.ndarray, num_samples: int = 50) -> float:
    """Share of test images whose most frequent class among draws of q(class | image) is the right one."""
    drawn = posterior.sample({"image": test}, num_samples=num_samples, key=jax.random.key(1))["digit"].values
    counts = (drawn[..., None] == np.arange(CLASSES)).sum(axis=0)
    return float((counts.argmax(axis=1) == answers).mean())


def train(model: functools.partial, images: Images, given: argparse.Namespace, *, alone: bool) -> am.Posterior:
    """On all images, or on the labelled ones `alone`."""
    data, known = images.training, ~np.ma.getmaskarray(images.training["label"])
    if alone:
        data = {"image": data["image"][known], "label": np.asarray(data["label"][known])}
    recipes = {"encoder": am.dense(width=given.width, depth=2), "family": am.diagonal()}
    plan = am.amortize(model, data, plate="image", missing=["label"] * alone, **recipes)
    weight = 1.0 if alone else given.alpha * len(known) / known.sum()  # Kingma's alpha, see amortax.objectives.labels
    return am.fit(
        plan,
        data,
        key=jax.random.key(given.seed),
        objective=am.ELBO(classifier_weight=float(weight)),
        num_steps=min(given.steps, 1000) if alone else given.steps,
        batch_size=min(given.batch_size, len(data["image"])),
        run=None if alone else am.Run(validation={"image": images.validation}),
    )


def picture(path: Path, posterior: am.Posterior, test: np.ndarray) -> None:
    """The style of six test images with every class: what the model has learned to keep apart."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(6, 11, figsize=(5.5, 3))
    for line, image in zip(axes, test[:6], strict=True):
        of_each = {"image": np.repeat(image[None], CLASSES, axis=0), "label": np.arange(CLASSES)}
        drawn = posterior.predict(of_each, num_samples=50, key=jax.random.key(2))["pixels"].mean("sample").values
        for axis, shown in zip(line, [image, *drawn], strict=True):
            axis.imshow(shown, cmap="gray_r", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(path, dpi=90, bbox_inches="tight")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="mnist.npz; without it the 8 x 8 digits")
    parser.add_argument("--splits", type=Path, help="npz with labelled_<labels>_seed<seed>: which images have labels")
    parser.add_argument("--small", action="store_true", help="a small form of the 8 x 8 digits")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--copies", type=int, default=1, help="of each labelled image, so that more are in a batch")
    parser.add_argument("--seed", type=int, default=0, help="which images have labels, and of training")
    parser.add_argument("--steps", type=int, help="default 3,000, MNIST 10,000")
    parser.add_argument("--alpha", type=float, default=1.0, help="of the classifier's own term")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--latents", type=int, help="default 50, 8 x 8 digits 10")
    parser.add_argument("--width", type=int, help="of all networks; default 256, 8 x 8 digits 128")
    parser.add_argument("--out", type=Path, help="where to write the picture")
    given = parser.parse_args()
    large = given.data is not None
    given.steps = given.steps or (800 if given.small else 10_000 if large else 3_000)
    given.latents = given.latents or (50 if large else 10)
    given.width = given.width or (256 if large else 128)
    return given


def main() -> None:
    """Trains with and without the unlabelled images."""
    given = arguments()
    images = read(given.data, given.labels, given.splits, given.seed, given.copies)
    count, *shape = images.training["image"].shape
    decoder = Decoder(given.latents, given.width, tuple(shape), key=jax.random.key(0))
    model = functools.partial(m2, decoder=decoder, latents=given.latents)
    print(f"{count:,} images, {given.labels} of them with a label; {len(images.test):,} test images")
    posterior = None
    for name, alone in (("labelled images alone", True), ("all images", False)):
        posterior = train(model, images, given, alone=alone)
        record = posterior.record
        right = accuracy(posterior, images.test, images.answers)
        pace = record.num_steps * record.batch_size / record.seconds
        took = f"{record.num_steps:,} steps, {record.seconds:.0f} s, {pace:,.0f} images/s"
        print(f"{name:22} accuracy {right:.1%}  ({took})", flush=True)
    if given.out and posterior is not None:
        picture(given.out, posterior, images.test)


if __name__ == "__main__":
    main()
