"""Which posteriors is q of the globals tried on? Four in two dimensions, by quadrature, and five of posteriordb.

Every one is a NumPyro model with a plate. Where a model has no latents in it, nothing is amortized: one unit (a series,
a density given by `numpyro.factor`) or many (independent observations), and all of q is the family of the globals.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from amortax._linalg import cholesky

# --- two dimensions -------------------------------------------------------------------------------------------------


def banana(x):
    """x1 ~ N(0, 1), x2 ~ N(x1², 0.5)."""
    return normal(x[0], 0.0, 1.0) + normal(x[1], x[0] ** 2, 0.5)


def ring(x):
    """Six normals of sd 0.6 on a ring of radius 2.5."""
    angles = 2 * np.pi * np.arange(6) / 6
    return jax.nn.logsumexp(sum(normal(x[i], 2.5 * f(angles), 0.6) for i, f in enumerate((np.cos, np.sin)))) - jnp.log(
        6.0
    )


def funnel(x):
    """v ~ N(0, 2), x ~ N(0, exp(v / 2))."""
    return normal(x[0], 0.0, 2.0) + normal(x[1], 0.0, jnp.exp(0.5 * x[0]))


def two_moons(x):
    """Two crescents: at the data (0, 0), θ flat, (|θ1 + θ2|, θ2 - θ1) / √2 = r (cos a, sin a) + (1, 0), r and a normal.

    The benchmark of simulation-based inference has a flat angle; its edge would make the bound of every family minus
    infinite.
    """
    across, along = jnp.abs(x[0] + x[1]) / math.sqrt(2) - 1.0, (x[1] - x[0]) / math.sqrt(2)
    radius = jnp.sqrt(across**2 + along**2 + 1e-12)
    return normal(radius, 1.0, 0.2) + normal(jnp.arctan2(along, across), 0.0, 0.8) - jnp.log(radius)


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * math.log(2 * math.pi)


def of_density(log_density, zero):
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    with numpyro.plate("target", zero.shape[0]):
        numpyro.factor("density", log_density(x) + zero)


def log_mass(log_density, reach=12.0, count=2401):
    """log ∫ exp(log density), by a grid."""
    axis = jnp.linspace(-reach, reach, count)
    row = jax.jit(jax.vmap(lambda a, b: log_density(jnp.stack([a, b])), in_axes=(None, 0)))
    each = np.stack([np.asarray(row(a, axis), np.float64) for a in axis])
    return float(np.log(np.exp(each).sum()) + 2 * np.log(2 * reach / (count - 1)))


# --- posteriordb ----------------------------------------------------------------------------------------------------


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gauss_mix(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    with numpyro.plate("point", y.shape[0]):
        second = numpyro.sample("second", dist.Bernoulli(1.0 - theta))
        numpyro.sample("y", dist.Normal(mu[second], sigma[second]), obs=y)


def autoregression(lags, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", lags.shape[0]):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def counts_of_a_process(place, count=None, *, at):
    """Counts at the sites `at` of a Gaussian process, by 11 independent normals."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    free = numpyro.sample("free", dist.Normal(0.0, 1.0).expand([len(at)]).to_event(1))
    # 1e-5 on the diagonal where the reference has 1e-10, which float32 can't hold
    kernel = jnp.exp(-0.5 * ((at[:, None] - at) / rho) ** 2) + 1e-5 * jnp.eye(len(at))
    f = numpyro.deterministic("f", alpha * cholesky(kernel) @ free)
    with numpyro.plate("site", place.shape[0]):
        numpyro.sample("count", dist.Poisson(jnp.exp(f[place])), obs=count)


def hidden_markov(u, v, *, alpha):
    """Two states summed out by the forward pass; one series is one unit."""
    rows = [numpyro.sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in range(2)]
    ordered = dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,))
    phi, rate = numpyro.sample("phi", ordered), numpyro.sample("lambda", ordered)
    middle = jnp.array([0.0, 3.0])
    numpyro.factor("prior", jnp.sum(normal(phi, middle, 1.0) + normal(rate, middle, 1.0)))
    steps = jnp.log(jnp.stack(rows))

    def forward(u, v):
        seen = jnp.log(phi) - u[:, None] * phi + jnp.log(rate) - v[:, None] * rate

        def step(log_alpha, seen):
            return jax.nn.logsumexp(log_alpha[:, None] + steps, axis=0) + seen, None

        return jax.nn.logsumexp(jax.lax.scan(step, seen[0], seen[1:])[0])

    with numpyro.plate("series", u.shape[0]):
        numpyro.factor("density", jax.vmap(forward)(u, v))


# --- all by name ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A model, its data and plate, and what is known: its log evidence, by a call, or moments of reference draws."""

    model: Callable
    data: dict
    plate: str
    log_evidence: Callable[[], float] | None = None
    reference: dict[str, tuple[float, float]] | None = None


def two_dimensional():
    zero = {"zero": np.zeros(1, np.float32)}
    for density in (banana, ring, funnel, two_moons):
        exact = normalized if density is funnel else functools.partial(log_mass, density)
        yield density.__name__, Target(functools.partial(of_density, density), zero, "target", log_evidence=exact)


def normalized():
    """Of the funnel, much of which no grid reaches."""
    return 0.0


def posteriordb(folder):
    """Five posteriors by name, from the folder `posteriordb` of the shared data; none where it is absent."""
    folder = Path(folder)
    if not folder.is_dir():
        return

    def given(name):
        rows = np.genfromtxt(
            folder / name / "reference_summary.csv", delimiter=",", names=True, dtype=None, encoding=None
        )
        known = {str(r["name"]): (float(r["mean"]), float(r["sd"])) for r in rows}
        return json.loads((folder / name / "data.json").read_text()), known

    data, known = given("eight_schools-eight_schools_noncentered")
    data = {name: np.asarray(data[name], np.float32) for name in ("y", "sigma")}
    yield "eight_schools", Target(eight_schools, data, "school", reference=known)
    data, known = given("low_dim_gauss_mix-low_dim_gauss_mix")
    yield "low_dim_gauss_mix", Target(gauss_mix, {"y": np.asarray(data["y"], np.float32)}, "point", reference=known)
    data, known = given("arK-arK")
    y = np.asarray(data["y"], np.float32)
    lags = np.stack([y[5 - k : len(y) - k] for k in range(1, 6)], axis=1)
    yield "arK", Target(autoregression, {"lags": lags, "y": y[5:]}, "time", reference=known)
    data, known = given("gp_pois_regr-gp_pois_regr")
    model = functools.partial(counts_of_a_process, at=np.asarray(data["x"], np.float32))
    counts = {"place": np.arange(len(data["k"])), "count": np.asarray(data["k"])}
    yield "gp_pois_regr", Target(model, counts, "site", reference=known)
    data, known = given("bball_drive_event_0-hmm_drive_0")
    model = functools.partial(hidden_markov, alpha=np.asarray(data["alpha"], np.float32))
    series = {name: np.asarray(data[name], np.float32)[None] for name in ("u", "v")}
    yield "hmm_drive_0", Target(model, series, "series", reference=known)
