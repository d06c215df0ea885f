"""Is a wrong q(v) made right, and are locals drawn with it? Joint HMC against closed forms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.families.base import free_log_scale
from amortax.intake import conform, to_batch
from amortax.refine.whole import whole_draws
from amortax.train.initialise import initialise

PRIOR, SPREAD, NOISE, UNITS = 10.0, 3.0, 1.0, 20
SHIFT, NARROW = 1.0, 0.3  # of the wrong q(v), in exact sds


def centred(x):
    theta = numpyro.sample("theta", dist.Normal(0, PRIOR))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(theta, SPREAD))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def simulated():
    rng = np.random.default_rng(0)
    return (4.0 + math.hypot(SPREAD, NOISE) * rng.standard_normal(UNITS)).astype(np.float32)


def exact(x):
    """(mean, sd) of theta and of every z."""
    precision = 1 / PRIOR**2 + len(x) / (SPREAD**2 + NOISE**2)
    mean, variance = np.sum(x, dtype=np.float64) / (SPREAD**2 + NOISE**2) / precision, 1 / precision
    own = 1 / (1 / SPREAD**2 + 1 / NOISE**2)
    pull = own / SPREAD**2
    return (mean, math.sqrt(variance)), (pull * mean + own * x / NOISE**2, np.sqrt(own + pull**2 * variance))


def wrong(x, head=None):
    """(joint, guide, units): never trained, and q(v) narrow and shifted."""
    plan = am.amortize(centred, {"x": x}, plate="unit", head=head)
    joint, guide = initialise(plan, to_batch(am.units({"x": x}, name="unit")), jax.random.key(0))
    frame = guide.shared.whitening.value
    (mean, sd), _ = exact(x)
    offset = jnp.array([(mean + SHIFT * sd - frame["center"][0]) / frame["scale"][0], 0.0])
    offset = offset.at[1].set(free_log_scale(jnp.log(NARROW * sd / frame["scale"][0])))
    return joint, eqx.tree_at(lambda g: g.shared.family.parameters.offset, guide, offset), conform({"x": x}, joint)


def agrees(draws, mean, sd, ess):
    """Means and sds within five of their Monte-Carlo standard errors."""
    draws = np.asarray(draws, np.float64)
    off = np.abs(draws.mean(axis=0) - mean) / (sd / math.sqrt(ess))
    spread = np.abs(draws.std(axis=0) / sd - 1) * math.sqrt(2 * ess)
    print(f"worst mean {np.max(off):.1f}, worst sd {np.max(spread):.1f} standard errors, of {ess:.0f} draws")
    return np.max(off) <= 5 and np.max(spread) <= 5


@pytest.mark.parametrize("head", [None, am.concatenate()])
def test_a_wrong_guide_is_made_right(head):
    x = simulated()
    joint, guide, units = wrong(x, head)
    found = whole_draws(joint, guide, units, key=jax.random.key(1))
    print({name: value for name, value in vars(found).items() if name not in ("shared", "local")})
    assert found.accepted
    of_theta, of_z = exact(x)
    assert agrees(found.shared[:, 0], *of_theta, found.ess_min)
    assert agrees(found.local[:, :, 0], *of_z, found.ess_min)
