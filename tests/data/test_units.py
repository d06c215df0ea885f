"""Units from arrays: filling, masks, types, places named in errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr

from amortax._errors import DataError
from amortax.data import Units, units


def same(first: Units, second: Units) -> bool:
    return first.fingerprint() == second.fingerprint()


def check(array, expected, dtype):
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(expected, dtype), strict=True)


def test_dense_arrays_keep_values_and_have_no_masks():
    data = units({"x": np.arange(6.0).reshape(3, 2), "n": np.array([1, 2, 3]), "flag": [True, False, True]})
    check(data.arrays["x"], [[0, 1], [2, 3], [4, 5]], np.float32)
    check(data.arrays["n"], [1, 2, 3], np.int32)
    check(data.arrays["flag"], [True, False, True], np.bool_)
    assert data.masks == {}
    assert data.lengths == {}
    check(data.labels, [0, 1, 2], np.int64)
    assert (len(data), data.name, data.axes, data.categories, data.schema) == (3, "unit", {}, {}, None)
    assert units(data) is data


def test_unsigned_bytes_stay_and_the_users_array_is_not_shared():
    pixels = np.array([[1, 255]], np.uint8)
    data = units({"pixels": pixels})
    pixels[:] = 0
    check(data.arrays["pixels"], [[1, 255]], np.uint8)


def test_ragged_lists_repeat_the_last_row_and_empty_units_take_the_first():
    data = units({"x": [[1.0, 2.0], [], [3.0, 4.0, 5.0]], "y": [np.ones((1, 2)), np.full((2, 2), 2.0), []]})
    check(data.arrays["x"], [[1, 2, 2], [1, 1, 1], [3, 4, 5]], np.float32)
    check(data.masks["x"], [[1, 1, 0], [0, 0, 0], [1, 1, 1]], np.bool_)
    assert data.lengths["x"].tolist() == [2, 0, 3]
    check(data.arrays["y"], [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[1, 1], [1, 1]]], np.float32)
    check(data.masks["y"], [[[1, 1], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]], np.bool_)


def test_elements_of_a_unit_may_be_ragged_too():
    data = units({"x": [[[1.0], [2.0, 3.0]], [], [[4.0]]]})
    assert data.lengths["x"].tolist() == [2, 0, 1]
    check(data.masks["x"], [[[1, 0], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]], np.bool_)
    assert data.arrays["x"][data.masks["x"]].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert np.isin(data.arrays["x"], [1.0, 2.0, 3.0, 4.0]).all()
    rows = units({"x": [[np.ones((2, 3)), []], [np.ones((1, 3))]]})
    assert rows.arrays["x"].shape == (2, 2, 2, 3)
    assert rows.masks["x"][..., 0].tolist() == [[[True, True], [False, False]], [[True, False], [False, False]]]


def test_lists_of_equal_length_are_ragged_all_the_same():
    data = units({"x": [[1, 2], [3, 4]]})
    check(data.arrays["x"], [[1, 2], [3, 4]], np.int32)
    assert data.masks["x"].all()
    assert data.lengths["x"].tolist() == [2, 2]


def test_missing_takes_previous_then_next_then_first_of_the_argument():
    nan = np.nan
    data = units({"x": np.array([[nan, 7.0, nan, 8.0], [nan, nan, nan, nan], [nan, nan, 9.0, nan]])})
    check(data.arrays["x"], [[7, 7, 7, 8], [7, 7, 7, 7], [9, 9, 9, 9]], np.float32)
    check(data.masks["x"], [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], np.bool_)
    one_each = units({"x": np.array([nan, 5.0, nan, 6.0])})
    check(one_each.arrays["x"], [5, 5, 5, 6], np.float32)


def test_missing_rows_of_vectors_are_filled_by_component():
    nan = np.nan
    rows = [np.array([[1.0, nan], [nan, 20.0], [3.0, nan]]), np.array([[nan, 5.0]]), np.full((2, 2), nan)]
    data = units({"x": rows})
    expected = [[[1, 20], [1, 20], [3, 20]], [[5, 5], [5, 5], [5, 5]], [[1, 20], [1, 20], [1, 20]]]
    check(data.arrays["x"], expected, np.float32)
    assert data.masks["x"].sum() == 4


@pytest.mark.parametrize(
    "column",
    [
        [4, None, 6],
        np.ma.array([4, 99, 6], mask=[False, True, False]),
        np.array([4, None, 6], dtype=object),
        pa.array([4, None, 6]),
        pa.chunked_array([[4], [None, 6]]),
        pa.array([4, None, 6]).dictionary_encode(),
    ],
)
def test_missing_integers_stay_integers(column):
    data = units({"n": column})
    check(data.arrays["n"], [4, 4, 6], np.int32)
    check(data.masks["n"], [1, 0, 1], np.bool_)


@pytest.mark.parametrize("column", [[True, None], np.ma.array([True, True], mask=[0, 1]), pa.array([True, None])])
def test_missing_booleans_stay_booleans(column):
    data = units({"flag": column})
    check(data.arrays["flag"], [True, True], np.bool_)
    check(data.masks["flag"], [True, False], np.bool_)


def test_missing_in_pandas_and_polars_series():
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    for dtype in ("Int64", "Int8", "object", "int64[pyarrow]"):
        data = units({"n": pd.Series([4, pd.NA, 6], dtype=dtype, index=[7, 8, 9])})
        check(data.arrays["n"], [4, 4, 6], np.int32)
        check(data.masks["n"], [1, 0, 1], np.bool_)
    check(units({"b": pd.Series([True, pd.NA], dtype="boolean")}).arrays["b"], [True, True], np.bool_)
    check(units({"n": pl.Series([4, None, 6])}).masks["n"], [1, 0, 1], np.bool_)
    ragged = units({"x": [[1.0], [2.0, 3.0]]})
    assert same(ragged, units({"x": pl.Series([[1.0], [2.0, 3.0]])}))
    assert same(ragged, units({"x": pd.Series([[1.0], [2.0, 3.0]])}))
    assert same(ragged, units({"x": pa.array([[1.0], [2.0, 3.0]])}))
    assert same(units({"x": np.eye(2)}), units({"x": pd.DataFrame(np.eye(2))}))


def test_lists_with_none_nested_arrays_and_jax_arrays():
    data = units({"n": [[1, None], [None], [3]], "x": [jnp.ones(2), np.ma.array([2.0], mask=[True]), (5.0,)]})
    check(data.arrays["n"], [[1, 1], [1, 1], [3, 3]], np.int32)
    check(data.masks["n"], [[1, 0], [0, 0], [1, 0]], np.bool_)
    check(data.arrays["x"], [[1, 1], [1, 1], [5, 5]], np.float32)
    check(units({"x": jnp.ones((2, 1), jnp.bfloat16)}).arrays["x"], [[1], [1]], np.float32)


def test_what_stands_under_the_mask_has_no_influence():
    hidden = [np.ma.array([1.0, value, 3.0], mask=[0, 1, 0]) for value in (np.nan, np.inf, -7.0, 1e300)]
    assert len({units({"x": column}).fingerprint() for column in hidden}) == 1
    assert np.isfinite(units({"x": hidden[0]}).arrays["x"]).all()
    assert same(units({"n": np.ma.array([1, 2**40], mask=[0, 1])}), units({"n": [1, None]}))


def test_floats_are_double_where_jax_is():
    with jax.enable_x64(True):
        check(units({"x": [1e300]}).arrays["x"], [1e300], np.float64)


def test_axes_move_arrays_and_are_remembered():
    x = np.arange(6.0).reshape(2, 3)
    data = units({"x": x, "y": np.zeros((3, 2)), "z": [[1.0], [2.0], [3.0]]}, axes={"x": 1, "y": 0, "z": -1})
    check(data.arrays["x"], x.T, np.float32)
    assert data.arrays["x"].flags.c_contiguous
    assert data.axes == {"x": 1, "z": 1}
    check(data.arrays["z"], [[1], [2], [3]], np.float32)
    assert same(units({"x": x}, axes={"x": -1}), units({"x": x}, axes={"x": 1}))
    with pytest.raises(DataError, match=r"data\['x'\], unit 2, position \[1\]: got inf"):
        units({"x": np.where(x == 5, np.inf, x)}, axes={"x": 1})


def test_xarray_dataset():
    counties = xr.Dataset(
        {"x": (("house", "county"), [[1.0, np.nan], [3.0, 4.0]]), "n": (("county",), [1, 2])},
        coords={"county": ["a", "b"], "house": [10, 20], "note": ("county", ["u", "v"])},
    )
    data = units(counties, name="county")
    x = np.array([[1.0, 3.0], [np.nan, 4.0]])
    assert same(data, units({"n": [1, 2], "x": x}, labels=["a", "b"], name="county"))
    assert data.labels.tolist() == ["a", "b"]
    check(data.arrays["x"], [[1, 3], [4, 4]], np.float32)
    assert units(counties, name="county", axes={"x": 1}).axes == {"x": 1}
    with pytest.raises(DataError, match=r"no dimension 'state'.*'county'"):
        units(counties, name="state")
    with pytest.raises(DataError, match=r"data\['k'\].*without 'county'.*functools.partial"):
        units(counties.assign(k=3.0), name="county")


def test_a_list_of_data_sets():
    one, two = {"x": np.ones((2, 3)), "y": 1.0}, {"x": np.zeros((2, 3)), "y": 2.0}
    data = units([one, two])
    assert data.arrays["x"].shape == (2, 2, 3)
    assert (data.lengths, data.masks) == ({}, {})
    assert same(units([one]), units({"x": one["x"][None], "y": [1.0]}))
    assert units([one, two | {"x": np.zeros((1, 3))}]).lengths["x"].tolist() == [2, 1]
    with pytest.raises(DataError, match=r"data set 1: expected the arguments \['x', 'y'\]"):
        units([one, {"x": 1.0}])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({}, {}, "empty dict"),
        (np.ones(3), {}, "expected a dict.*ndarray.*from_table"),
        ([1.0, 2.0], {}, "expected a dict.*list of float"),
        ({3: [1.0]}, {}, "names of the model's arguments.*3"),
        ({"x": np.zeros((0, 2))}, {}, r"data\['x'\] has zero units"),
        ({"x": []}, {}, r"data\['x'\] has zero units"),
        (
            {"x": np.ones(400), "y": np.ones(380)},
            {},
            r"\['x'\] has 400 units but data\['y'\] has 380.*equal leading size",
        ),
        ({"k": 3.0}, {}, r"data\['k'\] is a single value.*functools.partial"),
        ({"x": [1.0]}, {"axes": {"z": 1}}, "axes: 'z' is not an argument.*'x'"),
        ({"x": [1.0]}, {"axes": {"x": 1}}, r"axes\['x'\] is 1 but data\['x'\] has 1 axes"),
        ({"x": [[1.0]]}, {"axes": {"x": 2}}, r"axes\['x'\] is 2 but data\['x'\] has 2 axes"),
        ({"x": [1.0, 2.0]}, {"labels": ["a"]}, r"expected 2 labels.*\(1,\)"),
        ({"x": [1.0, 2.0]}, {"labels": ["a", "a"]}, "'a' names 2 units"),
        ({"x": [1.0, 2.0]}, {"labels": ["a", None]}, "unit 1 has no label"),
        ({"x": [1.0, 2.0]}, {"labels": [1.0, np.nan]}, "unit 1 has no label"),
        ({"x": [1.0, 2.0]}, {"labels": ["a", object()]}, "expected strings, numbers or dates"),
        ({"x": [1.0, np.inf]}, {"labels": ["a", "b"]}, r"data\['x'\], unit 'b': got inf.*finite"),
        ({"x": [[1.0], [], [2.0, -np.inf]]}, {}, r"data\['x'\], unit 2, position \[1\]: got -inf"),
        ({"x": np.array([[0.0, 1e39]])}, {}, r"unit 0, position \[1\]: got 1e\+39; too large for float32"),
        ({"n": [1, 2**31]}, {}, "unit 1: got 2147483648.*-2147483648 to 2147483647"),
        ({"n": [[1], [-(2**31) - 1]]}, {}, r"unit 1, position \[0\]: got -2147483649"),
        ({"n": [1, 2**70]}, {}, "at most 64 bits"),
        ({"n": [1, 2**63]}, {}, "at most 64 bits"),
        ({"k": {"a": 1}}, {}, r"data\['k'\]: expected a number, got {'a': 1} \(dict\)"),
        ({"s": ["u", "v"]}, {}, r"data\['s'\], unit 0: expected a number, got 'u'.*categories="),
        ({"s": [[1.0], ["v"]]}, {}, "unit 1, position .0.: expected a number, got 'v'.*categories="),
        ({"s": [1.0, 2.0, "v", 3.0]}, {}, "unit 2: expected a number, got 'v'.*categories="),
        ({"s": [1.0, None, "v"]}, {}, "unit 2: expected a number, got 'v'.*categories="),
        ({"s": pa.array([None, "v"])}, {}, "unit 1: expected a number, got 'v'.*categories="),
        ({"t": np.array(["2020-01-01"], "datetime64[D]")}, {}, "expected a number.*datetime64"),
        ({"z": np.array([1j])}, {}, "real number.*complex128.*two arguments"),
        ({"z": [None, 1j]}, {}, "unit 1: expected a real number.*complex"),
        ({"x": [[1.0], 2.0]}, {}, "unit 1: expected an array, as other units have, got 2.0"),
        ({"x": [np.ones((1, 2)), np.ones((1, 3))]}, {}, r"unit 1: expected shape \(any, \*\(2,\)\), got \(1, 3\)"),
        (
            {"x": [[np.ones((2, 3)), np.ones((1, 2))], [np.ones((1, 3))]]},
            {},
            r"unit 0, position \[1\]: expected shape \(any, \*\(3,\)\), got \(1, 2\)",
        ),
        ({"x": [[[[1.0], [2.0, 3.0]]]]}, {}, "unit 0: expected an array of numbers"),
    ],
)
def test_errors_name_the_place_and_the_next_step(data, options, message):
    with pytest.raises(DataError, match=message):
        units(data, **options)
