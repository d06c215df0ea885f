"""What the guide promises: exact frames on Gaussian hierarchies, Jacobians, finite where the model is not concave."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax._types import Fixed, trainable
from amortax.frames import CURVATURE_FLOOR, LONGEST_STEP, Frame, prior_frame
from amortax.guide import Guide
from amortax.intake import as_units, to_batch
from amortax.objectives.estimators import shared_noises
from amortax.train.initialise import initialise

SPREAD, NOISE = 2.0, 0.7
SLOPES = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def levels(x):
    """d = 1: z ~ N(mu, 2²), four x ~ N(z, 0.7)."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, SPREAD))
        numpyro.sample("x", dist.Normal(z[:, None] + jnp.zeros(4), NOISE).to_event(1), obs=x)


def factors(x):
    """d = 3: z ~ N(mu, 2² I), x ~ N(slopes z, 0.7)."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, SPREAD).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ SLOPES.T, NOISE).to_event(1), obs=x)


DESIGN = {levels: np.ones((4, 1)), factors: SLOPES.astype(np.float64)}
ROWS = (3 + 2 * np.random.default_rng(1).standard_normal((6, 4))).astype(np.float32)
DATA = {levels: {"x": ROWS}, factors: {"x": ROWS}}


@functools.cache
def planned(model):
    return am.amortize(model, DATA[model], plate="unit")


@functools.cache
def started(model, head=None):
    """(joint, guide, batch) before the first step."""
    plan = planned(model)
    plan = plan if head is None else dataclasses.replace(plan, head=head)
    batch = to_batch(as_units(DATA[model], model, "unit"))
    joint, guide = initialise(plan, batch, jax.random.key(0))
    return joint, guide, jax.tree.map(jnp.asarray, batch)


def standard(guide):
    """The guide with local family N(0, I) whatever it is told."""
    leaves = jax.tree.map(jnp.zeros_like, eqx.filter(guide.local.family, eqx.is_array))
    return eqx.tree_at(lambda g: g.local.family, guide, eqx.combine(leaves, guide.local.family))


def exact(model, x, mu):
    """(means (N, d), covariance) of z | x, mu."""
    design = DESIGN[model]
    covariance = np.linalg.inv(np.eye(design.shape[1]) / SPREAD**2 + design.T @ design / NOISE**2)
    return (mu / SPREAD**2 + np.asarray(x, np.float64) @ design / NOISE**2) @ covariance, covariance


@pytest.mark.parametrize("model", [levels, factors])
def test_the_untrained_newton_frame_is_the_exact_conditional_of_a_gaussian_model(model):
    joint, guide, batch = started(model)
    guide = standard(guide)

    @eqx.filter_jit
    def density(local, shared):
        return guide.locals_log_prob(local, guide.encode(batch), shared, batch, joint)

    rng = np.random.default_rng(2)
    for mu in (-20.0, 0.0, 3.0):  # whatever the globals are, also far from where they start
        means, covariance = exact(model, ROWS, mu)
        for _ in range(3):
            noise = rng.standard_normal(means.shape)
            local = means + noise @ np.linalg.cholesky(covariance).T
            expected = -0.5 * (noise**2).sum(axis=1) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
            got = density(jnp.asarray(local, jnp.float32), jnp.asarray([mu]))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_told_head_keeps_the_prior_frame_and_tells_the_globals():
    joint, guide, batch = started(factors, am.concatenate())
    unit, context = jax.tree.map(lambda x: x[0], (batch, guide.encode(batch)))
    placed = []
    for mu in (0.0, 3.0):
        frame, told = guide.frame_given(context, jnp.asarray([mu]), unit, joint)
        np.testing.assert_array_equal(frame.center, guide.local.whitening.value["center"])
        np.testing.assert_array_equal(np.concatenate(told[:-1]), np.concatenate(context))
        placed.append(told[-1])
    assert placed[0].shape == (2,)  # on the prior's scale and on q's own
    assert np.all(np.abs(placed[0] - placed[1]) > 0.1)


@pytest.mark.parametrize(("model", "head"), [(levels, None), (factors, None), (factors, am.concatenate())])
def test_the_density_agrees_with_the_draws(model, head):
    joint, guide, batch = started(model, head)

    @eqx.filter_jit
    def both(key):
        contexts = guide.encode(batch)
        shared, log_shared = guide.sample_shared(key)
        local, log_q = guide.place_locals(guide.local_noise(key, joint, batch, 6), 0, contexts, shared, batch, joint)
        again = guide.locals_log_prob(local, contexts, shared, batch, joint)
        return (log_shared, log_q), (guide.shared_log_prob(shared), again)

    for seed in range(3):
        drawn, again = both(jax.random.key(seed))
        for left, right in zip(drawn, again, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4])
def test_a_frame_is_undone_and_its_determinant_is_that_of_its_matrix(size):
    rng = np.random.default_rng(3)
    lower = np.tril(rng.standard_normal((size, size))).astype(np.float32) + 2 * np.eye(size, dtype=np.float32)
    lower[0, 0] *= -1  # a sign does not matter
    vector = rng.standard_normal(size).astype(np.float32)
    for factor, matrix in ((lower, lower), (np.diagonal(lower).copy(), np.diag(np.diagonal(lower)))):
        frame = Frame(jnp.asarray(rng.standard_normal(size), jnp.float32), jnp.asarray(factor))
        np.testing.assert_allclose(
            frame.place(jnp.asarray(vector)), frame.center + matrix @ vector, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(frame.take(frame.place(jnp.asarray(vector))), vector, rtol=1e-4, atol=1e-5)
        jacobian = np.asarray(jax.jacobian(frame.place)(jnp.asarray(vector)), np.float64)
        np.testing.assert_allclose(frame.log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-5, atol=1e-6)


def test_other_whitening_changes_log_q_by_exactly_its_jacobian():
    joint, guide, batch = started(factors, am.concatenate())
    factor = jnp.asarray([2.0, 0.5, 7.0])

    def wider(block, factor, shift):
        old = block.whitening.value
        new = Fixed({"center": old["center"] + shift, "scale": old["scale"] * factor})
        return eqx.tree_at(lambda b: b.whitening, block, new)

    other = eqx.tree_at(lambda g: g.local, guide, wider(guide.local, factor, 1.0))
    other = eqx.tree_at(lambda g: g.shared, other, wider(guide.shared, jnp.asarray([3.0]), -2.0))
    free, told = jnp.asarray([0.3, -1.0, 0.5]), jnp.asarray([0.2])
    unit, context = jax.tree.map(lambda x: x[0], (batch, guide.encode(batch)))
    log_q, log_v = [], []
    for q in (guide, other):
        local, shared = prior_frame(q.local.whitening).place(free), prior_frame(q.shared.whitening).place(told)
        log_q.append(q.local_log_prob(local, context, shared, unit, joint))
        log_v.append(q.shared_log_prob(shared))
    np.testing.assert_allclose(log_q[1] - log_q[0], -np.log(factor).sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_v[1] - log_v[0], -np.log(3.0), rtol=1e-5, atol=1e-5)


def two_modes(x):
    """Log density with a ridge: x depends on z², concave nowhere near zero."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z[:, 0] ** 2 * z[:, 1], 0.1), obs=x)


