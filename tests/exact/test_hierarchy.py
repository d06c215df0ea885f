"""Does the uncertainty of a global survive ten thousand units in minibatches of a hundred? Against the exact answer."""

import dataclasses
import functools
import math

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conjugate import shared_normal

import amortax as am
from amortax._recipe import Recipe
from amortax.heads import AbstractHead

PRIOR, SPREAD, NOISE, UNITS = 10.0, 3.0, 1.0, 10_000


def non_centred(x):
    theta = numpyro.sample("theta", dist.Normal(0, PRIOR))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(theta + SPREAD * z, NOISE), obs=x)


def centred(x):
    theta = numpyro.sample("theta", dist.Normal(0, PRIOR))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(theta, SPREAD))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def simulated():
    rng = np.random.default_rng(0)
    return (4.0 + math.hypot(SPREAD, NOISE) * rng.standard_normal(UNITS)).astype(np.float32)


@pytest.fixture(scope="module")
def x():
    return simulated()


def exact(x):
    """(mean, sd) of theta: x_i ~ N(theta, spread² + noise²) once z is integrated out."""
    precision = 1 / PRIOR**2 + len(x) / (SPREAD**2 + NOISE**2)
    return np.sum(x, dtype=np.float64) / (SPREAD**2 + NOISE**2) / precision, 1 / math.sqrt(precision)


@functools.cache
def fitted(model, copies=1, head=None, num_steps=2000):
    data = {"x": np.tile(simulated(), copies)}
    posterior = am.fit(
        am.amortize(model, data, plate="unit", head=head),
        data,
        key=jax.random.key(0),
        num_steps=num_steps,
        batch_size=100,
    )
    mean, covariance = shared_normal(posterior)
    return mean[0], math.sqrt(covariance[0, 0]), posterior


@pytest.mark.parametrize("model", [non_centred, centred])
def test_the_global_keeps_its_uncertainty(model, x):
    mean, sd, posterior = fitted(model)
    expected, spread = exact(x)
    print(f"{model.__name__}: sd ratio {sd / spread:.4f}, mean off by {(mean - expected) / spread:+.3f} sd, ", end="")
    print(f"{posterior.record.num_steps} steps")
    assert 0.95 <= sd / spread <= 1.05
    assert abs(mean - expected) <= 0.1 * spread


def test_doubled_data_shrink_the_global_by_root_two():
    ratio = fitted(non_centred)[1] / fitted(non_centred, copies=2)[1]
    print(f"sd of theta, once over twice the data: {ratio:.4f} (root two is {math.sqrt(2):.4f})")
    assert abs(ratio / math.sqrt(2) - 1) <= 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class blind(Recipe):
    """A head that hides the globals from the locals: mean-field between levels."""

    def build(self, size, context_sizes, whitened_size, *, key):
        return Blind(context_sizes)


class Blind(AbstractHead):
    told_sizes: tuple = eqx.field(static=True)

    def __call__(self, context, shared, whitened, frame, unit, joint):
        return frame, context


def test_mean_field_between_levels_would_be_seen(x):
    """The figure that the test above would show for a guide whose locals ignore the globals: 0.32 of the sd."""
    _, sd, _ = fitted(non_centred, head=blind(), num_steps=9000)
    expected = math.sqrt((1 / PRIOR**2 + len(x) / (SPREAD**2 + NOISE**2)) / (1 / PRIOR**2 + len(x) / NOISE**2))
    ratio = sd / exact(x)[1]
    print(f"mean-field sd ratio {ratio:.4f}, formula {expected:.4f}")
    assert expected == pytest.approx(0.316, abs=0.001)
    assert abs(ratio / expected - 1) <= 0.1


def test_the_told_globals_serve_as_well(x):
    """The other head, where a network has to learn how z follows theta: it needs more steps."""
    mean, sd, posterior = fitted(non_centred, head=am.concatenate(), num_steps=10_000)
    expected, spread = exact(x)
    print(f"concatenate: sd ratio {sd / spread:.4f}, mean off by {(mean - expected) / spread:+.3f} sd, ", end="")
    print(f"{posterior.record.num_steps} steps")
    assert 0.95 <= sd / spread <= 1.05
    assert abs(mean - expected) <= 0.1 * spread
