"""Are the gaps of the report those of closed forms?"""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of

import amortax as am
from amortax.checks import gaps
from amortax.checks.gaps import gap_reasons, measured
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise

UNITS = 40


def model(x, weight, noise):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([weight.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)


@pytest.fixture(scope="module")
def exact():
    return LinearGaussian(np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32), np.zeros(10), 0.5)


def fitted(exact, family, steps):
    x = exact.simulate(np.random.default_rng(1), 5000)[1]
    plan = am.amortize(
        functools.partial(model, weight=exact.weight, noise=exact.noise), {"x": x}, plate="unit", family=family
    )
    return am.fit(plan, {"x": x}, key=jax.random.key(0), num_steps=steps)


@pytest.mark.parametrize(("family", "far"), [(am.diagonal(), 1.0), (am.full(), 1.0), (am.full(), 4.0)])
def test_the_gaps_are_those_of_the_formula(exact, family, far):
    """KL of the encoder's q splits into the family's (½(Σ log L_ii - log det L), or none) and the rest."""
    posterior = fitted(exact, family, 600)
    x = far * exact.simulate(np.random.default_rng(2), UNITS)[1]
    found = measured(posterior.joint, posterior.guide, posterior.answerable({"x": x}), jax.random.key(1), UNITS)
    lost = normal_kl(*normals_of(posterior, {"x": x}), *exact.posterior(x))
    approximation = exact.diagonal_gap if family == am.diagonal() else 0.0
    amortization = lost - approximation
    print(f"approximation {found.approximation.mean():.4f} of {approximation:.4f}")
    print(f"amortization {found.amortization.mean():.4f} of {amortization.mean():.4f}")
    assert abs(found.approximation.mean() - approximation) <= max(0.05, 0.15 * approximation)
    assert abs(found.amortization.mean() - amortization.mean()) <= max(0.05, 0.15 * amortization.mean())


def test_a_climb_that_ends_lower_is_not_the_best_of_the_family(exact, monkeypatch):
    """Of two units the second's climb lost 2 nats: the encoder's q is the better one, and nothing is amortized away."""
    ends = np.array([[-9.0]]), np.array([[-8.0]]), np.array([[-7.0]]), np.array([[0.1]])  # q, climbed, evidence, k

    def of_chunk(target, shared, batch, index, key):
        first, climbed, evidence, k = (np.repeat(x, 4, axis=0) for x in ends)
        climbed[1] -= 3.0
        return first, climbed, evidence, k

    monkeypatch.setattr(gaps, "_of_chunk", of_chunk)
    x = exact.simulate(np.random.default_rng(2), 2)[1]
    data = {"x": x.astype(np.float32)}
    plan = am.amortize(functools.partial(model, weight=exact.weight, noise=exact.noise), data, plate="unit")
    units = as_units(data, plan.model, "unit")
    pair = initialise(plan, to_batch(units), jax.random.key(0))
    found = measured(*pair, units, jax.random.key(1), 2)
    np.testing.assert_allclose(found.approximation, [1.0, 2.0])
    np.testing.assert_allclose(found.amortization, [1.0, 0.0])


def test_only_large_and_sure_gaps_are_a_warning():
    means = {"approximation": (0.5, 0.01), "amortization": (0.5, 0.4), "generalisation": (0.05, 0.001)}
    assert [reason.code for reason in gap_reasons(means)] == ["approximation-gap"]
    assert [reason.code for reason in gap_reasons({"amortization": (float("nan"), 0.1)})] == ["amortization-gap"]
