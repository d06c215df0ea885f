"""Is a minibatch scaled up by N/B, the shared part counted once, and every event axis summed?"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import amortax as am
from amortax._types import Batch, Terms
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.train.initialise import initialise
from amortax.train.step import split_trainable

UNITS, BATCH = 24, 4
# Of the ε²/2 in log q, the only randomness left: 5 sd of the difference between means over all units and over a batch.
NOISE = 5 * math.sqrt(0.5 * 2 * (1 / UNITS + 1 / BATCH) + 0.5 * 2 / UNITS**2)


def model(x):
    level = numpyro.sample("level", dist.Normal(1.0, 0.5))
    noise = numpyro.param("noise", 0.8, constraint=dist.constraints.positive)
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 2.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(jnp.concatenate([z, z[..., :1] + z[..., 1:]], -1), noise).to_event(1), obs=x)


@pytest.fixture(scope="module")
def built():
    """A guide whose draws are its means to one part in a million: all batches see the same globals."""
    data = {"x": np.random.default_rng(0).standard_normal((UNITS, 3)).astype(np.float32) * 3}
    plan = am.amortize(model, data, plate="unit", family=am.diagonal(), head=am.concatenate())
    batch = to_batch(as_units(data, plan.model, "unit"))
    joint, guide = initialise(plan, batch, jax.random.key(0))
    for block, size in (("shared", 1), ("local", 2)):
        offset = getattr(guide, block).family.parameters.offset
        offset = offset.at[size : 2 * size].set(-40.0)  # a log scale of -15, the lowest there is
        guide = eqx.tree_at(lambda g, b=block: getattr(g, b).family.parameters.offset, guide, offset)
    return joint, guide, jax.tree.map(jnp.asarray, batch), data


def minibatch_of(batch, num_units):
    return Minibatch((batch,), jnp.asarray(float(num_units)), jnp.zeros((), jnp.int32))


def gradient(joint, guide, batch, num_units):
    params, rest = split_trainable(joint, guide)

    def loss(params):
        joint, guide = eqx.combine(params, rest)
        objective = am.ELBO(path_derivative=False)
        return objective(jax.random.key(1), guide, joint, minibatch_of(batch, num_units)).value

    return jax.jit(jax.value_and_grad(loss))(params)


def test_the_mean_over_all_minibatches_is_the_whole(built):
    joint, guide, batch, _ = built
    value, whole = gradient(joint, guide, batch, UNITS)
    parts = [
        gradient(joint, guide, jax.tree.map(lambda x, i=i: x[i : i + BATCH], batch), UNITS)
        for i in range(0, UNITS, BATCH)
    ]
    assert abs(np.mean([v for v, _ in parts]) - float(value)) <= NOISE
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *[g for _, g in parts])
    worst = 0.0
    for (where, all_units), batches in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(mean), strict=True
    ):
        size = float(jnp.max(jnp.abs(all_units)))
        error = float(jnp.max(jnp.abs(batches - all_units)))
        worst = max(worst, error / max(size, 1e-3))
        assert error <= 1e-3 * max(size, 1e-3), jax.tree_util.keystr(where)
    print(f"largest relative difference of a gradient: {worst:.1e}")


def test_one_batch_alone_stands_for_all_units(built):
    joint, guide, batch, _ = built
    part = jax.tree.map(lambda x: x[:BATCH], batch)
    tiled = jax.tree.map(lambda x: jnp.tile(x, (UNITS // BATCH,) + (1,) * (x.ndim - 1)), part)
    value, found = gradient(joint, guide, part, UNITS)
    expected_value, expected = gradient(joint, guide, tiled, UNITS)
    assert abs(float(value) - float(expected_value)) <= NOISE
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(want))) + 1e-6)


def test_the_scale_need_not_be_whole(built):
    *_, batch, _ = built
    part = jax.tree.map(lambda x: x[:4], batch)
    assert float(minibatch_of(part, 10).scale) == 2.5


def test_the_total_scales_units_and_not_what_they_share():
    terms = Terms(jnp.array([1.0, 2.0, 4.0]), jnp.asarray(10.0))
    assert float(terms.total()) == 17.0
    assert float(terms.total(5.0)) == 45.0
    assert float((terms - Terms(jnp.ones(3), jnp.asarray(4.0))).total(2.0)) == 14.0


def test_the_density_is_the_sum_over_event_axes_and_the_prior_of_globals_once(built):
    joint, _, batch, data = built
    rng = np.random.default_rng(2)
    local, level = rng.standard_normal((UNITS, 2)).astype(np.float32), 0.7
    location = np.concatenate([local, local.sum(axis=1, keepdims=True)], axis=1)
    unit = stats.norm.logpdf(local, level, 2.0).sum(axis=1) + stats.norm.logpdf(data["x"], location, 0.8).sum(axis=1)
    for count in (1, 5, UNITS):
        part = Batch({"x": batch.arrays["x"][:count]}, {}, {})
        terms = joint.log_prob(jnp.asarray(local[:count]), jnp.array([level]), part)
        np.testing.assert_allclose(terms.unit, unit[:count], rtol=1e-5)
        assert float(terms.shared) == pytest.approx(stats.norm.logpdf(level, 1.0, 0.5), rel=1e-5)


def test_the_reported_bound_is_per_unit_of_all_units(built):
    """log p - log q of everything, over N, from scipy: nothing scaled, annealed or averaged over events."""
    joint, guide, batch, data = built
    objective = am.ELBO(path_derivative=False)
    loss = jax.jit(lambda: objective(jax.random.key(1), guide, joint, minibatch_of(batch, UNITS)))()
    assert float(loss.elbo_per_unit) == -float(loss.value)
    level = float(guide.shared.whitening.value["center"][0])
    contexts = guide.encode(batch)
    noise = guide.local_noise(jax.random.key(3), joint, batch, UNITS)
    local, _ = guide.place_locals(noise, 0, contexts, jnp.array([level]), batch, joint)
    local = np.asarray(local, np.float64)
    location = np.concatenate([local, local.sum(axis=1, keepdims=True)], axis=1)
    unit = stats.norm.logpdf(local, level, 2.0).sum(axis=1) + stats.norm.logpdf(data["x"], location, 0.8).sum(axis=1)
    scales = [float(jnp.sum(jnp.log(getattr(guide, b).whitening.value["scale"]))) for b in ("shared", "local")]
    entropy = [0.5 * size * (1 + math.log(2 * math.pi)) - 15 * size for size in (1, 2)]
    expected = (
        (stats.norm.logpdf(level, 1.0, 0.5) + entropy[0] + scales[0]) / UNITS + unit.mean() + entropy[1] + scales[1]
    )
    print(f"bound per unit {float(loss.elbo_per_unit):.3f}, by hand {expected:.3f} ± {NOISE / 5:.2f}")
    assert abs(float(loss.elbo_per_unit) - expected) <= NOISE
