"""Discrete latents that can't be summed are refused by name, with what to write instead."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from amortax import GuideError, ModelError, amortize, full

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=5).astype(np.float32)
SQUARE = RNG.normal(size=(5, 4)).astype(np.float32)
COUNTS = RNG.integers(1, 4, size=5)


def unbounded(y):
    with numpyro.plate("u", y.shape[0]):
        n = numpyro.sample("n", dist.Poisson(2.0))
        numpyro.sample("y", dist.Normal(n, 1.0), obs=y)


def bound_by_data(k, y):
    with numpyro.plate("u", y.shape[0]):
        n = numpyro.sample("n", dist.Binomial(k, 0.3))
        numpyro.sample("y", dist.Normal(n, 1.0), obs=y)


def several_at_once(y):
    with numpyro.plate("u", y.shape[0]):
        n = numpyro.sample("n", dist.Multinomial(3, jnp.ones(2) / 2))
        numpyro.sample("y", dist.Normal(n[..., 0], 1.0), obs=y)


def shared(y):
    c = numpyro.sample("c", dist.Bernoulli(0.3))
    with numpyro.plate("u", y.shape[0]):
        numpyro.sample("y", dist.Normal(c, 1.0), obs=y)


def too_many(y):
    with numpyro.plate("u", y.shape[0]):
        c = numpyro.sample("c", dist.Categorical(jnp.ones(3) / 3))
        on = numpyro.sample("on", dist.Bernoulli(0.5 * jnp.ones(9)).to_event(1))
        numpyro.sample("y", dist.Normal(c + on.sum(-1), 1.0), obs=y)


def elements_added_up(y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        with numpyro.plate("e", 3, dim=-1):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(c.sum(-1, keepdims=True), 1.0), obs=y[:, None])


def element_before(y):
    with numpyro.plate("u", y.shape[0], dim=-2), numpyro.plate("e", y.shape[1], dim=-1):
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(c + jnp.roll(c, 1, -1), 1.0), obs=y)


def crossed(y):
    with numpyro.plate("u", y.shape[0], dim=-3):
        rows, columns = numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 2, dim=-1)
        with rows:
            a = numpyro.sample("a", dist.Bernoulli(0.3))
        with columns:
            b = numpyro.sample("b", dist.Bernoulli(0.3))
        with rows, columns:
            numpyro.sample("y", dist.Normal(a * b, 1.0), obs=y.reshape(-1, 2, 2))


def next_to_the_plate(y):
    with numpyro.plate("u", y.shape[0]):
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(c, 1.0), obs=y)
    numpyro.factor("tie", -c.sum())


def zero_inflated(k):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", k.shape[0]):
        on = numpyro.sample("on", dist.Bernoulli(0.6))
        numpyro.sample("k", dist.Poisson(on * jnp.exp(level)), obs=k)


def zero_inflated_by_a_parameter(k):
    rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("u", k.shape[0]):
        on = numpyro.sample("on", dist.Bernoulli(0.6))
        numpyro.sample("k", dist.Poisson(on * rate), obs=k)


def fine(y):
    with numpyro.plate("u", y.shape[0]):
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(c, 1.0), obs=y)


CASES = [
    (unbounded, {"y": FLAT}, ["site 'n' is a discrete latent in plate 'u'", "IntegerNonnegative", "finite support"]),
    (bound_by_data, {"k": COUNTS, "y": FLAT}, ["site 'n'", "can't be listed once for all units", "Categorical up to"]),
    (several_at_once, {"y": FLAT}, ["site 'n'", "Multinomial", "can't be listed"]),
    (shared, {"y": FLAT}, ["site 'c' is a discrete latent outside plate 'u'", "MixtureSameFamily"]),
    (too_many, {"y": FLAT}, ["have 1,536 assignments ('c' 3, 'on' 2^9)", "at most 1,024", "a plate of their own"]),
    (elements_added_up, {"y": FLAT}, ["site 'y' depends on the discrete site 'c' of every element of plate 'e'"]),
    (element_before, {"y": SQUARE}, ["site 'y' of one element of plate 'e' depends on the discrete sites ['c'] of"]),
    (crossed, {"y": SQUARE}, ["site 'y' is in plates ['column', 'row']", "['a', 'b']", "to_event"]),
    (zero_inflated_by_a_parameter, {"k": COUNTS - 1}, ["no finite slope where discrete site 'on' is 0"]),
    (zero_inflated, {"k": COUNTS - 1}, ["no finite slope where discrete site 'on' is 0", "jnp.where(on == 0, 1e-10"]),
    (next_to_the_plate, {"y": FLAT}, ["site 'tie' is outside plate 'u' but depends on 'c'"]),
]


@pytest.mark.parametrize(("model", "data", "fragments"), CASES, ids=[model.__name__ for model, *_ in CASES])
def test_is_refused_by_name_with_reason_and_remedy(model, data, fragments):
    with pytest.raises(ModelError) as caught:
        amortize(model, data, plate="u")
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_a_family_has_nothing_to_do_where_all_is_summed():
    with pytest.raises(GuideError, match="no local latents but discrete ones, which are summed exactly"):
        amortize(fine, {"y": FLAT}, plate="u", family=full())
