"""The mixed models of the shared tables: data, model, and the posterior of the globals by `marginal`.

Globals of a reference are unconstrained: β, then log of every sd, for two effects the correlation's arctanh, log σ.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from marginal import LOG_NODES, NODES, half_normal, linear_mixed, normal

import amortax as am
from amortax.models import mixed_effects


@dataclasses.dataclass(frozen=True)
class Target:
    """A model with its data, the log density of its globals, where they start, and what is compared.

    `quantities` are computed from globals (S, g) by name, `of_draws` puts the same under the same names into a Dataset.
    """

    model: Callable
    units: am.Units
    log_density: Callable
    start: np.ndarray
    quantities: Callable
    of_draws: Callable


def sleepstudy(shared):
    """Reaction times of 18 sleep-deprived drivers on ten days: correlated intercepts and slopes."""
    rows = mixed_effects.design(
        shared / "data/tables/sleepstudy.csv", group="Subject", response="Reaction", fixed=["Days"], random=["Days"]
    )
    return linear(rows.units, [250.0, 10.0, math.log(25.0), math.log(6.0), 0.0, math.log(25.0)])


def orthodont(shared):
    """A distance in the jaws of 27 children at four ages: random intercepts."""
    rows = mixed_effects.design(
        shared / "data/tables/orthodont.csv",
        group="Subject",
        response="distance",
        fixed=["age", "Sex"],
        categories={"Sex": ["Male", "Female"]},
    )
    return linear(rows.units, [17.7, 0.66, -2.3, math.log(1.7), math.log(1.4)])


def linear(units, start, priors=None):
    """A linear mixed model with the priors of the data's own scale."""
    priors = mixed_effects.gaussian_priors(units) if priors is None else priors
    p, q = units.arrays["x"].shape[2], units.arrays["z"].shape[2]

    def log_density(v):
        beta, sd, r, sigma = split(v, p, q)
        prior = normal(beta, np.asarray(priors.beta.loc), np.asarray(priors.beta.scale))
        prior += half_normal(sd, np.asarray(priors.sd.scale)) + half_normal(sigma, np.asarray(priors.sigma.scale))
        jacobian = jnp.sum(jnp.log(sd)) + jnp.log(sigma) + (jnp.log1p(-(r**2)) - math.log(2) if q == 2 else 0.0)
        return prior + jacobian + log_likelihood(units, v)

    model = functools.partial(mixed_effects.gaussian, priors=priors)
    quantities = functools.partial(named, p=p, q=q)
    return Target(model, units, log_density, np.array(start), quantities, with_correlation)


def with_correlation(draws):
    """Draws with the correlation of two effects as `r`."""
    return draws.assign(r=draws["correlation"][:, 0, 1]) if "correlation" in draws else draws


def split(v, p, q):
    """β, sd, correlation (0 for one effect), σ."""
    r = jnp.tanh(v[p + q]) if q == 2 else jnp.zeros(())
    return v[:p], jnp.exp(v[p : p + q]), r, jnp.exp(v[-1])


def log_likelihood(units, v):
    """log p(y | globals), random effects integrated out."""
    x, z, y = (jnp.asarray(units.arrays[name], jnp.float64) for name in ("x", "z", "y"))
    beta, sd, r, sigma = split(v, x.shape[2], z.shape[2])
    factor = jnp.diag(sd) @ (jnp.eye(1) if z.shape[2] == 1 else jnp.array([[1.0, 0.0], [r, jnp.sqrt(1 - r**2)]]))
    return jnp.sum(linear_mixed(x, z, y, beta, factor, sigma))


def named(v, p, q):
    """Quantities of a linear mixed model by name, as `references.offsets` reads them from draws."""
    found = {f"beta[{i + 1}]": v[:, i] for i in range(p)} | {f"sd[{i + 1}]": np.exp(v[:, p + i]) for i in range(q)}
    return found | ({"r": np.tanh(v[:, p + q])} if q == 2 else {}) | {"sigma": np.exp(v[:, -1])}


def seeds(shared):
    """Germination of 21 plates of seeds: a plate is a group with one row of many trials.

    The reference has coefficients Normal(0, 1000); with 10, which training finds, exact moments look alike.
    """
    data = json.loads((shared / "data/bugs/seeds/data.json").read_text())
    y, trials, x1, x2 = (np.array(data[name], np.float64) for name in ("r", "n", "x1", "x2"))
    x = np.stack([np.ones(21), x1, x2, x1 * x2], axis=1)
    arrays = {"x": x, "z": np.ones((21, 1)), "trials": trials.astype(int), "y": y.astype(int)}
    units = am.units({name: value[:, None] for name, value in arrays.items()}, name="plate")
    priors = mixed_effects.Priors(beta=dist.Normal(0.0, 10.0), sd=dist.Exponential(1.0))

    def log_density(v):
        beta, sd = v[:4], jnp.exp(v[4])
        logits = (x @ beta)[:, None] + sd * NODES
        each = y[:, None] * jax.nn.log_sigmoid(logits) + (trials - y)[:, None] * jax.nn.log_sigmoid(-logits)
        return jnp.sum(jax.nn.logsumexp(each + LOG_NODES, axis=1)) + normal(beta, 0.0, 10.0) - sd + v[4]

    names = ("alpha0", "alpha1", "alpha2", "alpha12")
    return Target(
        functools.partial(mixed_effects.binomial, priors=priors),
        units,
        log_density,
        np.array([-0.5, 0.1, 1.3, -0.8, -1.2]),
        lambda v: {name: v[:, i] for i, name in enumerate(names)} | {"sigma": np.exp(v[:, 4])},
        lambda d: d.assign({name: d["beta"][:, i] for i, name in enumerate(names)}).assign(sigma=d["sd"][:, 0]),
    )