def one_number(x, y):
    """d = 1: a rate that overflows easily, and far observations, where a Cauchy likelihood is convex."""
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 1))
        numpyro.sample("x", dist.Poisson(jnp.exp(z)), obs=x)
        numpyro.sample("y", dist.Cauchy(z, 0.01), obs=y)


DATA[two_modes] = {"x": np.array([0.0, 5.0, -5.0, 1e6], np.float32)}
DATA[one_number] = {
    "x": np.array([0, 0, 1, 10**4, 2 * 10**9], np.int32),
    "y": np.array([0.0, 1e8, -100.0, 3.0, -1e4], np.float32),
}


@pytest.mark.parametrize("model", [two_modes, one_number])
def test_hard_likelihoods_give_finite_frames_and_gradients(model):
    joint, guide, batch = started(model)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def frames(guide, shared):
        contexts = guide.encode(batch)
        frame, told = jax.vmap(lambda c, u: guide.frame_given(c, shared, u, joint))(contexts, batch)
        return jnp.sum(jnp.tanh(frame.center)) + jnp.sum(jax.vmap(lambda f: f.log_det)(frame)) + sum(
            map(jnp.sum, told)
        ), frame

    for mu in (-5.0, 0.0, 5.0):
        (value, frame), gradient = frames(guide, jnp.asarray([mu]))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, frame, gradient)))
        scale = np.asarray(guide.local.whitening.value["scale"])
        widest = np.abs(np.asarray(frame.factor)).max()
        assert widest <= 1.01 * scale.max() / np.sqrt(CURVATURE_FLOOR)  # no flatter than the floor says
        from_start = np.abs(np.asarray(frame.center) - guide.local.whitening.value["center"]) / scale
        assert np.all(from_start <= LONGEST_STEP + 5)  # and no step beyond the longest, from a point near the prior


