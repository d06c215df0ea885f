"""Mixed models with random intercepts and slopes: normal, binomial and Poisson responses in ragged groups.

For row k of group i, with covariates x_ik (p,) of the fixed and z_ik (q,) of the random effects, ones included,

    η_ik = x_ik·β + z_ik·b_i,    b_i = diag(sd) L u_i,    u_i ~ Normal(0, I_q),    L L' ~ LKJ(concentration)
    gaussian  y_ik ~ Normal(η_ik, σ)
    binomial  y_ik ~ Binomial(n_ik, logit⁻¹ η_ik)
    poisson   y_ik ~ Poisson(n_ik exp η_ik)

The group is the unit. What R writes as `Reaction ~ 1 + Days + (1 + Days | Subject)` is

    rows = mixed_effects.design("sleepstudy.csv", group="Subject", response="Reaction", fixed=["Days"], random=["Days"])
    model = functools.partial(mixed_effects.gaussian, priors=mixed_effects.gaussian_priors(rows.units))
    guide = am.amortize(model, rows.units, plate="group", shared_family=am.coupling(4))
    posterior = am.fit(guide, rows.units, key=jax.random.key(0))

and draws have `beta` (in the order of `rows.fixed`), `sd` and `correlation` (of `rows.random`), `sigma` and `effect`
(b_i). q is of u, lme4's spherical effects, whose posterior stays regular where an sd may be zero.

Given the globals the effects of a normal response are normal: amortax's Newton head has them exactly before any
training, for new groups too. What is hard are the sds of few groups, whose posterior has long tails: with
`shared_family=am.coupling(4)` and the ELBO every mean on sleepstudy, orthodont, rats and seeds is within 0.1 sd of
the exact one and every sd within 8%, where a full normal leaves sds up to 16% short, and `IWELBO(weigh_shared=True)`
on so few groups makes them too wide (tests/statistical/test_mixed_effects.py). Priors of coefficients should be
within a factor of a hundred of what the data can say (see `link_priors`): Normal(0, 1000) on the scale of logits
starts so far out that training may not come back.

Bates, Mächler, Bolker and Walker, Fitting linear mixed-effects models using lme4, J. Stat. Softw. 67 (2015).
Lewandowski, Kurowicka and Joe, Generating random correlation matrices, J. Multivar. Anal. 100 (2009).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Num

from amortax._errors import DataError
from amortax.data import Units
from amortax.models.design import Design, design
from amortax.models.scales import check_positive, check_prior

__all__ = ["Design", "Priors", "binomial", "design", "gaussian", "gaussian_priors", "link_priors", "poisson"]


@dataclasses.dataclass(frozen=True)
class Priors:
    """Priors of the globals, as NumPyro distributions; the defaults suit responses and covariates of scale one.

    - `beta`: of the fixed effects, one for all or one each.
    - `sd`: of the standard deviations of the random effects, likewise.
    - `sigma`: of the residual standard deviation, `gaussian` alone.
    - `concentration`: of the correlation matrix of the random effects: 1 is uniform, above it towards independence;
      None: independent.
    """

    beta: dist.Distribution = dataclasses.field(default_factory=lambda: dist.Normal(0.0, 2.5))
    sd: dist.Distribution = dataclasses.field(default_factory=lambda: dist.HalfNormal(2.5))
    sigma: dist.Distribution = dataclasses.field(default_factory=lambda: dist.HalfNormal(2.5))
    concentration: float | None = 1.0

    def __post_init__(self) -> None:
        """Raises `ModelError` for what is no distribution, and for scales that may be negative."""
        for name in ("beta", "sd", "sigma"):
            prior = getattr(self, name)
            check_prior(f"mixed_effects.Priors: {name}", prior, positive=name != "beta", known=False)
        if self.concentration is not None:
            check_positive("mixed_effects.Priors: concentration", self.concentration)


def gaussian(
    x: Num[Array, "group row p"],
    z: Num[Array, "group row q"],
    y: Num[ArrayLike, "group row"] | None = None,
    *,
    priors: Priors | None = None,
) -> None:
    """Linear mixed model; amortize it over the plate "group".

    Args:
        x: covariates of the fixed effects, a column of ones for the intercept.
        z: covariates of the random effects, likewise.
        y: responses, missing ones as NaN; None to simulate.
        priors: None for `Priors()`, which expects y of scale one; `gaussian_priors` has the data's own scale.

    """
    priors = Priors() if priors is None else priors
    sigma = numpyro.sample("sigma", priors.sigma)
    _mixed(x, z, y, priors, lambda predictor: dist.Normal(predictor, sigma))


def binomial(
    x: Num[Array, "group row p"],
    z: Num[Array, "group row q"],
    trials: Num[Array, "group row"],
    y: Num[ArrayLike, "group row"] | None = None,
    *,
    priors: Priors | None = None,
) -> None:
    """Logistic mixed model; amortize it over the plate "group".

    Args:
        x: covariates of the fixed effects, a column of ones for the intercept.
        z: covariates of the random effects, likewise.
        trials: n, how many trials each row counts; ones where responses are 0 or 1.
        y: successes; None to simulate.
        priors: None for `Priors()`; `link_priors` has the covariates' own scale.

    """
    _mixed(x, z, y, priors or Priors(), lambda predictor: dist.Binomial(trials, logits=predictor))


def poisson(
    x: Num[Array, "group row p"],
    z: Num[Array, "group row q"],
    exposure: Num[Array, "group row"],
    y: Num[ArrayLike, "group row"] | None = None,
    *,
    priors: Priors | None = None,
) -> None:
    """Log-linear mixed model of counts; amortize it over the plate "group".

    Args:
        x: covariates of the fixed effects, a column of ones for the intercept.
        z: covariates of the random effects, likewise.
        exposure: what a row's rate is multiplied by (a time, an area); ones where there is none.
        y: counts; None to simulate.
        priors: None for `Priors()`; `link_priors` has the covariates' own scale.

    """
    _mixed(x, z, y, priors or Priors(), lambda predictor: dist.Poisson(exposure * jnp.exp(predictor)))


def _mixed(x: Array, z: Array, y: Any, priors: Priors, response: Callable[[Array], dist.Distribution]) -> None:
    """All but the response's distribution given the predictor η."""
    num_random = z.shape[-1]
    beta: Any = numpyro.sample("beta", priors.beta.expand([x.shape[-1]]).to_event(1))
    sd: Any = numpyro.sample("sd", priors.sd.expand([num_random]).to_event(1))
    factor = jnp.diag(sd)
    if num_random > 1 and priors.concentration is not None:
        cholesky: Any = numpyro.sample("cholesky", dist.LKJCholesky(num_random, priors.concentration))
        numpyro.deterministic("correlation", cholesky @ cholesky.T)
        factor = sd[:, None] * cholesky
    with numpyro.plate("group", x.shape[0], dim=-2):
        u: Any = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([num_random]).to_event(1))
        effect: Any = numpyro.deterministic("effect", u @ factor.T)
        with numpyro.plate("row", x.shape[1], dim=-1):
            predictor = x @ beta + jnp.sum(z * effect, axis=-1)
            numpyro.sample("y", response(predictor), obs=y)