def visits():
    """Simulated counts with an exposure: 30 groups of one to six rows, correlated intercepts and slopes."""
    rng, sd, r = np.random.default_rng(5), np.array([0.6, 0.4]), -0.5
    effects = sd * (rng.standard_normal((30, 2)) @ np.array([[1.0, r], [0.0, math.sqrt(1 - r**2)]]))
    lengths = rng.integers(1, 7, 30)
    x = [np.stack([np.ones(n), rng.standard_normal(n)], axis=1) for n in lengths]
    exposure = [rng.uniform(1.0, 4.0, n) for n in lengths]
    beta = np.array([0.5, 0.3])
    y = [rng.poisson(t * np.exp(a @ (beta + b))) for a, t, b in zip(x, exposure, effects, strict=True)]
    units = am.units({"x": x, "z": x, "exposure": exposure, "y": y}, name="patient")
    priors = mixed_effects.Priors(beta=dist.Normal(0.0, 2.5), sd=dist.HalfNormal(1.0), concentration=2.0)
    axis = np.linspace(-6.0, 6.0, 49)
    nodes = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_nodes = -0.5 * np.sum(nodes**2, axis=1) - math.log(2 * math.pi) + 2 * math.log(axis[1] - axis[0])
    rows, mask = np.asarray(units.arrays["x"], np.float64), units.masks["y"]
    count, time = (np.asarray(units.arrays[name], np.float64) for name in ("y", "exposure"))

    def log_density(v):
        beta, sd, r, _ = split(v, 2, 2)
        effect = nodes @ (sd[:, None] * jnp.array([[1.0, 0.0], [r, jnp.sqrt(1 - r**2)]])).T
        predictor = rows @ (beta[:, None] + effect.T)
        each = count[..., None] * predictor - time[..., None] * jnp.exp(predictor)
        each = jnp.sum(jnp.where(mask[..., None], each, 0.0), axis=1)
        prior = normal(beta, 0.0, 2.5) + half_normal(sd, 1.0) + jnp.log1p(-(r**2))  # LKJ(2) in two dimensions
        jacobian = jnp.sum(jnp.log(sd)) + jnp.log1p(-(r**2))
        return jnp.sum(jax.nn.logsumexp(each + log_nodes, axis=1)) + prior + jacobian

    def quantities(v):
        return {name: value for name, value in named(v, 2, 2).items() if name != "sigma"}

    model = functools.partial(mixed_effects.poisson, priors=priors)
    return Target(model, units, log_density, np.array([0.5, 0.3, -0.5, -1.0, 0.0]), quantities, with_correlation)


def rats(shared):
    """Weights of 30 rats at five ages, independent intercepts and slopes; precisions are Gamma(0.001, 0.001)."""
    data = json.loads((shared / "data/bugs/rats/data.json").read_text())
    age = np.broadcast_to(np.array(data["x"]) - 22.0, (30, 5))
    x = np.stack([np.ones((30, 5)), age], axis=2)
    units = am.units({"x": x, "z": x, "y": np.array(data["Y"])}, name="rat")
    scale = dist.TransformedDistribution(dist.Gamma(1e-3, 1e-3), [dist.transforms.PowerTransform(-0.5)])
    priors = mixed_effects.Priors(beta=dist.Normal(0.0, 100.0), sd=scale, sigma=scale, concentration=None)

    def log_density(v):
        beta, tau = v[:2], jnp.exp(-2 * v[2:])
        prior = normal(beta, 0.0, 100.0) + jnp.sum(1e-3 * jnp.log(tau) - 1e-3 * tau)
        full = jnp.concatenate([v[:4], jnp.zeros(1), v[4:]])
        return prior + log_likelihood(units, full)

    def quantities(v):
        found = {"alpha0": v[:, 0] - 22 * v[:, 1], "beta.c": v[:, 1], "sigma": np.exp(v[:, 4])}
        return found | {"sd[1]": np.exp(v[:, 2]), "sd[2]": np.exp(v[:, 3])}

    def of_draws(draws):
        intercept, slope = draws["beta"][:, 0], draws["beta"][:, 1]
        return draws.assign({"alpha0": intercept - 22 * slope, "beta.c": slope})

    model = functools.partial(mixed_effects.gaussian, priors=priors)
    return Target(model, units, log_density, np.array([242.0, 6.2, 2.7, -0.7, 1.8]), quantities, of_draws)
