"""Units from a table: rows grouped by a column, padded to equal length, labels coded as integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import DataError
from . import cells
from .missing import fill, pad
from .schema import Label, TableSchema
from .source import Source, open_table
from .units import Units, read_labels


def from_table(
    table: Any,
    *,
    unit: str,
    columns: Sequence[str],
    unit_columns: Sequence[str] = (),
    categories: Mapping[str, Sequence[Any] | None] | None = None,
) -> Units:
    """`Units` from a table with one row per observation; units come in order of first appearance, rows in theirs.

    **Arguments:**

    - `table`: path to a .csv or .parquet file, a pyarrow, pandas or polars table, anything with `__arrow_c_stream__`,
      or a dict of columns. Nulls and NaN are missing; in a CSV also empty cells, NA, NaN and null.
    - `unit`: the column that names the unit of a row; rows of a unit need not be neighbours.
    - `columns`: one value per row: they become ragged arguments of shape (N, longest).
    - `unit_columns`: one value per unit, the same in all its rows: they become arguments of shape (N,).
    - `categories`: column -> its labels, coded 0, 1, ... in that order; None takes the labels found, sorted.

    **Errors:** `DataError` naming file, row (in a CSV the line), column and value.

    **Example:**

    ```python
    >>> from_table({"school": ["a", "a", "b"], "score": [1.0, 2.0, 3.0]}, unit="school", columns=["score"])
    Units(2 x school; score: float32[2, 2] ragged)

    ```
    """
    labels = {column: None if given is None else tuple(given) for column, given in (categories or {}).items()}
    _check_roles(unit, columns, unit_columns, labels)
    return _read(table, unit, (tuple(columns), tuple(unit_columns)), labels, {})


def read_like(table: Any, schema: TableSchema) -> Units:
    """`Units` from a table that has the columns of an earlier one: the same roles, codes and types of number.

    **Arguments:**

    - `table`: as for `from_table`.
    - `schema`: of the earlier table, `Units.schema`.

    **Errors:** as `from_table`; also for values that the earlier type can't hold.
    """
    labels = {column: tuple(given) for column, given in schema.categories.items()}
    return _read(table, schema.unit, (schema.columns, schema.unit_columns), labels, schema.dtypes)


def _read(
    table: Any,
    unit: str,
    roles: tuple[tuple[str, ...], tuple[str, ...]],
    labels: Mapping[str, tuple[Label, ...] | None],
    dtypes: Mapping[str, str],
) -> Units:
    columns, unit_columns = roles
    texts = [name for name, given in labels.items() if given and all(isinstance(label, str) for label in given)]
    source = open_table(table, [unit, *columns, *unit_columns], texts)
    rows = _Rows.group(source, unit)
    arrays, masks, lengths, found = {}, {}, {}, {}
    for column in (*columns, *unit_columns):
        like = dtypes.get(column)
        if column in labels:
            raw, mask, found[column] = _codes(source, column, labels[column])
        else:
            raw, mask = _numbers(source, column)
        values, mask = cells.standard(raw, mask, lambda index, name=column: source.cell(index[0], name), like)
        who = f"{source.name}, column {column!r}"
        if column in columns:
            arrays[column], masks[column] = pad(rows.sort(values), rows.sort(mask), rows.lengths, who)
            lengths[column] = rows.lengths
        else:
            rows.check_constant(source, column, raw, mask)
            arrays[column] = fill(values[rows.first], mask[rows.first])
            if not mask[rows.first].all():
                masks[column] = mask[rows.first]
    schema = TableSchema(unit, columns, unit_columns, found, {name: array.dtype.name for name, array in arrays.items()})
    return Units(arrays, masks, lengths, rows.labels, name=unit, categories=dict(found), schema=schema)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Which rows belong to which unit: `order` lists them unit by unit, None where they already are."""

    codes: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    order: np.ndarray | None
    first: np.ndarray

    @classmethod
    def group(cls, source: Source, unit: str) -> _Rows:
        column = source.columns[unit]
        if not len(column):
            raise DataError(f"{source.name}: the table has no rows; expected at least one")
        codes, labels = _encode(source, unit)
        if (codes < 0).any():
            row = int(np.argmax(codes < 0))
            raise DataError(f"{source.cell(row, unit)}: no unit (missing); every row must say to which unit it belongs")
        try:
            names = read_labels(labels.to_numpy(zero_copy_only=False))
        except DataError as error:
            raise DataError(f"{source.cell(0, unit)}: can't name units by {labels.type} values; {error}") from None
        lengths = np.bincount(codes, minlength=len(labels))
        order = None if (codes[1:] >= codes[:-1]).all() else np.argsort(codes, kind="stable")
        starts = np.cumsum(lengths) - lengths
        return cls(codes, names, lengths, order, starts if order is None else order[starts])

    def sort(self, values: np.ndarray) -> np.ndarray:
        """Values of the rows, those of a unit next to each other."""
        return values if self.order is None else values[self.order]

    def check_constant(self, source: Source, column: str, values: np.ndarray, mask: np.ndarray) -> None:
        """Raises where a unit has two values of a column that should have one per unit."""
        chief = self.first[self.codes]
        differs = (mask != mask[chief]) | (mask & mask[chief] & (values != values[chief]))
        if not differs.any():
            return
        row = int(np.argmax(differs))
        first, given = int(chief[row]), source.columns[column]
        raise DataError(
            f"{source.name}, column {column!r}: unit {self.labels[self.codes[row]].item()!r} has "
            f"{given[first].as_py()!r} in {source.row(first)} and {given[row].as_py()!r} in {source.row(row)}; "
            "a unit column has one value per unit: correct it, or move it to columns"
        )


