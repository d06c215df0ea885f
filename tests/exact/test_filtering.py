"""Beliefs step by step: the Kalman filter, the Bayes filter of discrete states, and one update after the other."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.beliefs import numbers_of
from amortax.models import state_space

PHI, START = 0.9, 1 / (1 - 0.9**2)  # both noises have variance one, the first state is that of the stationary process
STAY, RIGHT = 0.8, 0.85  # of a hidden state that is left alone, and of what is seen of it
kalman_model = functools.partial(state_space.many, persistence=PHI)


def some_series(count, steps, seed, missing=0.1):
    """Series of which some observations are missing, and the ends of some."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, steps))
    z[:, 0] *= START**0.5
    for t in range(1, steps):
        z[:, t] += PHI * z[:, t - 1]
    y = (z + rng.normal(size=z.shape)).astype(np.float32)
    ends = np.where(rng.random(count) < 0.5, steps, rng.integers(1, steps + 1, size=count))
    gone = (rng.random(y.shape) < missing) | (np.arange(steps) >= ends[:, None])
    y[gone & (missing > 0)] = np.nan
    return y


def kalman(y):
    """(means, variances) of z_t given y_1, ..., y_t, missing ones left out."""
    mean, variance, found = np.zeros(len(y)), np.full(len(y), START), []
    for t, now in enumerate(y.T):
        if t:
            mean, variance = PHI * mean, PHI**2 * variance + 1
        gain = np.where(np.isnan(now), 0.0, variance / (variance + 1))
        mean, variance = mean + gain * (np.nan_to_num(now) - mean), (1 - gain) * variance
        found.append((mean, variance))
    return np.moveaxis(np.array(found), 0, -1)


@pytest.fixture(scope="module")
def series():
    """A filter trained on series of 12 steps."""
    data = {"y": some_series(512, 12, seed=0)}
    plan = am.amortize(kalman_model, data, plate="series", family=am.filtering(), encoder=am.causal(width=32))
    return am.fit(plan, data, key=jax.random.key(1), num_steps=400, batch_size=64)


@eqx.filter_jit
def beliefs(filtered, y):
    """(mean, variance) after every step of every series."""

    def step(state, now):
        state = filtered.update(state, {"y": now})
        mean, covariance = filtered.belief(state).mean_and_cov()
        return state, (mean[0], covariance[0, 0])

    return jax.vmap(lambda own: jax.lax.scan(step, filtered.init(), own)[1])(y)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_beliefs_are_those_of_the_kalman_filter_also_in_longer_series(series, missing):
    """At most 0.02 nats a step (TRUST §1), after 50 steps of which training had 12."""
    y = some_series(300, 50, seed=2, missing=missing)
    mean, variance = (np.asarray(x, np.float64) for x in beliefs(series.filter(), y))
    exact_mean, exact_variance = kalman(y)
    divergence = 0.5 * (exact_variance / variance + (mean - exact_mean) ** 2 / variance - 1)
    divergence -= 0.5 * np.log(exact_variance / variance)
    print(f"KL(Kalman filter || q), {missing:.0%} missing: {divergence.mean():.5f} nats a step")
    assert divergence.mean() < 0.02


def test_updates_one_by_one_are_q_of_the_whole_series(series):
    """`sample` and `log_prob` of a series are the product of its beliefs."""
    data = {"y": some_series(3, 12, seed=3)}
    draws = series.sample(data, num_samples=2, key=jax.random.key(0))
    filtered = series.filter()

    @jax.jit
    def summed(y, level):
        def step(state, now):
            state = filtered.update(state, {"y": now[0]})
            return state, filtered.belief(state).log_prob({"level": now[1]})

        return jnp.sum(jax.lax.scan(step, filtered.init(), (y, level))[1])

    found = np.asarray(series.log_prob(draws, data).unit)
    for unit in range(3):
        wanted = [float(summed(data["y"][unit], draws["level"].values[s, unit])) for s in range(2)]
        np.testing.assert_allclose(found[:, unit], wanted, rtol=1e-4)


