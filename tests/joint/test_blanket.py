"""Is it told before training that a latent's posterior needs more data than its encoder sees, and which?"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

X = np.random.default_rng(0).standard_normal(12).astype(np.float32)


def saw(x):
    """Margossian and Blei's: each observation hangs on two latents."""
    with numpyro.plate("step", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        before = jnp.concatenate([jnp.zeros(1), z[:-1]])
        numpyro.sample("x", dist.Normal(z + before, 0.3), obs=x)


def walk(x):
    with numpyro.plate("step", x.shape[0]):
        kick = numpyro.sample("kick", dist.Normal(0, 1))
        own = numpyro.sample("own", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jnp.cumsum(kick) + own, 0.3), obs=x)


def lagged(x):
    with numpyro.plate("step", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        before = jnp.concatenate([jnp.zeros(1), x[:-1]])
        numpyro.sample("x", dist.Normal(z + 0.5 * before, 0.3), obs=x)


def whole_saw(x):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([x.shape[0]]).to_event(1))
    before = jnp.concatenate([jnp.zeros(1), z[:-1]])
    numpyro.sample("x", dist.Normal(z + before, 0.3).to_event(1), obs=x)


def simple(x):
    level = numpyro.sample("level", dist.Normal(0, 1))
    with numpyro.plate("step", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(level + 2 * z, 0.3), obs=x)


@pytest.mark.parametrize(("model", "latent"), [(saw, "z"), (walk, "kick")])
def test_a_likelihood_that_sees_a_neighbours_latent_is_refused_with_the_latent(model, latent):
    said = f"site 'x' is not separable by unit: unit 1 .*It depends on latent '{latent}' of other units of plate 'step'"
    with pytest.raises(am.ModelError, match=said) as caught:
        am.amortize(model, {"x": X}, plate="step")
    assert f"the posterior of a unit's '{latent}' needs the data of others" in str(caught.value)
    assert "am.markov()" in str(caught.value)
    assert "'own'" not in str(caught.value)


def test_a_likelihood_that_sees_a_neighbours_data_is_refused_with_the_data():
    with pytest.raises(am.ModelError, match=r"It depends on data\['x'\] of other units of plate 'step'"):
        am.amortize(lagged, {"x": X}, plate="step")


def test_the_rewrite_is_accepted_and_a_simple_hierarchy_too():
    plan = am.amortize(whole_saw, am.units([{"x": X}]), plate=None, family=am.markov(), encoder=am.recurrent())
    assert "structural gap" not in str(plan)
    assert "structural gap" not in str(am.amortize(simple, {"x": X}, plate="step"))


@pytest.mark.parametrize(("layers", "hears_all"), [(2, False), (3, False), (4, True)])
def test_steps_that_do_not_hear_of_all_are_told_of_in_the_plan(layers, hears_all):
    data = {"x": np.stack([X, X[::-1]])}
    encoder = am.temporal_convolution(width=4, layers=layers)
    plan = am.amortize(whole_saw, data, plate=None, family=am.markov(), encoder=encoder)
    said = " ".join(str(plan).split())
    assert ("structural gap" in said) != hears_all
    if not hears_all:
        assert f"told of {2**layers - 1} steps before and after it, of 12" in said
        assert "am.temporal_convolution(layers=4)" in said
    assert heard(plan, data, steps=12) == hears_all


def heard(plan, data, steps):
    """Whether the first step's context changes with the last observation."""
    run = am.Run(num_steps=1, progress=False)
    posterior = am.fit(plan, data, key=jax.random.key(0), run=run)
    moved = data["x"].copy()
    moved[:, -1] += 1.0
    contexts = [posterior.encode({"x": x}).reshape(2, steps, -1)[:, 0] for x in (data["x"], moved)]
    return bool(np.abs(contexts[0] - contexts[1]).max() > 0)
