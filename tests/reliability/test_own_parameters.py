"""A posterior without an encoder answers for the units it was trained on, in any order, and for no others."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am

NAMES = np.array([f"unit {i}" for i in range(12)])
X = np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)


def model(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z[:, None] + np.zeros(2), 1.0).to_event(1), obs=x)


def named(rows, x=X):
    return am.units({"x": x[rows]}, labels=NAMES[rows], name="unit")


@pytest.fixture(scope="module")
def posterior():
    units = named(np.arange(12))
    plan = am.amortize(model, units, plate="unit", encoder=am.free())
    return am.fit(plan, units, key=jax.random.key(0), num_steps=5)


@pytest.fixture(scope="module")
def unnamed():
    plan = am.amortize(model, {"x": X}, plate="unit", encoder=am.free())
    return am.fit(plan, {"x": X}, key=jax.random.key(0), num_steps=5)


def test_units_in_another_order_get_their_own_rows(posterior):
    order = np.random.default_rng(1).permutation(12)[:7]
    rows = posterior.encode(named(np.arange(12)))
    assert len(np.unique(rows, axis=0)) == 12
    np.testing.assert_array_equal(posterior.encode(named(order)), rows[order])


def test_unlabelled_units_in_another_order_are_refused(unnamed):
    order = np.r_[1, 0, 2:12]
    with pytest.raises(am.DataError, match=r"unit '0' \(unit 0 of the data\) and 1 more of 12"):
        unnamed.sample({"x": X[order]}, num_samples=2, key=jax.random.key(0))
    labelled = am.units({"x": X[order]}, labels=order, name="unit")
    np.testing.assert_array_equal(unnamed.encode(labelled), unnamed.encode({"x": X})[order])


def test_units_without_a_row_are_refused_whoever_asks(posterior):
    new, changed = am.units({"x": X[:1]}, labels=["stranger"], name="unit"), named(np.array([3, 4]), X + 1)
    key, values = jax.random.key(0), {"z": np.zeros(1)}
    for ask in (
        lambda data: posterior.sample(data, num_samples=2, key=key),
        lambda data: posterior.predict(data, num_samples=2, key=key),
        lambda data: posterior.log_prob(values, data),
        lambda data: posterior.check(data, key=key),
        lambda data: am.compare(posterior, posterior, data, key=key),
    ):
        with pytest.raises(am.DataError, match=r"'stranger' .* not among the 12 .*train with an encoder"):
            ask(new)
    with pytest.raises(am.DataError, match=r"'unit 3' .* and 1 more of 2"):
        posterior.encode(changed)


def test_a_saved_one_answers_with_the_same_bits(posterior, tmp_path):
    posterior.save(tmp_path / "a.amx")
    loaded = am.load(tmp_path / "a.amx", model=model)
    some = named(np.array([5, 0, 11]))
    assert str(loaded) == str(posterior)
    np.testing.assert_array_equal(loaded.encode(some), posterior.encode(some))
    draws = [p.sample(some, num_samples=3, key=jax.random.key(1)) for p in (posterior, loaded)]
    np.testing.assert_array_equal(draws[0].z, draws[1].z)
    with pytest.raises(am.DataError, match="stranger"):
        loaded.encode(am.units({"x": X[:1]}, labels=["stranger"], name="unit"))


def test_training_goes_on_in_any_order_but_with_all_units(posterior):
    order = np.random.default_rng(2).permutation(12)
    on = am.fit(posterior, named(order), key=jax.random.key(1), num_steps=400)
    exact = X.sum(axis=1) / 3
    draws = on.sample(named(order), num_samples=2000, key=jax.random.key(2))
    np.testing.assert_allclose(draws.z.mean("sample"), exact[order], atol=5 * 3**-0.5 / 2000**0.5)
    with pytest.raises(am.FitError, match="11 of the 12 units"):
        am.fit(posterior, named(np.arange(11)), key=jax.random.key(1), num_steps=1)


def test_other_units_than_planned_for_get_rows_too():
    plan = am.amortize(model, {"x": X}, plate="unit", encoder=am.free())
    posterior = am.fit(plan, {"x": X[:5]}, key=jax.random.key(0), num_steps=1)
    assert posterior.encode({"x": X[:5]}).shape == (5, 2)
    assert "free: 5 x 2 own parameters" in str(posterior)


def test_locals_that_would_ignore_the_globals_are_refused():
    def hierarchy(x):
        level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("unit", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(level, 1))
            numpyro.sample("x", dist.Normal(z[:, None] + np.zeros(2), 1.0).to_event(1), obs=x)

    with pytest.raises(am.GuideError, match=r"head=am\.concatenate\(\).*leave out the head"):
        am.amortize(hierarchy, {"x": X}, plate="unit", encoder=am.free(), head=am.concatenate())


def test_nothing_is_held_out(unnamed):
    with pytest.raises(am.FitError, match=r"run\.validation: am\.free\(\)"):
        am.fit(unnamed.plan, {"x": X}, key=jax.random.key(0), run=am.Run(num_steps=1, validation={"x": X}))


def test_print_shows_the_table(unnamed):
    assert "free: 12 x 2 own parameters" in str(unnamed.plan)
    assert "own parameters" not in str(am.amortize(model, {"x": X}, plate="unit"))


def wide(x):
    with numpyro.plate("unit", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("family", [am.coupling(2, width=4), am.mixture(am.full(), 2)], ids=["flow", "mixture"])
def test_any_family_has_rows(family):
    plan = am.amortize(wide, {"x": X}, plate="unit", encoder=am.free(), family=family)
    posterior = am.fit(plan, {"x": X}, key=jax.random.key(0), num_steps=2, batch_size=4)
    draws = posterior.sample({"x": X}, num_samples=3, key=jax.random.key(1))
    terms = posterior.log_prob(draws, {"x": X})
    assert np.all(np.isfinite(terms.unit))
    assert len(np.unique(posterior.encode({"x": X}), axis=0)) == 9


def test_units_given_twice_are_refused():
    data = named(np.arange(12))
    plan = am.amortize(model, data, plate="unit", encoder=am.free())
    with pytest.raises(am.FitError, match="12 units, but only 1 differ in label or values"):
        am.fit(plan, data.take(np.zeros(12, int)), key=jax.random.key(0))