def test_draws_have_the_moments_that_are_said_and_their_log_prob_is_that_of_a_normal(series):
    filtered = series.filter()

    @jax.jit
    def told(y):
        belief = filtered.belief(filtered.update(filtered.init(), {"y": y}))
        draws = jax.vmap(belief.sample)(jax.random.split(jax.random.key(0), 20_000))["level"]
        return draws, jax.vmap(lambda z: belief.log_prob({"level": z}))(draws), belief.mean_and_cov()

    draws, log_q, (mean, covariance) = told(1.5)
    sd = float(covariance[0, 0]) ** 0.5
    assert abs(float(jnp.mean(draws)) - float(mean[0])) < 5 * sd / 20_000**0.5
    assert abs(float(jnp.std(draws)) / sd - 1) < 5 / 40_000**0.5
    exact = dist.Normal(mean[0], sd).log_prob(draws[:, 0])
    np.testing.assert_allclose(log_q, exact, atol=1e-4)


def test_padding_changes_nothing_and_a_missing_observation_does(series):
    filtered = series.filter()
    update = eqx.filter_jit(filtered.update)
    state = update(filtered.init(), {"y": jnp.float32(1.0)})
    padded = update(state, {"y": jnp.float32(-3.0)}, real=jnp.zeros((), bool))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(padded), strict=True))
    missing = update(state, {"y": jnp.float32(jnp.nan)})
    without = jax.jit(lambda s: filtered.update(s, {"y": None}))(state)
    np.testing.assert_allclose(missing.context[0], without.context[0], atol=1e-6)
    variances = jax.jit(lambda *states: [filtered.belief(s).mean_and_cov()[1][0, 0] for s in states])
    before, after = variances(state, missing)
    assert float(after) > float(before) + 0.5  # exact: 0.84 and 1.68


def test_before_the_first_step_there_is_no_belief(series):
    filtered = series.filter()
    with pytest.raises(am.DataError, match="there was no step yet"):
        filtered.belief(filtered.init())
    assert np.isnan(jax.jit(lambda: filtered.belief(filtered.init()).mean_and_cov()[0])()).all()


def test_a_saved_filter_says_the_same_to_the_bit(series, tmp_path):
    series.save(tmp_path / "filter.amx")
    loaded = am.load(tmp_path / "filter.amx", model=kalman_model)
    y = some_series(2, 7, seed=4)
    for one, other in zip(beliefs(series.filter(), y), beliefs(loaded.filter(), y), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("observation", "complaint"),
    [
        ({}, r"has \['y'\], got \[\]"),
        ({"y": 0.0, "x": 1.0}, r"has \['y'\], got \['x', 'y'\]"),
        ({"y": np.zeros(12)}, r"observation\['y'\] has shape \(12,\).* has \(\)"),
    ],
)
def test_an_observation_of_another_form_is_refused(series, observation, complaint):
    filtered = series.filter()
    with pytest.raises(am.DataError, match=complaint):
        filtered.update(filtered.init(), observation)


def test_what_takes_q_for_a_posterior_of_the_series_is_refused(series):
    data, key = {"y": some_series(3, 12, seed=3)}, jax.random.key(0)
    for verb in (series.check, series.evidence, functools.partial(series.predict, num_samples=2)):
        with pytest.raises(am.GuideError, match=r"filter\(\)"):
            verb(data, key=key)
    with pytest.raises(am.GuideError, match=r"compare: am.filtering\(\)"):
        am.compare(series, series, data, key=key)
    for objective in (am.ELBO(), am.Sum(am.ELBO(), am.ForwardKL())):
        with pytest.raises(am.FitError, match="ForwardKL"):
            am.fit(series, data, key=key, objective=objective)
    assert "no posterior of a whole series" in str(series)


def states(action, seen):
    """A hidden state that stays or flips, unless action 1 puts it anywhere, and what is seen of it."""
    moves = jnp.array([[[STAY, 1 - STAY], [1 - STAY, STAY]], [[0.5, 0.5], [0.5, 0.5]]])
    with numpyro.plate("series", action.shape[0]):
        found, before = [], jnp.full((action.shape[0], 2), 0.5)
        for t in range(action.shape[1]):
            state = numpyro.sample(f"state_{t}", dist.Categorical(probs=before))
            found.append(state)
            if t + 1 < action.shape[1]:
                before = moves[action[:, t + 1], state]
        shown = jnp.where(jnp.stack(found, axis=-1) == 1, RIGHT, 1 - RIGHT)
        numpyro.sample("seen", dist.Bernoulli(shown).to_event(1), obs=seen)


