"""When can amortized inference be as good as inference unit by unit? The three kinds of model of Margossian and Blei.

Amortized Variational Inference: When and Why? (UAI 2024) shows that an encoder of a unit's own data can reach what
parameters of the unit's own reach (`am.free()`) exactly where the Markov blanket of the unit's latents lies in its data
and the globals. Linear: θ ~ N(0, 1), z_n ~ N(0, 1), x_n ~ N(θ + τ z_n, s). Nonlinear: a fixed network of z_n in the
place of τ z_n, five numbers a unit. Saw: x_n ~ N(z_n + z_{n-1}, s), where each observation hangs on two latents.

Of the first two: with θ known, the bound of both after so many full passes over the units, and which first comes within
a hundredth of a nat of the best; with θ inferred (where a Newton step of the model places the latents of both), the gap
that is left. Of the saw: what amortize says of it, the exact gap of the best function of x_n alone to the best
mean-field normal, and the bound of the series as one unit.

    python benchmarks/margossian_blei.py [--units 1000] [--steps 3000] [--length 100]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import amortax as am

TAU, NOISE, THETA, WITHIN = 2.0, 1.0, 0.5, 0.01
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.standard_normal((2, 16)).astype(np.float32), RNG.standard_normal((16, 5)).astype(np.float32) / 2
BUDGETS = (50, 100, 200, 400, 800, 1600, 3200)
ENCODERS = {"own parameters": am.free(), "amortized": None}


def linear(x, theta=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0)) if theta is None else theta
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta + TAU * z, NOISE), obs=x)


def nonlinear(x, theta=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0)) if theta is None else theta
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(theta + jnp.tanh(z @ FIRST) @ SECOND, 0.5).to_event(1), obs=x)


def data_of(model, units):
    if model is linear:
        return {"x": (THETA + np.hypot(TAU, NOISE) * RNG.standard_normal(units)).astype(np.float32)}
    z, noise = RNG.standard_normal((units, 2)), 0.5 * RNG.standard_normal((units, 5))
    return {"x": (THETA + np.tanh(z @ FIRST) @ SECOND + noise).astype(np.float32)}


def fitted(model, data, encoder, steps):
    plan = am.amortize(model, data, plate="unit", encoder=encoder, family=am.diagonal())
    run = am.Run(num_steps=steps, batch_size=len(data["x"]), progress=False)
    return am.fit(plan, data, key=jax.random.key(0), run=run)


def hierarchy(model, units, steps):
    data = data_of(model, units)
    print(f"{model.__name__}, {units:,} units, theta known: bound per unit after so many passes")
    known, bounds = functools.partial(model, theta=THETA), {}
    for label, encoder in ENCODERS.items():
        each = [fitted(known, data, encoder, n).evidence(data, key=jax.random.key(1)) for n in BUDGETS]
        bounds[label] = np.array([float(found["elbo"].mean()) for found in each])
        print(
            f"  {label:14}: " + ", ".join(f"{n} {bound:.4f}" for n, bound in zip(BUDGETS, bounds[label], strict=True))
        )
    best = max(bound.max() for bound in bounds.values())
    for label, bound in bounds.items():
        near = [n for n, value in zip(BUDGETS, bound, strict=True) if value > best - WITHIN]
        print(f"  {label:14}: within {WITHIN} nats of the best after {near[0] if near else 'more'}")
    print("theta inferred:")
    own, amortized = (fitted(model, data, encoder, steps) for encoder in ENCODERS.values())
    am.compare(own, amortized, data, key=jax.random.key(1))


def saw(x):
    with numpyro.plate("step", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        before = jnp.concatenate([jnp.zeros(1), z[:-1]])
        numpyro.sample("x", dist.Normal(z + before, 0.5), obs=x)


def whole_saw(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[0]]).to_event(1))
    before = jnp.concatenate([jnp.zeros(1), z[:-1]])
    numpyro.sample("x", dist.Normal(z + before, 0.5).to_event(1), obs=x)


def saw_series(length, steps):
    """All Gaussian: x = A z + noise, the posterior N(m, P⁻¹), and a mean-field normal best at m with variances 1/P_nn.

    A function f(x_n) of own data loses ½ E (f(x) - m)' P (f(x) - m) to that, least for f = a x.
    """
    noise = 0.5
    a = np.eye(length) + np.eye(length, k=-1)
    precision = np.eye(length) + a.T @ a / noise**2
    gain = np.linalg.solve(precision, a.T) / noise**2
    covariance = a @ a.T + noise**2 * np.eye(length)
    # gap(c) = ½ tr[P (c I - G) S (c I - G)'], least where its slope is zero
    best = np.trace(precision @ gain @ covariance) / np.trace(precision @ covariance)
    off = best * np.eye(length) - gain
    gap = 0.5 * np.trace(precision @ off @ covariance @ off.T)
    _, log_det = np.linalg.slogdet(precision)
    factorised = 0.5 * (np.sum(np.log(np.diag(precision))) - log_det)
    z = RNG.standard_normal(length)
    x = (a @ z + noise * RNG.standard_normal(length)).astype(np.float32)
    print(f"saw, {length} steps: an encoder of own data alone loses {gap:.1f} nats ({gap / length:.3f} a step) to the")
    print(f"  best mean-field normal at any width, and that {factorised:.1f} nats to the posterior")
    try:
        am.amortize(saw, {"x": x}, plate="step")
    except am.ModelError as error:
        print(f"  amortize: {error}")
    evidence = -0.5 * (x @ np.linalg.solve(covariance, x) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    one = am.units([{"x": x}])
    for label, family in (("diagonal", am.diagonal()), ("markov", am.markov())):
        plan = am.amortize(whole_saw, one, plate=None, encoder=am.free(), family=family)
        posterior = am.fit(plan, one, key=jax.random.key(0), run=am.Run(num_steps=steps, progress=False))
        bound = posterior.evidence(one, key=jax.random.key(1), num_samples=2000)["elbo"].values[0]
        print(f"  as one unit, am.{label}(): {evidence - bound:.2f} nats below the evidence")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    for model in (linear, nonlinear):
        hierarchy(model, given.units, given.steps)
    saw_series(given.length, given.steps)


if __name__ == "__main__":
    main()
