"""Stochastic volatility: returns whose log variance wanders about a mean.

    log_volatility_1 ~ Normal(mean, shock / sqrt(1 - persistence²))
    log_volatility_t ~ Normal(mean + persistence (log_volatility_(t-1) - mean), shock)
    return_t ~ Normal(0, exp(log_volatility_t / 2))
    mean ~ Cauchy(0, 5),    shock ~ HalfCauchy(2),    (persistence + 1) / 2 ~ Beta(20, 1.5)

One series, returns (1, T), is inferred as a whole; q is of the standardised shocks, which the data hardly tie together,
and of the three parameters:

    guide = am.amortize(stochastic_volatility.one, {"returns": returns}, plate="series", shared_family=am.coupling(4))
    posterior = am.fit(guide, {"returns": returns}, key=jax.random.key(0), objective=am.ELBO(num_particles=16))

On 100 days of the S&P 500 every log volatility is within 0.2 sd of Stan's; the parameters' own sds are 0.4 to 0.8 of
Stan's, since the ELBO cuts their long tails short (tests/statistical/test_series.py).

Kim, Shephard and Chib, Stochastic volatility, Rev. Econ. Stud. 65 (1998); priors as in Inference Gym (2020).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["one"]


def one(returns: Float[ArrayLike, "one step"]) -> None:
    """One series; give `amortize` plate="series" and `shared_family=`.

    Args:
        returns: centred returns (1, T), missing ones as NaN.

    """
    mean: Any = numpyro.sample("mean_log_volatility", dist.Cauchy(0.0, 5.0))
    shock: Any = numpyro.sample("white_noise_shock_scale", dist.HalfCauchy(2.0))
    half: Any = numpyro.sample("half_persistence", dist.Beta(20.0, 1.5))
    persistence: Any = numpyro.deterministic("persistence_of_volatility", 2.0 * half - 1.0)
    shocks: Any = numpyro.sample("shocks", dist.Normal(0.0, 1.0).expand([jnp.shape(returns)[1]]).to_event(1))
    away = _wander(shock * shocks.at[0].mul((1.0 - persistence**2) ** -0.5), persistence)
    log_volatility = numpyro.deterministic("log_volatility", mean + away)
    with numpyro.plate("series", jnp.shape(returns)[0]):
        numpyro.sample("returns", dist.Normal(0.0, jnp.exp(0.5 * log_volatility)).to_event(1), obs=returns)


def _wander(steps: Float[Array, " T"], persistence: Array) -> Float[Array, " T"]:
    """x_t = persistence x_(t-1) + steps_t."""

    def move(x: Array, step: Array) -> tuple[Array, Array]:
        return (x := persistence * x + step), x

    return jax.lax.scan(move, jnp.zeros(()), steps)[1]