def bayes(action, seen):
    """p(state_t = 1 | what was seen up to t)."""
    one, found = np.full(len(seen), 0.5), []
    for t in range(seen.shape[1]):
        if t:
            one = np.where(action[:, t] == 1, 0.5, STAY * one + (1 - STAY) * (1 - one))
        right, wrong = one * np.where(seen[:, t] == 1, RIGHT, 1 - RIGHT), 0.0
        wrong = (1 - one) * np.where(seen[:, t] == 1, 1 - RIGHT, RIGHT)
        one = right / (right + wrong)
        found.append(one)
    return np.stack(found, axis=1)


def of_states(steps, num_steps):
    """A posterior of hidden states, trained on series of so many steps."""
    rng = np.random.default_rng(0)
    data = {
        "action": (rng.random((256, steps)) < 0.2).astype(np.int32),
        "seen": rng.integers(0, 2, (256, steps)).astype(np.int32),
    }
    plan = am.amortize(states, data, plate="series", family=am.filtering(width=32), encoder=am.causal(width=24))
    return am.fit(plan, data, key=jax.random.key(0), num_steps=num_steps, batch_size=128)


@pytest.fixture(scope="module")
def discrete():
    return of_states(steps=3, num_steps=1)


@pytest.mark.slow
def test_beliefs_of_discrete_states_are_those_of_bayes():
    """Total variation at most 0.02, after twice the steps of training; actions are seen with their step."""
    rng = np.random.default_rng(1)
    action = (rng.random((400, 12)) < 0.2).astype(np.int32)
    seen = rng.integers(0, 2, action.shape).astype(np.int32)
    filtered = of_states(steps=6, num_steps=400).filter()

    @jax.jit
    def run(action, seen):
        def step(state, now):
            state = filtered.update(state, {"action": now[0], "seen": now[1]})
            return state, filtered.belief(state).probabilities()["state"]

        return jax.lax.scan(step, filtered.init(), (action, seen))[1]

    found = np.asarray(jax.vmap(run)(action, seen))
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)
    variation = np.abs(found[..., 1] - bayes(action, seen))
    print(f"total variation to the Bayes filter: {variation.mean():.5f}, at most {variation.max():.5f}")
    assert variation.mean() < 0.02


def test_discrete_draws_and_their_probabilities(discrete):
    filtered = discrete.filter()
    belief = filtered.belief(filtered.update(filtered.init(), {"action": 0, "seen": 1}))
    draws = jax.jit(jax.vmap(belief.sample))(jax.random.split(jax.random.key(0), 10_000))["state"]
    share = float(belief.probabilities()["state"][1])
    assert abs(float(jnp.mean(draws)) - share) < 5 * (share * (1 - share) / 10_000) ** 0.5
    assert float(belief.log_prob({"state": 1})) == pytest.approx(np.log(share), abs=1e-5)
    assert float(belief.log_prob({"state": 2})) == -np.inf
    with pytest.raises(am.GuideError, match="discrete; use probabilities"):
        belief.mean_and_cov()


def test_an_index_out_of_range_is_no_belief_and_a_float_is_none(discrete):
    filtered = discrete.filter()
    with pytest.raises(am.DataError, match=r"\['action'\] is 7; it is an index: expected 0 to"):
        filtered.update(filtered.init(), {"action": 7, "seen": 1})
    bad = jax.jit(lambda a: filtered.update(filtered.init(), {"action": a, "seen": 1}))(7)
    assert np.isnan(filtered.belief(bad).probabilities()["state"]).all()
    with pytest.raises(am.DataError, match=r"\['action'\] is of type float32; it is an index"):
        filtered.update(filtered.init(), {"action": 1.0, "seen": 1})
    with pytest.raises(am.DataError, match=r"\['seen'\] is missing, but nothing was missing there in training"):
        filtered.update(filtered.init(), {"action": 1, "seen": None})


def walk(y, scale=None):
    """Two numbers a step, in a loop, about which one observation tells."""
    with numpyro.plate("series", y.shape[0]):
        before, seen = jnp.zeros(y.shape[0]), []
        for t in range(y.shape[1]):
            before = numpyro.sample(f"level_{t}", dist.Normal(before, 1.0))
            slope = numpyro.sample(f"slope_{t}", dist.Normal(jnp.zeros((y.shape[0], 3)), 1.0).to_event(1))
            seen.append(before + slope.sum(axis=-1))
        numpyro.sample("y", dist.Normal(jnp.stack(seen, axis=-1), 1.0).to_event(1), obs=y)


