"""Where a table comes from (CSV, Parquet, Arrow, pandas, polars, a dict), as Arrow columns; and how it is written."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._errors import DataError
from .._files import replacing
from . import cells


@dataclasses.dataclass(frozen=True)
class Source:
    """The needed columns of a table, and how an error names one of its cells."""

    name: str
    columns: dict[str, Any]  # name -> pyarrow.ChunkedArray without dictionaries
    csv_path: Path | None = None

    def cell(self, row: int, column: str) -> str:
        """`radon.csv, line 7, column 'floor'`; `row` counts from 0, what is printed from 1."""
        return f"{self.name}, {self.row(row)}, column {column!r}"

    def row(self, row: int) -> str:
        """`row 3`, or for a CSV file the line on which it starts."""
        return f"row {row + 1}" if self.csv_path is None else f"line {_line_of(self.csv_path, row)}"


def open_table(table: Any, needed: Sequence[str], texts: Iterable[str] = ()) -> Source:
    """The columns `needed` of any table.

    **Arguments:**

    - `table`: path to a .csv or .parquet file, pyarrow, pandas or polars table, anything with `__arrow_c_stream__`,
      or a dict of columns.
    - `needed`: names of columns.
    - `texts`: those of them that a CSV file must not take for numbers.

    **Errors:** `DataError` naming the file, and the column or the cell.
    """
    import pyarrow as pa

    try:
        if isinstance(table, str | os.PathLike):
            return _open_file(Path(table), needed, set(texts))
        columns = _columns_of(table, needed)
    except (pa.ArrowException, OSError) as error:
        name = Path(table).name if isinstance(table, str | os.PathLike) else "table"
        raise DataError(
            f"{name}: can't be read ({str(error).splitlines()[0]}); correct the file or write it anew"
        ) from None
    return Source("table", {column: _plain(values, "table", column) for column, values in columns.items()})


def _open_file(path: Path, needed: Sequence[str], texts: set[str]) -> Source:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: no such file; looked in {path.resolve().parent}")
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            _check_present(file.schema_arrow.names, needed, path.name)
            table = file.read(columns=list(needed))
        return Source(path.name, {column: _plain(table[column], path.name, column) for column in needed})
    if path.suffix == ".csv":
        table = _read_csv(path, needed, texts)
        return Source(path.name, {column: _plain(table[column], path.name, column) for column in needed}, path)
    raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected .csv or .parquet")


def _read_csv(path: Path, needed: Sequence[str], texts: set[str]) -> Any:
    import pyarrow as pa
    import pyarrow.csv as pc

    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = (line for line in csv.reader(file) if line)
        header, has_rows = next(lines, None), next(lines, None) is not None
    if header is None:
        raise DataError(f"{path.name}: the file is empty; expected a line of column names, then one line per row")
    _check_present(header, needed, path.name)
    if not has_rows:
        raise DataError(f"{path.name}: the table has no rows; expected at least one")
    convert = pc.ConvertOptions(
        include_columns=list(needed),
        column_types={column: pa.string() for column in texts},
        strings_can_be_null=True,
    )
    return pc.read_csv(path, parse_options=pc.ParseOptions(newlines_in_values=True), convert_options=convert)


def _columns_of(table: Any, needed: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    if isinstance(table, Mapping):
        _check_present(list(table), needed, "table")
        for column in needed:
            if isinstance(table[column], str | bytes) or not hasattr(table[column], "__len__"):
                raise DataError(f"table: column {column!r} is {table[column]!r}; expected one value per row")
        lengths = {column: len(table[column]) for column in needed}
        if len(set(lengths.values())) > 1:
            raise DataError(f"table: columns of different lengths {lengths}; expected one value per row in each")
        return {column: table[column] for column in needed}
    if hasattr(table, "iloc"):  # pandas, whose index isn't a column
        _check_present([str(column) for column in table.columns], needed, "table")
        return {column: table[column] for column in needed}
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        arrow = table if isinstance(table, pa.Table) else pa.table(table)
        _check_present(arrow.column_names, needed, "table")
        return {column: arrow[column] for column in needed}
    raise DataError(
        f"table: got {type(table).__name__}; expected a path to a .csv or .parquet file, a pyarrow, pandas or polars "
        "table, or a dict of columns"
    )


def _check_present(names: Sequence[str], needed: Iterable[str], where: str) -> None:
    counts = Counter(names)
    for column in needed:
        if not counts[column]:
            raise DataError(f"{where}: no column {column!r}; it has {sorted(map(str, counts))}")
        if counts[column] > 1:
            raise DataError(f"{where}: {counts[column]} columns are called {column!r}; rename all but one")


def _plain(values: Any, where: str, column: str) -> Any:
    """One column as Arrow; a column of mixed objects is an error that names its first odd cell."""
    import pyarrow as pa

    try:
        return cells.arrow_column(values)
    except (pa.ArrowException, OverflowError) as error:
        items = list(values)
        odd = next((row for row, value in enumerate(items) if isinstance(value, str)), None)
        if odd is None:
            odd = next((row for row, value in enumerate(items) if type(value) not in (type(items[0]), type(None))), 0)
        raise DataError(
            f"{where}, row {odd + 1}, column {column!r}: expected values of one type, got {items[odd]!r} among others "
            f"({str(error).splitlines()[0]}); correct the cell"
        ) from None


def _line_of(path: Path, row: int) -> int:
    """The line (from 1) on which data row `row` (from 0) starts; quoted cells may hold line breaks."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        seen, start = -1, 1
        for cells_of_row in reader:
            if cells_of_row and seen == row:
                return start
            seen += bool(cells_of_row)
            start = reader.line_num + 1
    return start


def to_arrow(columns: Mapping[str, Any]) -> Any:
    """A pyarrow.Table from named one-dimensional columns; NaN, masked and None become null.

    **Errors:** `DataError` naming the column that isn't one-dimensional or differs in length.
    """
    import numpy as np
    import pyarrow as pa

    arrow = {}
    for column, values in columns.items():
        if not cells.is_arrow_column(values) and np.ndim(values) != 1:
            raise DataError(f"column {column!r}: expected one value per row, got shape {np.shape(values)}")
        arrow[column] = _plain(values, "table", column)
    lengths = {column: len(values) for column, values in arrow.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of different lengths {lengths}; expected one value per row in each")
    return pa.table(arrow)


def write_table(table: Any, path: str | os.PathLike[str]) -> None:
    """Writes a table (`to_arrow`, or anything that `from_table` reads) as .parquet or .csv, wholly or not at all.

    **Errors:** `DataError` for another suffix or a folder that doesn't exist.
    """
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected .csv or .parquet")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such folder {path.parent}; make it first")
    arrow = to_arrow(table) if isinstance(table, Mapping) else table if isinstance(table, pa.Table) else pa.table(table)
    with replacing(path) as partial:
        if path.suffix == ".csv":
            pc.write_csv(to_arrow(dict(zip(arrow.column_names, arrow.columns, strict=True))), partial)
        else:
            pq.write_table(arrow, partial)
