"""Six tasks of sbibm (Lueckmann et al. 2021) as NumPyro models, with what of amortax each is given to.

The models are written from the descriptions in `shared/data/sbibm/README.md`; observations and reference draws are
read from there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import amortax as am

DATA = Path(__file__).parents[2] / "shared" / "data" / "sbibm"
VARIANCE = 0.1


class Moons(dist.Distribution):
    """Half a ring of radius N(0.1, 0.01) around `center`, moved by 0.25."""

    arg_constraints = {"center": constraints.real_vector}
    support = constraints.real_vector
    reparametrized_params: list[str] = []

    def __init__(self, center: Any, *, validate_args: Any = None) -> None:
        self.center = center
        super().__init__(jnp.shape(center)[:-1], (2,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        angle_key, radius_key = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        angle = jax.random.uniform(angle_key, shape, minval=-math.pi / 2, maxval=math.pi / 2)
        radius = 0.1 + 0.01 * jax.random.normal(radius_key, shape)
        return self.center + jnp.stack([radius * jnp.cos(angle) + 0.25, radius * jnp.sin(angle)], axis=-1)

    def log_prob(self, value: Any) -> Any:
        """Of radius and angle, over the Jacobian; a negative radius is ten sd away and left out."""
        away = value - self.center - jnp.array([0.25, 0.0])
        radius = jnp.sqrt(jnp.sum(away**2, axis=-1) + 1e-12)
        inside = away[..., 0] > 0
        log_prob = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(radius) - math.log(math.pi)
        return jnp.where(inside, log_prob, -1e4 + 1e4 * away[..., 0])  # a slope where there is no probability


class SpikeStatistics(dist.Distribution):
    """V'y of y_i ~ Bernoulli(sigmoid((V theta)_i)), up to the number of y that have it, which theta does not change."""

    arg_constraints = {"theta": constraints.real_vector}
    support = constraints.real_vector

    pytree_data_fields = ("design",)

    def __init__(self, theta: Any, design: Any, *, validate_args: Any = None) -> None:
        self.theta, self.design = theta, design
        super().__init__(jnp.shape(theta)[:-1], (jnp.shape(design)[-1],), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        logits = self.theta @ self.design.T
        spikes = jax.random.bernoulli(key, jax.nn.sigmoid(logits), (*sample_shape, *jnp.shape(logits)))
        return spikes.astype(float) @ self.design

    def log_prob(self, value: Any) -> Any:
        return jnp.sum(value * self.theta, axis=-1) - jnp.sum(jax.nn.softplus(self.theta @ self.design.T), axis=-1)


def gaussian_linear(x: Any) -> None:
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(10), VARIANCE**0.5))
    numpyro.sample("x", dist.Normal(theta, VARIANCE**0.5), obs=x)


def gaussian_linear_uniform(x: Any) -> None:
    theta = numpyro.sample("theta", dist.Uniform(-jnp.ones(10), 1.0))
    numpyro.sample("x", dist.Normal(theta, VARIANCE**0.5), obs=x)


def gaussian_mixture(x: Any) -> None:
    theta = numpyro.sample("theta", dist.Uniform(-10.0 * jnp.ones(2), 10.0))
    each = dist.Normal(jnp.stack([theta, theta]), jnp.array([[1.0], [0.1]])).to_event(1)
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), each), obs=x)


def two_moons(x: Any) -> None:
    theta = numpyro.sample("theta", dist.Uniform(-jnp.ones(2), 1.0))
    center = jnp.stack([-jnp.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / math.sqrt(2.0)
    numpyro.sample("x", Moons(center), obs=x)


def bernoulli_glm(x: Any, *, precision: Any, design: Any) -> None:
    theta = numpyro.sample("theta", dist.MultivariateNormal(jnp.zeros(10), precision_matrix=precision))
    numpyro.sample("x", SpikeStatistics(theta, design), obs=x)


def slcp(x: Any) -> None:
    theta = numpyro.sample("theta", dist.Uniform(-3.0 * jnp.ones(5), 3.0))
    first, second, slope = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
    off = slope * first * second
    covariance = jnp.array([[first**2 + 1e-6, off], [off, second**2 + 1e-6]])
    top = jnp.sqrt(covariance[0, 0])
    low = jnp.sqrt(covariance[1, 1] - (off / top) ** 2)
    tril = jnp.array([[top, 0.0], [off / top, low]])
    with numpyro.plate("draw", x.shape[0]):
        numpyro.sample("x", dist.MultivariateNormal(theta[:2], scale_tril=tril), obs=x)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, the shape of its data, and how q is learned: arguments of `am.fit`, call after call."""

    model: Callable
    shape: tuple[int, ...]
    family: Any
    published: float  # mean C2ST of NPE with 100,000 simulations
    stages: tuple[dict[str, Any], ...]


def _fit(objective: Any, num_steps: int, batch_size: int = 256) -> dict[str, Any]:
    return {"objective": objective, "num_steps": num_steps, "batch_size": batch_size}


def _splines(layers: int) -> Any:
    return am.coupling(layers=layers, transform=am.spline())


# Forward KL puts q on all modes; the likelihood then sharpens it, by the ELBO, whose noise vanishes as q becomes right.
# Not where the data have a sharp end (the half ring of two_moons), of which the ELBO keeps away, nor where one flow
# bridges several modes (slcp): there by draws reweighted with the likelihood, and the pairs.
FORWARD, ELBO, WakeSleep = am.ForwardKL(), am.ELBO, am.WakeSleep
TASKS = {
    task.model.__name__: task
    for task in (
        Task(gaussian_linear, (10,), am.full(), 0.506, (_fit(FORWARD, 1000), _fit(ELBO(), 1000))),
        Task(gaussian_linear_uniform, (10,), _splines(4), 0.509, (_fit(FORWARD, 500), _fit(ELBO(), 1500))),
        Task(
            gaussian_mixture,
            (2,),
            am.mixture(_splines(4), 2),
            0.548,
            (_fit(FORWARD, 1500), _fit(ELBO(2), 4500, batch_size=128)),
        ),
        Task(
            two_moons,
            (2,),
            _splines(6),
            0.542,
            (_fit(FORWARD, 3000), _fit(WakeSleep(16, wake_share=0.9), 5000, batch_size=64)),
        ),
        Task(
            bernoulli_glm,
            (10,),
            am.coupling(4, outer=am.full()),
            0.559,
            (_fit(FORWARD, 500), _fit(ELBO(), 2500)),
        ),
        Task(
            slcp,
            (4, 2),
            _splines(6),
            0.831,
            (_fit(FORWARD, 2000), _fit(WakeSleep(16, wake_share=0.8), 2000, batch_size=64)),
        ),
    )
}


def load(name: str) -> tuple[Task, np.ndarray, np.ndarray]:
    """(task, observations, reference draws), constants of the model bound."""
    task, stored = TASKS[name], np.load(DATA / f"{name}.npz")
    if name == "bernoulli_glm":
        bound = {"precision": jnp.asarray(stored["prior_precision"]), "design": jnp.asarray(stored["design_matrix"])}
        task = dataclasses.replace(task, model=functools.partial(task.model, **bound))
    return task, stored["observations"].reshape(-1, *task.shape), stored["reference_samples"]
