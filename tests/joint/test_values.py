"""Impossible data is refused before training, by unit, place and value: at `amortize`, and as new data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from amortax import DataError, ModelError, amortize, units
from amortax.intake import conform, to_batch
from amortax.joint.joint import Joint
from amortax.joint.probe import initial_params
from amortax.joint.read import read

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=5).astype(np.float32)
RAGGED = [RNG.normal(size=n).astype(np.float32) for n in (1, 4, 2, 3)]
NAN = np.float32(np.nan)


def joint_of(model, data):
    found = units(data, name="u")
    batch = to_batch(found)
    structure = read(model, batch, found.axes, "u")
    return Joint(model, structure, initial_params(model, structure, batch, jax.random.key(0)))


def refusal(model, data, error=DataError, plate="u"):
    with pytest.raises(error) as caught:
        amortize(model, data, plate=plate)
    return str(caught.value)


def simple(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("u", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z + b * x, 1.0), obs=y)


def ragged(x, y):
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z + x, 1.0), obs=y)


def observing(fn):
    def model(y):
        with numpyro.plate("u", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", fn(z), obs=y)

    return model


def binomial(n, y):
    with numpyro.plate("u", y.shape[0]):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        numpyro.sample("y", dist.Binomial(n, probs=p), obs=y)


def indexed(k, y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([3]))
    with numpyro.plate("u", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("e", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(z + a[k], 1.0), obs=y)


def three_classes(z):
    return dist.Categorical(logits=z[:, None] * jnp.arange(3.0))


COUNTS = observing(lambda z: dist.Poisson(jnp.exp(z)))
SHARES = observing(lambda z: dist.Beta(jnp.exp(z), 1.0))
ROWS = [np.arange(n) % 3 for n in (1, 4, 2)]
WRONG = [*ROWS[:2], np.array([0, 3])]
WITH_GAP = [*RAGGED[:2], np.array([1.0, NAN], np.float32), RAGGED[3]]
CASES = [
    ("scalar", simple, {"x": 1.0, "y": FLAT}, ["data['x'] is a single value", "functools.partial(model, x=...)"]),
    ("one_unit", simple, {"x": FLAT[:1], "y": FLAT[:1]}, ["data has 1 unit of plate 'u' and", "numpyro.infer.NUTS"]),
    ("no_units", simple, {"x": FLAT[:0], "y": FLAT[:0]}, ["data['x'] has zero units"]),
    ("no_arguments", simple, {}, ["at least one argument, got an empty dict"]),
    ("sizes", simple, {"x": FLAT, "y": FLAT[:3]}, ["data['x'] has 5 units but data['y'] has 3"]),
    (
        "count",
        COUNTS,
        {"y": np.array([1, 2, -1, 4])},
        ["site 'y' is -1 at u '2'", "IntegerNonnegative", "mark it missing"],
    ),
    ("half_a_count", COUNTS, {"y": np.array([1.0, 0.5])}, ["site 'y' is 0.5 at u '1', outside its support"]),
    (
        "share",
        SHARES,
        {"y": np.array([0.1, 1.5])},
        ["site 'y' is 1.5 at u '1'", "UnitInterval", "change the distribution"],
    ),
    ("class", observing(three_classes), {"y": np.array([0, 2, 3])}, ["site 'y' is 3 at u '2'", "upper_bound=2"]),
    (
        "total",
        binomial,
        {"n": np.array([3, 4]), "y": np.array([3, 5])},
        ["site 'y' is 5 at u '1', outside its support"],
    ),
    ("index", indexed, {"k": WRONG, "y": ROWS}, ["data['k'] is 3 at u '2', element 1", "length 3: expected 0 to 2"]),
    ("negative_index", indexed, {"k": [-r for r in ROWS], "y": ROWS}, ["data['k'] is -1 at u '1', element 1"]),
    (
        "covariate",
        simple,
        {"x": np.where(FLAT > 0, NAN, FLAT), "y": FLAT},
        ["data['x'] is missing at u '0' and 2 more places", "it is a covariate", "impute 'x'"],
    ),
    ("ragged_covariate", ragged, {"x": WITH_GAP, "y": RAGGED}, ["data['x'] is missing at u '2', element 1,"]),
    (
        "lengths",
        ragged,
        {"x": RAGGED, "y": RAGGED[::-1]},
        ["data['x'] and data['y'] run along one axis", "1 and 3 at u number 0", "NaN where"],
    ),
]


@pytest.mark.parametrize(("model", "data", "fragments"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_is_refused_by_place_and_value(model, data, fragments):
    message = refusal(model, data)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_values_under_a_mask_are_not_looked_at():
    data = units({"k": ROWS, "y": [r + 0.5 for r in ROWS]}, name="u")
    data.arrays["k"][0, 1:] = 99
    assert conform(data, joint_of(indexed, {"k": ROWS, "y": ROWS_FLOAT})) is not None
    missing = units({"y": np.ma.array([1, 2, 3], mask=[False, True, False])}, name="u")
    missing.arrays["y"][1] = -7
    conform(missing, joint_of(COUNTS, missing))


ROWS_FLOAT = [r.astype(np.float32) for r in ROWS]


def test_the_first_fault_is_found_beyond_the_first_chunk():
    counts = np.ones(5000, np.int32)
    counts[4321] = -3
    with pytest.raises(DataError, match="site 'y' is -3 at u '4321'"):
        conform({"y": counts}, joint_of(COUNTS, {"y": np.ones(3, np.int32)}))


TABLE = RNG.normal(size=(4, 3)).astype(np.float32)
TRAINED = joint_of(ragged, {"x": TABLE, "y": TABLE})
CODED = joint_of(indexed, {"k": ROWS, "y": ROWS_FLOAT})
NEW = [
    (TRAINED, {"x": TABLE}, "new data for model 'ragged' has no ['y']; expected exactly ['x', 'y']"),
    (TRAINED, {"x": TABLE, "y": TABLE, "w": TABLE}, "has unknown ['w']; expected exactly ['x', 'y']"),
    (TRAINED, {"x": TABLE, "Y": TABLE}, "has no ['y'] and unknown ['Y']"),
    (
        TRAINED,
        {"x": TABLE[:, :2], "y": TABLE},
        "data['x'] has shape (2,) per u, but the posterior was trained for (3,)",
    ),
    (TRAINED, {"x": TABLE[:, 0], "y": TABLE}, "data['x'] has shape () per u, but the posterior was trained for (3,)"),
    (TRAINED, {"x": [r[:2] for r in TABLE], "y": TABLE}, "data['x'] has shape (2,) per u"),
    (
        TRAINED,
        {"x": TABLE, "y": [TABLE[0], TABLE[1, :2]] * 2},
        "data['y'] is ragged, but the posterior was trained on (3,)",
    ),
    (TRAINED, {"x": TABLE, "y": np.where(TABLE > 1, NAN, TABLE)}, "but nothing was missing there in training"),
    (TRAINED, {"x": np.where(TABLE > 1, NAN, TABLE), "y": TABLE}, "it is a covariate"),
    (
        CODED,
        {"k": [r + np.float32(0.5) for r in ROWS_FLOAT], "y": ROWS_FLOAT},
        "but the posterior was trained on whole numbers (int32)",
    ),
    (CODED, {"k": WRONG, "y": ROWS_FLOAT}, "data['k'] is 3 at u '2', element 1"),
    (CODED, {"k": ROWS, "y": ROWS_FLOAT[::-1]}, "both run along plate 'e' but differ in length at u '0': 1 and 2"),
    (CODED, {"k": np.ma.masked_equal(TABLE > 0, 1).astype(int), "y": TABLE}, "data['k'] is missing at u"),
]


@pytest.mark.parametrize(("joint", "data", "reason"), NEW)
def test_new_data_that_does_not_fit_is_refused_by_argument_expected_and_got(joint, data, reason):
    with pytest.raises(DataError) as caught:
        conform(data, joint)
    assert reason in str(caught.value)


def test_new_data_may_have_other_units_lengths_and_types_that_convert():
    found = conform({"k": np.ones((2, 9), np.int64), "y": np.ones((2, 9), np.int32)}, CODED)
    assert len(found) == 2
    assert {name: x.dtype.name for name, x in found.arrays.items()} == {"k": "int32", "y": "float32"}
    assert found.lengths["k"].tolist() == found.lengths["y"].tolist() == [9, 9]
    assert found.masks["y"].shape == (2, 9)
    assert bool(found.masks["y"].all())


def test_labels_name_the_unit_at_fault():
    data = units({"y": np.array([1, -2])}, labels=["ann", "bob"], name="patient")

    def model(y):
        with numpyro.plate("patient", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)

    assert "site 'y' is -2 at patient 'bob'" in refusal(model, data, plate="patient")


def test_square_arrays_whose_unit_axis_is_not_the_first_ask_for_it():
    def model(x, y):
        with numpyro.plate("u", x.shape[1], dim=-1), numpyro.plate("e", x.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal(0.0, 1.0)) * x, 1.0), obs=y)

    square = TABLE[:3]
    message = refusal(model, {"x": square, "y": square}, (DataError, ModelError))
    assert "data['x'] has 2 axes of the size of plate 'u' (3)" in message
    assert "axes={'x': 1, ...}" in message
    assert amortize(model, units({"x": square, "y": square}, axes={"x": 1, "y": 1}, name="u"), plate="u")