def gaussian_priors(units: Units) -> Priors:
    """Weakly informative priors on the data's own scale, for `gaussian`, from the sds of y and of every column.

    A slope is Normal(0, 2.5 sd(y) / sd(column)), the intercept such that the mean response is Normal(mean(y), 2.5
    sd(y)), each sd of random effects HalfNormal of the slope's scale, σ HalfNormal(2.5 sd(y)): the defaults of rstanarm
    and bambi, up to shapes.

    Args:
        units: the arguments x, z and y, as `design` or `am.units` makes them.

    Raises:
        DataError: where all responses are one number.

    """
    _check_units("gaussian_priors", units)
    y = units.arrays["y"][units.masks["y"]] if "y" in units.masks else units.arrays["y"]
    if np.ptp(y) == 0:
        raise DataError(
            f"gaussian_priors: all {y.size} responses data['y'] are {y.flat[0]}: there is no scale for priors; "
            "look at the column, or give mixed_effects.Priors(...) of your own"
        )
    return _priors(units, float(np.mean(y, dtype=np.float64)), float(np.std(y, dtype=np.float64)))


def link_priors(units: Units) -> Priors:
    """The same for `binomial` and `poisson`, whose logits and log rates have a scale of their own: 0 and 1."""
    _check_units("link_priors", units)
    return _priors(units, 0.0, 1.0)


def _check_units(verb: str, units: Any) -> None:
    if isinstance(units, Units) and {"x", "z"} <= set(units.arrays):
        return
    hint = "; give the .units of the design" if isinstance(units, Design) else ""
    raise DataError(
        f"{verb}: expected Units with the arguments x and z, design(...).units or am.units(...), got "
        f"{type(units).__name__}{hint}"
    )


def _priors(units: Units, middle: float, spread: float) -> Priors:
    x_mean, x_scale = _scales(units, "x", spread)
    _, z_scale = _scales(units, "z", spread)
    one = x_scale == 0  # the intercept: what the slopes say at the mean of the data is not its own uncertainty
    shift = np.sqrt(np.sum(np.where(one, 0.0, x_mean * x_scale) ** 2) + (2.5 * spread) ** 2)
    return Priors(
        beta=dist.Normal(np.where(one, middle, 0.0), np.where(one, shift, x_scale)),
        sd=dist.HalfNormal(np.where(z_scale == 0, 2.5 * spread, z_scale)),
        sigma=dist.HalfNormal(2.5 * spread),
    )


def _scales(units: Units, name: str, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Means of the columns of a design, and 2.5 spread / sd; 0 where a column is constant."""
    own = units.masks[name].all(axis=-1) if name in units.masks else np.ones(units.arrays[name].shape[:2], bool)
    rows = units.arrays[name][own].astype(np.float64)
    sd = rows.std(axis=0)
    return rows.mean(axis=0), np.divide(2.5 * spread, sd, out=np.zeros_like(sd), where=sd > 0)
