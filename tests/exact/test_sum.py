"""Is a sum of objectives their weighted sum, exact where each is, and does one cure what the other lacks?"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conjugate import LinearGaussian, normal_kl, normals_of
from quadrature import X, alone, loss_of, started
from test_linear_gaussian import bound
from test_two_modes import log_evidence
from test_two_modes import model as two_modes
from test_wake_sleep import with_factor

import amortax as am
from amortax._types import Fixed
from amortax.intake import as_units, to_batch
from amortax.objectives.base import Minibatch
from amortax.train.initialise import initialise


def test_a_sum_is_the_weighted_sum_and_its_bound_that_of_the_real_units():
    joint, guide, batch = started(alone)
    both = am.Sum(am.ForwardKL(2), am.IWELBO(3), weights=(0.5, 2.0))
    params, rest, _ = loss_of(both, joint, guide, batch)
    minibatch = Minibatch((batch,), jnp.asarray(6.0), jnp.zeros((), jnp.int32))

    @jax.jit
    def losses(key):
        joint, guide = eqx.combine(params, rest)
        parts = zip(both.objectives, jax.random.split(key), strict=True)
        return both(key, guide, joint, minibatch), [each(k, guide, joint, minibatch) for each, k in parts]

    loss, (forward, bound) = losses(jax.random.key(0))
    np.testing.assert_allclose(loss.value, 0.5 * forward.value + 2.0 * bound.value, rtol=1e-5)
    np.testing.assert_allclose(loss.elbo_per_unit, -bound.value, rtol=1e-5)


@pytest.mark.slow
def test_both_together_reach_the_posterior_of_a_linear_gaussian_model():
    rng = np.random.default_rng(1)
    exact = LinearGaussian(rng.standard_normal((5, 2)), rng.standard_normal(5), 0.7)
    data, new = {"x": exact.simulate(rng, 256)[1]}, {"x": exact.simulate(rng, 1000)[1]}
    plan = am.amortize(bound(exact), data, plate="unit", encoder=am.dense(depth=0))
    objective = am.Sum(am.ELBO(), am.ForwardKL())
    posterior = am.fit(plan, data, key=jax.random.key(2), objective=objective, num_steps=1000)
    kl = normal_kl(*normals_of(posterior, new), *exact.posterior(new["x"]))
    print(f"KL mean {kl.mean():.5f}, p99 {np.quantile(kl, 0.99):.5f}")
    assert kl.mean() <= 0.02
    assert np.quantile(kl, 0.99) <= 0.15


def test_simulations_bring_back_the_mode_that_the_bound_dropped():
    """Two components that both start on one mode: the ELBO leaves them there, the sum finds the other."""
    rng = np.random.default_rng(0)
    data = {"x": (4.0 + 0.3 * rng.standard_normal(100)).astype(np.float32)}
    small = {"encoder": am.dense(width=16, depth=1), "family": am.mixture(am.diagonal(width=16), 2, 16)}
    plan = am.amortize(two_modes, data, plate="unit", **small)
    joint, guide = initialise(plan, to_batch(as_units(data, two_modes, "unit")), jax.random.key(1))
    family, narrow = guide.local.family, 10 * (jnp.arctanh(0.2) - jnp.arctanh(0.5))  # log sd -3
    offset = family.members.parameters.offset.at[:, 1].set(narrow)
    locations = Fixed(jnp.asarray([[0.6], [0.8]]))  # in prior sd: z = 3 and 4
    family = eqx.tree_at(lambda f: (f.locations, f.members.parameters.offset), family, (locations, offset))
    guide = eqx.tree_at(lambda g: g.local.family, guide, family)
    start = am.Posterior(plan, joint, guide, am.Record(100, 0, 100, 0.0, "", 0), None)
    gaps, shares = [], []
    for objective in (am.ELBO(), am.Sum(am.ELBO(), am.ForwardKL())):
        posterior = am.fit(start, data, key=jax.random.key(2), objective=objective, num_steps=1500)
        draws = np.asarray(posterior.sample(data, num_samples=200, key=jax.random.key(3))["z"])
        gaps.append(log_evidence(data["x"].astype(np.float64)).mean() - posterior.record.elbo_per_unit[-1])
        shares.append((draws > 0).mean())
    print(
        f"ELBO: gap {gaps[0]:.3f}, share of one mode {shares[0]:.3f}; with simulations {gaps[1]:.3f}, {shares[1]:.3f}"
    )
    assert shares[0] == 1.0
    assert gaps[0] > 0.6  # log 2
    assert abs(shares[1] - 0.5) < 0.1
    assert gaps[1] < 0.15


def test_a_sum_is_refused_where_one_of_it_is_or_none_trains_the_rest():
    plan = am.amortize(with_factor, {"x": X}, plate="unit")
    with pytest.raises(am.ModelError, match="am.ForwardKL needs simulations"):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=am.Sum(am.ELBO(), am.ForwardKL()))
    plan = am.amortize(alone, {"x": X}, plate="unit")
    with pytest.raises(am.ModelError, match=r"\['mean', 'slope', 'spread'\] .* would stay where they start"):
        am.fit(plan, {"x": X}, key=jax.random.key(0), objective=am.Sum(am.ForwardKL(), am.ForwardKL(2)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: am.Sum(), "am.Sum of no objectives"),
        (lambda: am.Sum(am.ELBO(), weights=(1.0, 2.0)), "am.Sum: 1 objectives but 2 weights; give one for each"),
        (
            lambda: am.Sum(am.ELBO(), am.ForwardKL(), weights=(1.0, -1.0)),
            r"weights\[1\] must be a finite number from 0",
        ),
        (lambda: am.Sum(am.ELBO(), weights=(float("nan"),)), r"weights\[0\] must be a finite number from 0"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(am.FitError, match=words):
        make()
