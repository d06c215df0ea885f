"""Linear-Gaussian state space: a hidden level that moves from step to step, measured with noise.

    z_1 ~ Normal(0, start),    z_t ~ Normal(persistence z_(t-1), innovation),    y_t ~ Normal(z_t, observation)

With persistence 1 the level is a random walk that starts with sd `innovation`; below 1 it starts at the stationary
distribution, with sd innovation / sqrt(1 - persistence²). Of `many` series each is a unit, and the smoother of a new
one comes in one forward pass:

    model = functools.partial(state_space.many, persistence=0.9)
    guide = am.amortize(model, {"y": y}, plate="series", family=am.markov())

Of `one` series, y (1, T), nothing is amortized; levels and scales are inferred together. Where the observations leave
one of two scales nearly zero the posterior is a funnel, which weighted draws of a flow reach:

    guide = am.amortize(state_space.one, {"y": y}, plate="series", shared_family=am.coupling(6))
    objective = am.IWELBO(1, num_shared_draws=16, weigh_shared=True)

(tests/statistical/test_series.py: against exact answers). Scales are numbers where they are known, else priors.

Durbin and Koopman, Time Series Analysis by State Space Methods (2012).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions.transforms import RecursiveLinearTransform

from amortax._errors import DataError, ModelError
from amortax.models.scales import check_prior, known_or_drawn

__all__ = ["many", "one"]

Scale = dist.Distribution | float


def many(
    y: Float[Array, "series step"],
    *,
    innovation: Scale = 1.0,
    observation: Scale = 1.0,
    persistence: float = 1.0,
) -> None:
    """Many series, whose scales are the same; amortize it over the plate "series".

    Args:
        y: measurements, missing ones as NaN.
        innovation: sd of a step of the level, or its prior.
        observation: sd of a measurement, or its prior.
        persistence: how much of the level stays from one step to the next, above -1 and up to 1.

    """
    _check_series("many", y)
    step, noise = _scale("innovation", innovation), _scale("observation", observation)
    with numpyro.plate("series", y.shape[0]):
        level: Any = numpyro.sample("level", _levels(y.shape[1], step, persistence))
        numpyro.sample("y", dist.Normal(level[..., 0], noise).to_event(1), obs=y)


def one(
    y: Float[ArrayLike, "one step"],
    *,
    innovation: Scale | None = None,
    observation: Scale | None = None,
    persistence: float = 1.0,
) -> None:
    """One series, levels and scales together; give `amortize` plate="series" and `shared_family=`.

    Args:
        y: measurements (1, T), missing ones as NaN.
        innovation: sd of a step of the level, or its prior; None: LogNormal(0, 2).
        observation: sd of a measurement, or its prior; None: LogNormal(0, 2).
        persistence: how much of the level stays from one step to the next, above -1 and up to 1.

    """
    _check_series("one", y)
    vague = dist.LogNormal(0.0, 2.0)
    step = _scale("innovation", vague if innovation is None else innovation)
    noise = _scale("observation", vague if observation is None else observation)
    level: Any = numpyro.sample("level", _levels(jnp.shape(y)[1], step, persistence))
    with numpyro.plate("series", jnp.shape(y)[0]):
        numpyro.sample("y", dist.Normal(level[:, 0], noise).to_event(1), obs=y)


def _check_series(model: str, y: Any) -> None:
    if jnp.ndim(y) != 2:
        raise DataError(
            f"state_space.{model}: data['y'] has shape {jnp.shape(y)}; expected two axes, series and steps: y[None] of "
            "one series"
        )


def _levels(length: int, innovation: Any, persistence: float) -> dist.Distribution:
    """All levels of a series, (T, 1)."""
    if not -1.0 < persistence <= 1.0:
        raise ModelError(f"state_space: persistence={persistence}; it must be above -1 and at most 1, a random walk")
    start = 1.0 if persistence == 1.0 else (1.0 - persistence**2) ** -0.5
    scales = innovation * jnp.ones(length).at[0].set(start)
    return dist.TransformedDistribution(
        dist.Normal(0.0, scales[:, None]).to_event(2), RecursiveLinearTransform(jnp.full((1, 1), persistence))
    )


def _scale(name: str, scale: Scale) -> Any:
    check_prior(f"state_space: {name}", scale)
    return known_or_drawn(name, scale)
