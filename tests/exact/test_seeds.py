"""Is the spread over fits what their means say, and are fits that disagree named?"""

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import as_units, conform, to_batch
from amortax.train.initialise import initialise


def model(x):
    level = numpyro.sample("level", dist.Normal(0, 1))
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(level, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=x)


def other(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=x)


def made(model, x):
    """A posterior as training starts it."""
    plan = am.amortize(model, {"x": x}, plate="unit")
    units = as_units({"x": x}, plan.model, "unit")
    joint, guide = initialise(plan, to_batch(units), jax.random.key(0))
    record = am.Record(len(x), 0, len(x), 0.0, "", 0, data_fingerprint=conform(units, joint).fingerprint())
    return am.Posterior(plan, joint, guide, record, None)


@pytest.fixture(scope="module")
def fits():
    x = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    return made(model, x), {"x": x}


def shifted(posterior, by):
    """q(level) moved, in prior sds; its own sd is exp(-1.2) or so of these, and z follows."""
    where = lambda p: p.guide.shared.family.parameters.offset  # noqa: E731
    return eqx.tree_at(where, posterior, where(posterior).at[0].add(by))


def test_equal_posteriors_have_no_spread(fits, capsys):
    posterior, data = fits
    found = am.spread([posterior, posterior, posterior], data, key=jax.random.key(1), num_samples=200)
    assert list(found.sites["site"]) == ["level", "z"]
    assert np.all(found.sites["spread"] < 1e-9)
    np.testing.assert_allclose(found.sites["sd_ratio"], 1, rtol=1e-9)
    assert found.elbo_spread < 1e-9
    assert found.apart == ()
    assert "WARN" not in capsys.readouterr().out


def test_a_moved_global_is_measured_in_its_own_sds(fits, capsys):
    posterior, data = fits
    draws = posterior.sample(data, num_samples=4000, key=jax.random.key(2))["level"].values
    moved = shifted(posterior, 1.0)
    by = float(moved.sample(data, num_samples=4000, key=jax.random.key(2))["level"].values.mean() - draws.mean())
    found = am.spread([posterior, moved], data, key=jax.random.key(1), num_samples=4000)
    expected = by / np.sqrt(2) / draws.std(ddof=1)  # sd of two values is their distance over √2
    print(found.sites, expected)
    assert expected > 0.5
    assert abs(found.sites["spread"][0] / expected - 1) < 5 * 0.02  # of an sd from 4,000 draws
    assert "level" in found.apart
    assert found.sites["where"][0] == ""
    assert found.sites["where"][1].startswith("[")
    assert "WARN: the fits disagree on level" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(fits):
    posterior, data = fits
    for arguments, message in (
        (([posterior],), "two or more posteriors"),
        (([posterior, 3],), "two or more posteriors"),
        (([posterior, made(other, data["x"])],), "posterior 1 is of another model than posterior 0"),
    ):
        with pytest.raises(am.DataError, match=message):
            am.spread(*arguments, data, key=jax.random.key(0))
    with pytest.raises(am.DataError, match="num_samples=20 are too few"):
        am.spread([posterior, posterior], data, key=jax.random.key(0), num_samples=20)