def test_a_guide_without_globals_or_without_locals():
    joint, guide, batch = started(factors)
    nothing = jnp.zeros(0)
    local_only = Guide(None, guide.local, guide.encoder, None)
    shared, log_shared = local_only.sample_shared(jax.random.key(0))
    assert shared.shape == (0,)
    assert (float(log_shared), float(local_only.shared_log_prob(nothing))) == (0.0, 0.0)
    assert local_only.shared_noise(jax.random.key(0), 3).shape == (3, 0)

    global_only = Guide(guide.shared, None, None, None)
    contexts = global_only.encode(batch)
    noise = global_only.local_noise(jax.random.key(0), joint, batch, 6)
    local, log_q = global_only.place_locals(noise, 0, contexts, jnp.zeros(1), batch, joint)
    assert (contexts, local.shape) == ((), (6, 0))
    np.testing.assert_array_equal(log_q, 0)
    np.testing.assert_array_equal(global_only.locals_log_prob(local, contexts, jnp.zeros(1), batch, joint), 0)


def test_draws_of_opposite_noise_are_as_probable_and_on_opposite_sides():
    _, guide, _ = started(factors)
    first, second = shared_noises(jax.random.key(0), guide, 2)
    (draw, log_q), (image, same) = (guide.place_shared(noise, 0) for noise in (first, second))
    np.testing.assert_allclose(log_q, same, rtol=1e-6)
    middle = prior_frame(guide.shared.whitening).place(guide.shared.family.parameters.offset[:1])
    np.testing.assert_allclose(0.5 * (draw + image), middle, rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(draw - image) > 1e-3)


def fixed_leaves(guide):
    nodes = jax.tree.leaves(guide, is_leaf=lambda x: isinstance(x, Fixed))
    return [np.asarray(x) for node in nodes if isinstance(node, Fixed) for x in jax.tree.leaves(node)]


def test_training_leaves_fixed_numbers_alone_and_moves_all_others():
    data, run = DATA[factors], am.Run(num_steps=3, progress=False)
    before = am.fit(planned(factors), data, key=jax.random.key(0), objective=am.ELBO(), run=run)
    after = am.fit(before, data, key=jax.random.key(1), objective=am.ELBO(), run=run)
    fixed = list(zip(fixed_leaves(before.guide), fixed_leaves(after.guide), strict=True))
    assert len(fixed) == 6  # center and scale of the data, of the globals, of the locals
    for old, new in fixed:
        np.testing.assert_array_equal(old, new)
    trained = [jax.tree.leaves(eqx.filter(p.guide, trainable(p.guide))) for p in (before, after)]
    for old, new in zip(*trained, strict=True):
        assert np.any(np.asarray(old) != np.asarray(new))
