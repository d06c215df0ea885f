"""What the verbs do with data of other lengths, orders, labels and types than those of training: right, or an error."""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.cli.output import summary
from amortax.joint import values as checked

WEIGHTS = am.Checks(simulated_units=0, gap_units=0, latent_units=0, predictive_draws=0)

SHORT = am.Run(num_steps=20, progress=False)


def ragged(x, y=None):
    slope = numpyro.sample("slope", dist.HalfNormal(1))
    with numpyro.plate("unit", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("item", x.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z + slope * x, 1), obs=y)


def trials(n, y=None):
    with numpyro.plate("unit", n.shape[0]):
        p = numpyro.sample("p", dist.Beta(2, 2))
        numpyro.sample("y", dist.Binomial(total_count=n, probs=p), obs=y)


def rows(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": [rng.standard_normal(n) for n in lengths], "y": [rng.standard_normal(n) for n in lengths]}


@functools.cache
def posterior():
    data = rows([3, 5, 2, 4])
    return am.fit(am.amortize(ragged, data, plate="unit"), data, key=jax.random.key(0), run=SHORT)


@functools.cache
def binomial():
    data = {"n": np.array([20, 10, 5], np.int32), "y": np.array([5, 4, 5], np.int32)}
    return am.fit(am.amortize(trials, data, plate="unit"), data, key=jax.random.key(0), run=SHORT), data


@pytest.mark.parametrize("elsewhere", [False, True])
def test_predictions_of_units_of_many_lengths_come_in_chunks_of_one_shape(elsewhere, monkeypatch):
    monkeypatch.setattr("amortax.chunks.UNIT_BUCKETS", (1, 4))
    data = rows([3, 3, 3, 3, 20, 1, 1])
    at = {"x": rows([1, 1, 1, 1, 2, 9, 2])["x"]} if elsewhere else None
    drawn = posterior().predict(data, num_samples=2, key=jax.random.key(1), at=at)["y"]
    lengths = [1, 1, 1, 1, 2, 9, 2] if elsewhere else [3, 3, 3, 3, 20, 1, 1]
    assert drawn.shape == (2, 7, max(lengths))
    np.testing.assert_array_equal(np.isfinite(drawn).sum(axis=2), [lengths, lengths])


def test_predictions_at_other_covariates_need_no_possible_response():
    fitted, data = binomial()
    drawn = fitted.predict(data, num_samples=50, key=jax.random.key(1), at={"n": np.ones(3, np.int32)})["y"]
    assert set(np.unique(drawn)) == {0, 1}
    with pytest.raises(am.DataError, match="'y' is 5 at unit '0'"):  # a response that was given still must be
        fitted.predict(
            data, num_samples=5, key=jax.random.key(1), at={"n": np.ones(3, np.int32), "y": np.full(3, 5, np.int32)}
        )


def test_predictions_are_for_the_same_units_by_label():
    data = am.units(rows([3, 5, 2]), labels=["a", "b", "c"], name="unit")
    at = am.units(rows([1, 2, 3], seed=1), labels=["d", "c", "z"], name="unit")
    with pytest.raises(am.DataError, match=r"unit 'd' where data has 'a' \(unit 0\)"):
        posterior().predict(data, num_samples=2, key=jax.random.key(1), at=at)
    unnamed = posterior().predict(data, num_samples=2, key=jax.random.key(1), at=rows([1, 2, 3], seed=1))
    assert unnamed["unit"].values.tolist() == ["a", "b", "c"]


def test_densities_follow_labels_and_dim_names_not_places():
    data = am.units(rows([3, 5, 2]), labels=["a", "b", "c"], name="unit")
    draws = posterior().sample(data, num_samples=6, key=jax.random.key(2))
    known = posterior().log_prob(draws, data)
    assert (known.unit.shape, known.shared.shape) == ((6, 3), (6,))
    for other in (draws.isel(unit=[2, 0, 1]), draws.transpose("unit", "sample")):
        again = posterior().log_prob(other, data)
        np.testing.assert_array_equal(again.unit, known.unit)
    one = {name: values[4] for name, values in draws.items()}
    single = posterior().log_prob({name: np.asarray(v) for name, v in one.items()}, data)
    np.testing.assert_allclose(single.unit, known.unit[4], rtol=1e-5)
    with pytest.raises(am.DataError, match="no unit 'c', which data has"):
        posterior().log_prob(draws.isel(unit=[0, 1]), data)
    with pytest.raises(am.DataError, match=r"values\['z'\] has shape \(2,\), expected \(3,\)"):
        posterior().log_prob({"slope": np.float32(1), "z": np.zeros(2)}, data)
    with pytest.raises(am.DataError, match="no site 'slope'"):
        posterior().log_prob({"z": np.zeros(3)}, data)


def test_a_value_outside_its_support_has_density_zero():
    data = rows([3, 5])
    terms = posterior().log_prob({"slope": np.float32(-1), "z": np.zeros(2, np.float32)}, data)
    assert float(terms.shared) == -np.inf
    assert np.all(np.isfinite(terms.unit))


def test_whole_numbers_may_come_as_floats_and_counts_as_numpy_integers(unchecked):
    fitted, data = binomial()
    known = fitted.sample(data, num_samples=4, key=jax.random.key(3))
    floats = {name: x.astype(np.float64) for name, x in data.items()}
    np.testing.assert_array_equal(
        fitted.sample(floats, num_samples=np.int64(4), key=jax.random.key(3))["p"], known["p"]
    )
    with pytest.raises(am.DataError, match=r"data\['n'\] is 20.5 at unit '0'.*whole numbers"):
        fitted.sample(floats | {"n": floats["n"] + 0.5}, num_samples=4, key=jax.random.key(3))
    with pytest.raises(am.DataError, match="num_samples must be a whole number from 1, got 0"):
        fitted.sample(data, num_samples=0, key=jax.random.key(3))


def test_every_verb_that_draws_wants_a_typed_key(unchecked):
    fitted, data = binomial()
    for verb in (fitted.sample, fitted.predict, fitted.check):
        with pytest.raises(am.DataError, match="key must be one typed JAX key"):
            verb(data, num_samples=100, key=0)


def test_other_lengths_compile_no_other_check_of_values(monkeypatch):
    traces, real = [], type(posterior().joint).in_support

    def spy(self, unit, sites):
        traces.append(1)
        return real(self, unit, sites)

    monkeypatch.setattr(checked.Joint, "in_support", spy)
    for longest in (9, 12, 16, 10):
        posterior().encode(rows([longest, 3, 3]))
    assert len(traces) <= 1


def test_training_units_are_known_again_in_any_order_and_padding():
    fitted, data = posterior(), rows([3, 5, 2, 4])
    labelled = am.units(data, name="unit")
    more = am.units({k: v + [np.zeros(40)] for k, v in data.items()}, name="unit")
    for same in (labelled, labelled.take([2, 0, 3, 1]), more.take([0, 1, 2, 3])):
        report = fitted.check(same, key=jax.random.key(4), num_samples=100, checks=WEIGHTS)
        assert "globals_pareto_k" in report.numbers
    changed = {**data, "y": [*data["y"][:3], data["y"][3] + 1]}
    assert (
        "globals_pareto_k" not in fitted.check(changed, key=jax.random.key(4), num_samples=100, checks=WEIGHTS).numbers
    )


def test_a_summary_keeps_units_whose_draws_are_no_numbers():
    draws = posterior().predict(rows([3, 5, 2]), num_samples=3, key=jax.random.key(5))
    draws["y"][:, 1] = np.nan
    table = summary(draws, plate="unit", unit="unit")
    by_unit = {u: [m for label, m in zip(table["unit"], table["mean"], strict=True) if label == u] for u in (0, 1, 2)}
    assert [len(by_unit[u]) for u in (0, 1, 2)] == [3, 5, 2]
    assert np.all(np.isnan(by_unit[1]))