def _encode(source: Source, name: str) -> tuple[np.ndarray, Any]:
    """Codes (int64, -1 = missing) in order of first appearance, and the distinct values as an Arrow array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = source.columns[name]
    if pa.types.is_nested(column.type):
        raise DataError(f"{source.cell(0, name)}: got {column.type} values; expected text or integers as labels")
    if pa.types.is_floating(column.type):
        column = pc.call_function(
            "if_else", [pc.call_function("is_nan", [column]), pa.scalar(None, column.type), column]
        )
    encoded = column.dictionary_encode()
    if encoded.num_chunks == 0:
        return np.zeros(0, np.int64), pa.array([], column.type)
    codes = pa.chunked_array([chunk.indices for chunk in encoded.chunks]).fill_null(-1)
    return codes.to_numpy(), encoded.chunk(0).dictionary


def _codes(
    source: Source, column: str, labels: tuple[Label, ...] | None
) -> tuple[np.ndarray, np.ndarray, tuple[Label, ...]]:
    """Integer codes of a column, its mask, and its labels."""
    codes, distinct = _encode(source, column)
    values = distinct.to_pylist()
    if labels is None:
        if odd := [value for value in values if not isinstance(value, Label)]:
            first = int(np.argmax(codes >= 0))
            raise DataError(f"{source.cell(first, column)}: can't code {odd[0]!r}; categories are text or numbers")
        labels = tuple(sorted(values))
    known = {label: code for code, label in enumerate(labels)}
    if cells.is_text(distinct.type):
        known = {str(label): code for label, code in known.items()}
    table = np.array([*(known.get(value, -1) for value in values), -1], np.int64)  # the last one for missing
    coded = table[codes]
    unseen = (coded < 0) & (codes >= 0)
    if unseen.any():
        row = int(np.argmax(unseen))
        shown = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
        raise DataError(
            f"{source.cell(row, column)}: {values[codes[row]]!r} is not one of the {len(labels)} labels ({shown}); "
            "correct the cell, or add the label to categories and train anew"
        )
    return coded, codes >= 0, labels


def _numbers(source: Source, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a column and what isn't null; text is an error that names its first row without a number."""
    values = source.columns[column]
    if cells.is_text(values.type):
        texts = values.to_pylist()
        row = next((row for row, text in enumerate(texts) if text is not None and not cells.is_number(text)), None)
        if row is not None:
            raise DataError(
                f"{source.cell(row, column)}: expected a number, got {texts[row]!r}; "
                f"correct the cell, or code the column with categories={{{column!r}: None}}"
            )
        row = next((row for row, text in enumerate(texts) if text is not None), None)
        if row is not None:
            raise DataError(
                f"{source.cell(row, column)}: expected a number, got the text {texts[row]!r}; convert the column"
            )
        return np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    return cells.from_arrow(values, lambda index: source.cell(index[0], column))


def _check_roles(unit: str, columns: Sequence[str], unit_columns: Sequence[str], labels: Mapping[str, Any]) -> None:
    for role, names in (("columns", columns), ("unit_columns", unit_columns)):
        if isinstance(names, str):
            raise DataError(f"{role}: expected a list of column names, got the text {names!r}; write [{names!r}]")
    if not isinstance(unit, str):
        raise DataError(f"unit: expected the name of one column, the text of it, got {unit!r}")
    names = [unit, *columns, *unit_columns]
    if len(names) == 1:
        raise DataError("columns: expected at least one column besides the unit, got none")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"column {twice[0]!r} is named twice among unit, columns and unit_columns; each has one role")
    if unknown := sorted(set(labels) - set(names[1:])):
        raise DataError(f"categories: {unknown[0]!r} is none of the columns {names[1:]}")
    for column, given in labels.items():
        if given is not None and len(set(given)) < len(given):
            raise DataError(f"categories[{column!r}]: a label is there twice in {given}; expected each once")
        if given is not None and any(not isinstance(label, Label) for label in given):
            raise DataError(f"categories[{column!r}]: expected text or numbers as labels, got {given}")
