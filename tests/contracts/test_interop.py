"""Draws keep the names of the model, say nothing where there is nothing, and predictions are those of the model."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import amortax as am
from amortax.intake import as_units, to_batch
from amortax.train.initialise import initialise
from amortax.train.record import Record

LABELS = ["a", "b", "c", "d"]


def nested(dose, effect=None):
    """A ragged plate inside the unit, a vector of globals, and a deterministic site along both plates."""
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("unit", dose.shape[0], dim=-2):
        level = numpyro.sample("level", dist.Normal(slope[0], 1))
        with numpyro.plate("visit", dose.shape[1], dim=-1):
            mean = numpyro.deterministic("mean", level + slope[1] * dose)
            numpyro.sample("effect", dist.Normal(mean, 0.5), obs=effect)


def ragged_data(lengths=(3, 1, 5, 2), seed=0, labels=LABELS):
    rng = np.random.default_rng(seed)
    dose = [rng.standard_normal(n).astype(np.float32) for n in lengths]
    effect = [(1 + d + 0.5 * rng.standard_normal(len(d))).astype(np.float32) for d in dose]
    effect[2][1] = np.nan  # one cell is missing
    return am.units({"dose": dose, "effect": effect}, labels=labels, name="unit")


def untrained(model, data, **recipes):
    plan = am.amortize(model, data, plate="unit", **recipes)
    joint, guide = initialise(plan, to_batch(as_units(data, model, "unit", _axes(plan))), jax.random.key(0))
    return am.Posterior(plan, joint, guide, Record(4, 0, 4, 0.0, "num_steps", 0), None)


def _axes(plan):
    return {a.name: a.axis for a in plan.structure.arguments if a.axis} or None


@functools.cache
def answering():
    data = ragged_data()
    return untrained(nested, data, encoder=am.deep_set(width=8, depth=1), head=am.concatenate())


def test_draws_have_the_names_and_labels_of_the_model():
    draws = answering().sample(ragged_data(), num_samples=7, key=jax.random.key(1))
    assert list(draws.data_vars) == ["slope", "level", "mean"]  # in the model's order
    assert draws["slope"].dims == ("sample", "slope_dim_0")
    assert draws["level"].dims == ("sample", "unit")
    assert draws["mean"].dims == ("sample", "unit", "visit")
    assert dict(draws.sizes) == {"sample": 7, "slope_dim_0": 2, "unit": 4, "visit": 5}
    assert draws["unit"].values.tolist() == LABELS
    assert draws["sample"].values.tolist() == list(range(7))
    assert draws.attrs == {"model": "nested"}


@pytest.mark.parametrize("verb", ["sample", "predict"])
def test_places_beyond_the_own_elements_of_a_unit_are_nan_and_no_others(verb):
    lengths = np.array([3, 1, 5, 2])
    draws = getattr(answering(), verb)(ragged_data(), num_samples=6, key=jax.random.key(1))
    values = draws["mean" if verb == "sample" else "effect"].values
    assert values.shape == (6, 4, 5)
    inside = np.arange(5) < lengths[:, None]
    np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(~inside, values.shape))


def test_deterministic_sites_follow_the_draws_beside_them():
    data = ragged_data()
    draws = answering().sample(data, num_samples=5, key=jax.random.key(2))
    expected = draws["level"].values[..., None] + draws["slope"].values[:, 1, None, None] * data.arrays["dose"]
    inside = ~np.isnan(draws["mean"].values)
    np.testing.assert_allclose(draws["mean"].values[inside], expected[inside], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_arviz_reads_the_tree_and_summarises_every_unit():
    arviz = pytest.importorskip("arviz")
    draws = answering().sample(ragged_data(), num_samples=50, key=jax.random.key(3))[["slope", "level"]]
    tree = am.to_datatree(draws)
    group = tree["posterior"].to_dataset()
    assert group["level"].dims == ("chain", "draw", "unit")
    assert (group.sizes["chain"], group.sizes["draw"]) == (1, 50)
    assert group["unit"].values.tolist() == LABELS
    np.testing.assert_array_equal(group["level"].values[0], draws["level"].values)
    table = arviz.summary(group, kind="stats")
    assert list(table.index) == ["slope[0]", "slope[1]", *(f"level[{label}]" for label in LABELS)]
    found = table["mean"].to_numpy(float)[2:]
    np.testing.assert_allclose(found, draws["level"].values.mean(axis=0), atol=0.006)  # it rounds


# Predictions


def test_at_new_covariates_of_other_lengths():
    at = {"dose": [np.zeros(n, np.float32) for n in (1, 9, 2, 2)]}
    drawn = answering().predict(ragged_data(), num_samples=6, key=jax.random.key(4), at=at)
    assert drawn["effect"].dims == ("sample", "unit", "visit")
    assert drawn["effect"].shape == (6, 4, 9)
    assert drawn["unit"].values.tolist() == LABELS  # they are the same units
    np.testing.assert_array_equal(np.isfinite(drawn["effect"].values[0]).sum(axis=1), [1, 9, 2, 2])


def test_at_may_be_units_and_their_responses_do_not_count():
    at = ragged_data(lengths=(2, 2, 3, 4), seed=5)
    alone = am.units({"dose": [d[:n] for d, n in zip(at.arrays["dose"], (2, 2, 3, 4), strict=True)]}, labels=LABELS)
    key = jax.random.key(4)
    first, second = (answering().predict(ragged_data(), num_samples=3, key=key, at=x) for x in (at, alone))
    np.testing.assert_array_equal(first["effect"].values, second["effect"].values)
    assert second["unit"].values.tolist() == LABELS


def test_the_wrong_number_of_units_is_an_error():
    at = {"dose": [np.zeros(2, np.float32)] * 3}
    with pytest.raises(am.DataError, match=r"at has 3 units but data has 4; give the same units in the same order"):
        answering().predict(ragged_data(), num_samples=2, key=jax.random.key(0), at=at)


def test_missing_cells_are_imputed():
    data = ragged_data()
    drawn = answering().predict(data, num_samples=200, key=jax.random.key(6))["effect"].values
    assert not data.masks["effect"][2, 1]
    cell = drawn[:, 2, 1]
    assert np.all(np.isfinite(cell))
    assert 0.4 < cell.std() < 3


NOISE = 0.5


def linear(row, x):
    """z ~ N(0, 1), x ~ N(row z, 0.5²) with the units last; beside a global the untrained Newton frame is exact."""
    numpyro.sample("unused", dist.Normal(0, 1))
    with numpyro.plate("unit", x.shape[1], dim=-1):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("item", x.shape[0], dim=-2):
            numpyro.sample("x", dist.Normal(row * z, NOISE), obs=x)


@functools.cache
def exact():
    """(posterior, data) of `linear`, with the local family N(0, 1) in the Newton frame."""
    rng = np.random.default_rng(8)
    row = (1 + rng.random((3, 6))).astype(np.float32)
    data = {"row": row, "x": (row * rng.standard_normal(6) + NOISE * rng.standard_normal((3, 6))).astype(np.float32)}
    posterior = untrained(linear, data)
    trained = posterior.guide.local.family
    family = eqx.combine(jax.tree.map(jnp.zeros_like, eqx.filter(trained, eqx.is_array)), trained)
    return eqx.tree_at(lambda p: p.guide.local.family, posterior, family), data


def test_predictions_have_the_exact_moments():
    posterior, data = exact()
    count = 4000
    at = {"row": np.array([[3.0] * 6, [0.0] * 6, [-1.0, 1.0, 0.5, 2.0, -2.0, 0.1]], np.float32)}
    precision = 1 + (data["row"].astype(np.float64) ** 2).sum(axis=0) / NOISE**2
    mean = (data["row"] * data["x"]).sum(axis=0) / NOISE**2 / precision
    for where, row in ((None, data["row"]), (at, at["row"])):
        drawn = posterior.predict(data, num_samples=count, key=jax.random.key(9), at=where)["x"]
        values = drawn.transpose("sample", "item", "unit").values.astype(np.float64)
        expected, variance = row * mean, row.astype(np.float64) ** 2 / precision + NOISE**2
        assert np.all(np.abs(values.mean(axis=0) - expected) < 5 * np.sqrt(variance / count))
        assert np.all(np.abs(values.var(axis=0) / variance - 1) < 5 * math.sqrt(2 / count))


def test_units_in_another_order_are_refused():
    data = ragged_data()
    with pytest.raises(am.DataError, match="the same units in the same order"):
        answering().predict(data, num_samples=2, key=jax.random.key(0), at=data.take([1, 0, 2, 3]))
