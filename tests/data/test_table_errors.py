"""Every error of a table names file, row or line, column and value, and says what to do."""

import numpy as np
import pyarrow as pa
import pytest

from amortax._errors import DataError
from amortax.data import from_table

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


@pytest.mark.parametrize(
    ("changed", "roles", "message"),
    [
        ({"radon": [1.0, np.inf, 1.0, 1.0, 1.0, 1.0]}, {}, "table, row 2, column 'radon': got inf"),
        ({"radon": [1.0, 1.0, 1e39, 1.0, 1.0, 1.0]}, {}, r"row 3, column 'radon': got 1e\+39; too large for float32"),
        ({"floor": [0, 2**31, 0, 0, 0, 0]}, {}, "row 2, column 'floor': got 2147483648"),
        ({"radon": ["1", None, "abc", "4", "x", "6"]}, {}, "row 3, column 'radon': expected a number, got 'abc'"),
        ({"radon": [None, *"12345"]}, {}, "row 2, column 'radon': expected a number, got the text '1'"),
        ({"radon": pa.array([[1.0]] * 6)}, {}, r"row 1, column 'radon': expected a number, got \[1.0\] \(list"),
        ({"radon": pa.array([None, *[0] * 5], pa.date32())}, {}, "row 2, column 'radon': expected a number.*date32"),
        (
            {"kind": ["v", "w", "v", "z", "v", "v"]},
            {},
            r"row 4, column 'kind': 'z' is not one of the 2 labels \('v', 'w'\)",
        ),
        ({"county": ["a", "a", None, "b", "b", "b"]}, {}, "row 3, column 'county': no unit"),
        ({"county": pa.array([[1]] * 6)}, {}, r"row 1, column 'county': got list.*expected text or integers as labels"),
        (
            {"uranium": [0.5, 0.25, 0.5, None, 0.25, 0.75]},
            {},
            "column 'uranium': unit 'b' has 0.5 in row 1 and 0.75 in row 6; a unit column",
        ),
        ({"uranium": [0.5, 0.25, None, None, 0.25, 0.5]}, {}, "unit 'b' has 0.5 in row 1 and None in row 3"),
        (
            {},
            {"columns": ["radom"], "categories": {}},
            r"table: no column 'radom'; it has \['county', 'floor', 'kind', 'radon', 'uranium'\]",
        ),
        ({"county": pa.array([b"x"] * 6)}, {}, "row 1, column 'county': can't name units by binary values.*strings"),
        ({}, {"unit": "state"}, "no column 'state'"),
        ({}, {"columns": "radon"}, r"columns: expected a list of column names, got the text 'radon'"),
        ({}, {"columns": ["radon", "radon", "kind"]}, "'radon' is named twice"),
        ({}, {"columns": ["kind", "uranium"]}, "'uranium' is named twice"),
        ({}, {"columns": [], "unit_columns": [], "categories": {}}, "at least one column"),
        ({}, {"categories": {"radium": None}}, "categories: 'radium' is none of the columns"),
        ({}, {"categories": {"kind": ["v", "v"]}}, "'kind'.*twice"),
        ({}, {"categories": {"kind": ["v", None]}}, "'kind'.*text or numbers"),
    ],
)
def test_errors_name_the_cell(changed, roles, message):
    with pytest.raises(DataError, match=message):
        from_table(table(**changed), **ROLES | roles)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("b,1.5", "b,abc", "radon.csv, line 2, column 'radon': expected a number, got 'abc'"),
        ("c,4.0", "c,abc", "radon.csv, line 5, column 'radon': expected a number, got 'abc'"),
        ("b,1.5,0,w", 'b,1.5,0,"w\nw"', r"line 2, column 'kind': 'w\\nw' is not one of"),
        ("c,4.0", ",4.0", "radon.csv, line 5, column 'county': no unit"),
        ("b,6.0", "b,inf", "radon.csv, line 7, column 'radon': got inf"),
        ("w,0.5\na", "w,0.75\na", "unit 'b' has 0.75 in line 2 and 0.5 in line 4"),
        ("county,radon", "county,rado", r"radon.csv: no column 'radon'; it has \['county', 'floor', 'kind', 'rado',"),
        ("radon,floor", "floor,floor", "no column 'radon'"),
        ("radon,floor,kind", "radon,floor,radon", "2 columns are called 'radon'"),
        ("c,4.0,1", "c,4.0,1,1", "radon.csv: can't be read.*Expected 5 columns, got 6"),
        (CSV, "", "radon.csv: the file is empty"),
        (CSV, CSV.splitlines()[0], "radon.csv: the table has no rows"),
    ],
)
def test_errors_in_a_csv_name_file_and_line(old, new, message, tmp_path):
    assert old in CSV
    path = tmp_path / "radon.csv"
    path.write_text(CSV.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        from_table(path, **ROLES)


def test_lines_count_quoted_breaks_and_empty_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffu,note,x\n\na,"one\ntwo",1\n\nb,"",oops\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 6, column 'x': expected a number, got 'oops'"):
        from_table(path, unit="u", columns=["x"])


def test_errors_of_files_and_kinds(tmp_path):
    with pytest.raises(DataError, match="gone.csv: no such file"):
        from_table(tmp_path / "gone.csv", **ROLES)
    for name, message in (
        ("radon.xlsx", "unknown kind of file '.xlsx'"),
        ("radon.parquet", "radon.parquet: can't be read"),
    ):
        (tmp_path / name).write_text("county")
        with pytest.raises(DataError, match=message):
            from_table(tmp_path / name, **ROLES)
    with pytest.raises(DataError, match="got ndarray; expected a path"):
        from_table(np.ones(3), **ROLES)
    with pytest.raises(DataError, match="different lengths.*'x': 1"):
        from_table({"u": [1, 2], "x": [1.0]}, unit="u", columns=["x"])
    for single in (3, "abc"):
        with pytest.raises(DataError, match="column 'x' is .*expected one value per row"):
            from_table({"u": [1, 2, 3], "x": single}, unit="u", columns=["x"])
    twice = pa.table([[1], [2], [3]], names=["u", "x", "x"])
    with pytest.raises(DataError, match="2 columns are called 'x'"):
        from_table(twice, unit="u", columns=["x"])
    with pytest.raises(DataError, match="no rows"):
        from_table({"u": [], "x": []}, unit="u", columns=["x"])


def test_mixed_objects_name_the_odd_cell():
    mixed = {"u": [1, 1, 2], "x": [1.0, "abc", None]}
    with pytest.raises(DataError, match="table, row 2, column 'x'.*'abc'"):
        from_table(mixed, unit="u", columns=["x"])
    pd = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="table, row 2, column 'x'.*'abc'"):
        from_table(pd.DataFrame(mixed), unit="u", columns=["x"])


def test_one_unit_too_long_is_refused_before_memory_is_taken():
    unit = np.concatenate([np.arange(30_000), np.zeros(30_000, int)])
    with pytest.raises(DataError, match="column 'x': unit number 0 has 30001 rows, the median 1;.*split that unit"):
        from_table({"u": unit, "x": unit}, unit="u", columns=["x"])
