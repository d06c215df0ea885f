"""What a filter does with a step that can't be: an error that names it, where values are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import amortax as am

RNG = np.random.default_rng(0)
DATA = {"push": RNG.normal(size=(20, 5)), "x": RNG.normal(size=(20, 5)), "hits": RNG.poisson(1.0, size=(20, 5))}
DATA["x"][:, 2] = np.nan
GOOD = {"push": 0.1, "x": 0.2, "hits": 1}


def pushed(push, x, hits):
    def body(z, now):
        with numpyro.plate("series", push.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.8 * z + now[0], 0.5))
            numpyro.sample("x", dist.Normal(z, 0.3), obs=now[1])
            numpyro.sample("hits", dist.Poisson(jnp.exp(z)), obs=now[2])
        return z, None

    scan(body, jnp.zeros(push.shape[0]), (push.T, x.T, hits.T))


@functools.cache
def filtered():
    plan = am.amortize(pushed, DATA, plate="series", family=am.filtering(), encoder=am.causal(width=8))
    return am.fit(plan, DATA, key=jax.random.key(0), num_steps=2).filter()


VALUES = {
    "nan where none was": ({"push": np.nan}, r"\['push'\] is nan, a missing value, but nothing was missing there"),
    "infinite": ({"x": np.inf}, r"\['x'\] is inf; expected a finite number"),
    "negative count": ({"hits": -1}, r"\['hits'\] is -1; that is outside the support of its site"),
    "half a count": ({"hits": 1.5}, r"\['hits'\] is 1.5; the posterior was trained on whole numbers"),
    "text": ({"x": "a"}, r"\['x'\]: expected a number or an array of shape \(\), got 'a'"),
    "missing": ({"push": None}, r"\['push'\] is missing"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_are_refused(case):
    changed, words = VALUES[case]
    with pytest.raises(am.DataError, match=words):
        filtered().update(filtered().init(), GOOD | changed)


def test_what_may_be_missing_may(unchecked):
    state = filtered().update(filtered().init(), GOOD | {"x": np.nan})
    assert np.isfinite(filtered().belief(state).mean_and_cov()[0]).all()


FORMS = {
    "no dict": (lambda f, s: f.update(s, 0.3), "expected a dict of"),
    "swapped": (lambda f, s: f.update(GOOD, s), "expected the state that init"),
    "no state": (lambda f, s: f.update(None, GOOD), "expected the state"),
    "real in words": (lambda f, s: f.update(s, GOOD, real="no"), "True or False, got 'no'"),
    "belief of nothing": (lambda f, s: f.belief(None), "expected the state"),
    "belief before": (lambda f, s: f.belief(f.init()), "there was no step yet"),
    "log_prob of a number": (lambda f, s: f.belief(s).log_prob(0.1), "expected a dict of site -> values"),
    "no key": (lambda f, s: f.belief(s).sample(0), "typed JAX key"),
    "no draws": (lambda f, s: f.belief(s).sample(jax.random.key(0), num_samples=0), "whole number from 1"),
}


@pytest.mark.parametrize("case", FORMS)
def test_other_forms_are_refused(case, unchecked):
    call, words = FORMS[case]
    with pytest.raises(am.DataError, match=words):
        call(filtered(), filtered().update(filtered().init(), GOOD))


def test_draws_come_as_many_as_asked_for_and_a_filter_prints_itself_shortly():
    belief = filtered().belief(filtered().update(filtered().init(), GOOD))
    assert belief.sample(jax.random.key(0), num_samples=7)["z"].shape == (7,)
    assert repr(filtered()) == "Filter(beliefs of z; a step sees push, x, hits)"
