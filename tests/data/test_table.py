"""Units from tables: every source gives the same units, later tables are read alike, and written ones back."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amortax._errors import ArtifactError, DataError
from amortax.data import TableSchema, from_table, read_like, to_arrow, units, write_table

COLUMNS = {
    "county": ["b", "a", "b", "c", "a", "b"],
    "radon": [1.5, 2.0, None, 4.0, 5.0, 6.0],
    "floor": [0, 1, None, 1, 0, 1],
    "kind": ["w", "v", None, "v", "w", "w"],
    "uranium": [0.5, 0.25, 0.5, None, 0.25, 0.5],
}
ROLES = {
    "unit": "county",
    "columns": ["radon", "floor", "kind"],
    "unit_columns": ["uranium"],
    "categories": {"kind": ["v", "w"]},
}
CSV = """county,radon,floor,kind,uranium
b,1.5,0,w,0.5
a,2.0,1,v,0.25
b,,NA,null,0.5
c,4.0,1,v,NaN
a,5.0,0,w,0.25
b,6.0,1,w,0.5
"""


def table(**changed):
    return pa.table({**COLUMNS, **changed})


def expected():
    return units(
        {
            "radon": [[1.5, None, 6.0], [2.0, 5.0], [4.0]],
            "floor": [[0, None, 1], [1, 0], [1]],
            "kind": [[1, None, 1], [0, 1], [0]],
            "uranium": [0.5, 0.25, None],
        },
        labels=["b", "a", "c"],
        name="county",
    )


def source_of(name, folder):
    if name == "csv":
        (folder / "radon.csv").write_text(CSV)
        return str(folder / "radon.csv")
    if name == "parquet":
        pq.write_table(table(), folder / "radon.parquet", row_group_size=2)
        return folder / "radon.parquet"
    if name == "pandas":
        return pytest.importorskip("pandas").DataFrame(COLUMNS, index=range(10, 16)).astype({"floor": "Int64"})
    if name == "pandas categorical":
        return pytest.importorskip("pandas").DataFrame(COLUMNS).astype({"county": "category", "floor": "Int8"})
    if name == "polars":
        return pytest.importorskip("polars").DataFrame(COLUMNS)
    if name == "polars categorical":
        pl = pytest.importorskip("polars")
        return pl.DataFrame(COLUMNS).with_columns(pl.col("county", "kind").cast(pl.Categorical))
    if name == "numpy":
        floor = np.ma.array([0, 1, 9, 1, 0, 1], mask=[0, 0, 1, 0, 0, 0])
        return COLUMNS | {"radon": np.array(COLUMNS["radon"], float), "floor": floor}
    return {
        "arrow": table(),
        "chunked": pa.concat_tables([table().slice(0, 1), table().slice(1, 3), table().slice(4)]),
        "batch": table().to_batches()[0],
        "reader": pa.RecordBatchReader.from_batches(table().schema, table().to_batches()),
        "dict": COLUMNS,
        "encoded": table(kind=pa.array(COLUMNS["kind"]).dictionary_encode()),
        "large": table(county=pa.array(COLUMNS["county"], pa.large_string())),
        "view": table(county=pa.array(COLUMNS["county"], pa.string_view())),
        "decimal": table(radon=pa.array([1.5, 2, None, 4, 5, 6]).cast(pa.decimal128(9, 2))),
        "narrow": table(floor=pa.array(COLUMNS["floor"], pa.int8()), radon=pa.array(COLUMNS["radon"], pa.float32())),
    }[name]


SOURCES = [
    "csv",
    "parquet",
    "pandas",
    "polars",
    "numpy",
    "arrow",
    "chunked",
    "batch",
    "reader",
    "dict",
    "encoded",
    "large",
    "view",
    "decimal",
    "narrow",
    "pandas categorical",
    "polars categorical",
]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_units(name, tmp_path):
    data, wanted = from_table(source_of(name, tmp_path), **ROLES), expected()
    for group in ("arrays", "masks", "lengths"):
        got, want = getattr(data, group), getattr(wanted, group)
        assert list(got) == list(want)
        for key in want:
            np.testing.assert_array_equal(got[key], want[key], strict=True)
    assert data.labels.tolist() == ["b", "a", "c"]
    assert (data.labels.dtype, data.name, data.categories) == (wanted.labels.dtype, "county", {"kind": ("v", "w")})
    assert data.fingerprint() == from_table(COLUMNS, **ROLES).fingerprint()


def test_units_in_order_of_appearance_rows_in_theirs():
    data = from_table({"u": [7, 3, 7, 3, 7], "x": [1.0, 2.0, 3.0, 4.0, 5.0]}, unit="u", columns=["x"])
    assert data.labels.tolist() == [7, 3]
    assert data.arrays["x"].tolist() == [[1, 3, 5], [2, 4, 4]]
    assert data.masks["x"].tolist() == [[True] * 3, [True, True, False]]
    sorted_rows = from_table({"u": [7, 7, 7, 3, 3], "x": [1.0, 3.0, 5.0, 2.0, 4.0]}, unit="u", columns=["x"])
    assert sorted_rows.fingerprint() == data.fingerprint()


def test_grouping_and_filling_agree_with_a_loop():
    rng = np.random.default_rng(3)
    unit, x = rng.integers(0, 20, 150), rng.normal(size=150).astype(np.float32)
    x[rng.random(150) < 0.5] = np.nan
    data = from_table({"u": unit, "x": x}, unit="u", columns=["x"])
    for row, label in enumerate(dict.fromkeys(unit.tolist())):
        own = x[unit == label]
        real = own[~np.isnan(own)]
        latest = real[0] if len(real) else x[unit == unit[0]][~np.isnan(x[unit == unit[0]])][0]
        filled = [latest := value if not np.isnan(value) else latest for value in own]
        width = data.arrays["x"].shape[1] - len(own)
        assert data.labels[row] == label
        assert data.lengths["x"][row] == len(own)
        assert data.arrays["x"][row].tolist() == [*filled, *[filled[-1]] * width]
        assert data.masks["x"][row].tolist() == [*~np.isnan(own), *[False] * width]


def test_equal_lengths_still_have_lengths_and_a_mask():
    data = from_table({"u": ["a", "b"], "x": [1, 2]}, unit="u", columns=["x"])
    assert data.lengths["x"].tolist() == [1, 1]
    assert data.masks["x"].all()


def test_categories():
    found = from_table(table(), **ROLES | {"categories": {"kind": None}})
    assert found.fingerprint() == from_table(table(), **ROLES).fingerprint()
    turned = from_table(table(), **ROLES | {"categories": {"kind": ("w", "v")}})
    assert turned.arrays["kind"].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert turned.arrays["kind"].dtype == np.int32
    number = {"u": [1, 2], "k": [30, 10], "f": [True, False]}
    coded = from_table(number, unit="u", columns=["k"], unit_columns=["f"], categories={"k": None, "f": None})
    assert coded.categories == {"k": (10, 30), "f": (False, True)}
    assert (coded.arrays["k"].tolist(), coded.arrays["f"].tolist()) == ([[1], [0]], [1, 0])
    nan = from_table({"u": [1, 1], "k": np.array([2.0, np.nan])}, unit="u", columns=["k"], categories={"k": None})
    assert (nan.categories["k"], nan.masks["k"].tolist()) == ((2.0,), [[True, False]])


def test_text_labels_are_not_taken_for_numbers_in_a_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("u,k\n1,01\n2,1\n")
    data = from_table(path, unit="u", columns=["k"], categories={"k": ["1", "01"]})
    assert data.arrays["k"].tolist() == [[1], [0]]


def test_a_later_table_is_read_like_the_first():
    first = from_table(table(), **ROLES | {"categories": {"kind": None}})
    schema = TableSchema.from_json(json.loads(json.dumps(first.schema.to_json())))
    assert schema == first.schema
    assert schema.dtypes == {"radon": "float32", "floor": "int32", "kind": "int32", "uranium": "float32"}
    assert read_like(table(), schema).fingerprint() == first.fingerprint()
    whole = table(floor=[0.0, 1.0, None, 1.0, 0.0, 1.0], radon=[1, 2, None, 4, 5, 6])
    assert read_like(whole, schema).arrays["floor"].dtype == np.int32
    assert read_like(whole, schema).arrays["radon"].dtype == np.float32
    only_w = read_like(table(kind=["w"] * 6), schema)
    assert (only_w.arrays["kind"] == 1).all()
    with pytest.raises(DataError, match="row 2, column 'floor': got 1.5; expected an integer"):
        read_like(table(floor=[0, 1.5, 0, 0, 0, 0]), schema)
    with pytest.raises(DataError, match="row 1, column 'radon': got True; expected float32"):
        read_like(table(radon=[True] * 6), schema)
    with pytest.raises(DataError, match="row 1, column 'kind': 'new' is not one of"):
        read_like(table(kind=["new"] * 6), schema)
    with pytest.raises(ArtifactError, match="expected the entries"):
        TableSchema.from_json({"unit": "county"})


def test_bytes_stay_bytes_in_a_later_table():
    first = from_table({"u": [1], "x": np.array([7], np.uint8)}, unit="u", columns=["x"])
    later = read_like({"u": [1, 1], "x": [0, 255]}, first.schema)
    assert (later.arrays["x"].dtype, later.arrays["x"].tolist()) == (np.uint8, [[0, 255]])
    with pytest.raises(DataError, match="got 256; expected an integer from 0 to 255"):
        read_like({"u": [1], "x": [256]}, first.schema)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_written_tables_are_read_back(suffix, tmp_path):
    path = tmp_path / f"radon.{suffix}"
    path.write_text("old")
    columns = COLUMNS | {
        "kind": pa.array(COLUMNS["kind"]).dictionary_encode(),
        "radon": np.array(COLUMNS["radon"], float),
    }
    write_table(to_arrow(columns), path)
    assert from_table(path, **ROLES).fingerprint() == from_table(table(), **ROLES).fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table({"x": [1]}, path)

    def fail(_table, where):
        where.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table({"x": [2]}, path)
    assert pq.read_table(path)["x"].to_pylist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_to_arrow_and_write_errors(tmp_path):
    arrow = to_arrow({"x": np.array([1.0, np.nan]), "n": np.ma.array([1, 2], mask=[0, 1])})
    assert arrow.to_pydict() == {"x": [1.0, None], "n": [1, None]}
    with pytest.raises(DataError, match=r"column 'x': expected one value per row, got shape \(2, 2\)"):
        to_arrow({"x": np.ones((2, 2))})
    with pytest.raises(DataError, match="different lengths"):
        to_arrow({"x": [1], "y": [1, 2]})
    with pytest.raises(DataError, match="unknown kind of file '.txt'"):
        write_table({"x": [1]}, tmp_path / "t.txt")
    with pytest.raises(DataError, match="no such folder"):
        write_table({"x": [1]}, tmp_path / "none" / "t.csv")


def test_importing_the_floor_is_light():
    code = "import sys, amortax.data; print([m for m in ('pyarrow', 'xarray', 'pandas', 'polars') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
