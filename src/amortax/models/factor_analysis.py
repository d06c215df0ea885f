"""Factor analysis and probabilistic PCA: a few normal factors behind many measurements, learned by maximum likelihood.

For unit i with measurements x_i (D,), of which any may be missing, and factors f_i (K,),

    x_i ~ Normal(mean + loadings f_i, noise),    f_i ~ Normal(0, I_K)

with one noise for all measurements (`ppca`, whose maximum is known: loadings span the first K principal directions) or
one each (`factor_analysis`). Mean, loadings (D, K) and noise are parameters; `learned` reads them from a posterior.
Loadings are determined up to a rotation of the factors. Give measurements of scale one (divide each by its sd):
training starts at mean 0 and noise 1.

    model = functools.partial(factor_analysis.factor_analysis, num_factors=2)
    posterior = am.fit(am.amortize(model, {"x": x}, plate="unit"), {"x": x}, key=jax.random.key(0))
    factor_analysis.learned(posterior)["loadings"]

Tipping and Bishop, Probabilistic principal component analysis, J. R. Stat. Soc. B 61 (1999);
Rubin and Thayer, EM algorithms for ML factor analysis, Psychometrika 47 (1982).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from amortax._errors import ModelError
from amortax.posterior import Posterior

__all__ = ["factor_analysis", "learned", "ppca"]


def ppca(x: Float[Array, "unit measurement"], *, num_factors: int) -> None:
    """Probabilistic PCA, one noise for all measurements; amortize it over the plate "unit".

    Args:
        x: measurements, missing ones as NaN.
        num_factors: K.

    """
    _factors(x, num_factors, ())


def factor_analysis(x: Float[Array, "unit measurement"], *, num_factors: int) -> None:
    """Factor analysis, a noise for each measurement; amortize it over the plate "unit".

    Args:
        x: measurements, missing ones as NaN.
        num_factors: K.

    """
    _factors(x, num_factors, x.shape[-1:])


def _factors(x: Array, num_factors: int, noise_shape: tuple[int, ...]) -> None:
    """Both models: loadings start small and random, since at zero they would be a saddle point."""
    size = x.shape[-1]
    mean: Any = numpyro.param("mean", jnp.zeros(size))
    loadings: Any = numpyro.param("loadings", lambda key: 0.1 * jax.random.normal(key, (size, num_factors)))
    noise: Any = numpyro.param("noise", jnp.ones(noise_shape), constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0]):
        factor: Any = numpyro.sample("factor", dist.Normal(0.0, 1.0).expand([num_factors]).to_event(1))
        numpyro.sample("x", dist.Normal(mean + factor @ loadings.T, noise).to_event(1), obs=x)


def learned(posterior: Posterior) -> dict[str, Float[np.ndarray, ...]]:
    """`mean` (D,), `loadings` (D, K) and `noise`, an sd or D of them, of a posterior of either model."""
    params = getattr(getattr(posterior, "joint", None), "params", {})
    if set(params) != {"mean", "loadings", "noise"}:
        raise ModelError(
            f"learned: expected a posterior of ppca or factor_analysis, got {posterior!r}, parameters {sorted(params)}"
        )
    return {name: np.asarray(jnp.exp(value) if name == "noise" else value) for name, value in params.items()}