def test_sites_of_a_loop_belong_to_their_steps():
    plan = am.amortize(walk, {"y": np.zeros((3, 4), np.float32)}, plate="series", family=am.filtering())
    found = numbers_of(plan.structure)
    assert [tuple(part) for part in found.parts] == [("level", ()), ("slope", (3,))]
    assert found.index == tuple(tuple(range(4 * t, 4 * t + 4)) for t in range(4))


def test_a_mixture_is_drawn_by_its_shares():
    recipe = am.filtering(am.mixture(am.diagonal(), 3))
    family = recipe.build(((0, 2), (1, 3)), (2,), key=jax.random.key(0))
    context = (jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)), jnp.float32),)
    noise = jax.random.normal(jax.random.key(1), (20_000, family.noise_size))
    values, log_q = jax.jit(jax.vmap(lambda e: family.sample_and_log_prob(e, 0, context)))(noise)
    again = jax.jit(jax.vmap(lambda z: family.log_prob(z, context)))(values)
    np.testing.assert_allclose(log_q, again, atol=1e-4)
    mean, sd = family.mean_and_sd(context)
    assert np.all(np.abs(np.mean(values, axis=0) - mean) < 5 * sd / 20_000**0.5)


def unfit(y, x=None, *, kind=""):
    """Models that have no beliefs."""
    shared = numpyro.sample("shared", dist.Normal(0.0, 1.0)) if kind == "global" else 0.0
    if kind == "learned":
        shared = numpyro.param("shared", 0.0)
    with numpyro.plate("series", y.shape[0]):
        steps = dist.HalfNormal(1.0) if kind == "positive" else dist.Normal(shared, 1.0)
        z = numpyro.sample("z", steps.expand([y.shape[1] + (kind == "longer")]).to_event(1))
        if kind == "mixed":
            z = z + numpyro.sample("group", dist.Bernoulli(0.5))[:, None]
        if x is not None:
            numpyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        numpyro.sample("y", dist.Normal(z[:, : y.shape[1]], 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("kind", "recipes", "complaint"),
    [
        ("global", {}, r"\['shared'\] of model .* outside plate 'series'"),
        ("learned", {}, r"\['shared'\] of model .* are learned"),
        ("positive", {}, r"\['z'\] of model .* not on all reals"),
        ("longer", {}, r"4 steps, but the latents \['z'\] have no axis of that length"),
        ("mixed", {}, r"discrete latents beside the numbers \['z'\]"),
        ("end", {}, r"time is the first axis of every observed argument .*'x': \(\)"),
        ("", {"encoder": am.dense()}, r"am.dense\(\) sees later steps too"),
        ("", {"encoder": am.causal(), "family": am.diagonal()}, r"encoder=am.causal\(\) .* family=am.filtering\(\)"),
    ],
)
def test_models_and_recipes_without_beliefs_are_refused(kind, recipes, complaint):
    data = {"y": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    if kind == "end":
        data["x"] = data["y"][:, 0]
    with pytest.raises(am.GuideError, match=complaint):
        am.amortize(functools.partial(unfit, kind=kind), data, plate="series", **{"family": am.filtering()} | recipes)


def ragged(y):
    with numpyro.plate("series", y.shape[0], dim=-2), numpyro.plate("step", y.shape[1], dim=-1):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def test_ragged_series_are_told_how_to_be_padded():
    data = {"y": [np.zeros(3, np.float32), np.ones(5, np.float32)]}
    with pytest.raises(am.GuideError, match=r"\['y'\] differ in length by series; pad them to one length with NaN"):
        am.amortize(ragged, data, plate="series", family=am.filtering())


def test_another_posterior_has_no_filter():
    data = {"y": some_series(8, 3, seed=0, missing=0.0)}
    plan = am.amortize(kalman_model, data, plate="series", family=am.diagonal(), encoder=am.dense(width=4, depth=1))
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=1)
    with pytest.raises(am.GuideError, match=r"family=am.filtering\(\)"):
        posterior.filter()
