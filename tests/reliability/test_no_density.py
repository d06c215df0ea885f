"""A simulator that has no density: is everything that needs one refused, and is what doesn't still there?"""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

RNG = np.random.default_rng(0)
LATENTS = {"rate": RNG.gamma(2.0, 1.0, 200)}
DATA = {"signal": (LATENTS["rate"][:, None] + RNG.normal(size=(200, 4))).astype(np.float32)}
BOUNDS = [
    am.ELBO(),
    am.IWELBO(4),
    am.Renyi(0.5),
    am.WakeSleep(),
    am.WakeSleep(8, wake_share=1.0),
    am.Sum(am.ForwardKL(), am.ELBO()),
]


def simulator(signal):
    numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("signal", dist.ImproperUniform(dist.constraints.real_vector, (), (4,)), obs=signal)


def by_hand(signal):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("signal", dist.ImproperUniform(dist.constraints.real_vector, (), (4,)), obs=signal)
    numpyro.factor("told", dist.Normal(rate, 1.0).log_prob(signal).sum())


@functools.cache
def posterior():
    plan = am.amortize(simulator, DATA, plate=None)
    return am.fit(plan, (LATENTS, DATA), key=jax.random.key(0), num_steps=20)


@pytest.mark.parametrize("objective", BOUNDS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("trained", [False, True])
def test_bounds_are_refused_of_data_and_of_pairs(objective, trained):
    guide = posterior() if trained else posterior().plan
    for data in (DATA, (LATENTS, DATA)):
        with pytest.raises(am.ModelError, match=r"site .signal. has no .*give \(latents, data\) pairs"):
            am.fit(guide, data, key=jax.random.key(1), objective=objective, num_steps=2)


@pytest.mark.parametrize("objective", [None, am.ForwardKL()])
def test_data_without_latents_are_refused(objective):
    with pytest.raises(am.ModelError, match=r"'signal' has no .*give \(latents, data\) pairs"):
        am.fit(posterior().plan, DATA, key=jax.random.key(1), objective=objective, num_steps=2)


VERBS = {
    "check": lambda p: p.check(DATA, key=jax.random.key(1)),
    "evidence": lambda p: p.evidence(DATA, key=jax.random.key(1), num_samples=100),
    "predict": lambda p: p.predict(DATA, num_samples=2, key=jax.random.key(1)),
    "compare": lambda p: am.compare(p, p, DATA, key=jax.random.key(1)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_judges_by_weights_is_refused_before_and_after_a_file(verb, tmp_path):
    posterior().save(tmp_path / "a.amx")
    for trained in (posterior(), am.load(tmp_path / "a.amx", model=simulator)):
        with pytest.raises(am.ModelError, match=f"^{verb}: .*site 'signal' has no density"):
            VERBS[verb](trained)


def test_what_needs_none_goes_on():
    trained = posterior()
    assert "no bound, check or evidence" in str(trained)
    assert np.isnan(trained.record.elbo_per_unit).all()  # none is reported that means nothing
    again = am.fit(trained, (LATENTS, DATA), key=jax.random.key(2), num_steps=2)
    assert again.sample(DATA, num_samples=2, key=jax.random.key(3)).rate.shape == (2, 200)


def test_a_factor_is_a_density():
    plan = am.amortize(by_hand, DATA, plate=None)
    trained = am.fit(plan, DATA, key=jax.random.key(1), num_steps=2)
    assert np.isfinite(trained.record.elbo_per_unit).all()
