"""How a table was read, so that a later table is read the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .._errors import check_entries

Label = str | int | float | bool


@dataclasses.dataclass(frozen=True)
class TableSchema:
    """The roles of a table's columns; plain values only, so that an artifact keeps it as JSON.

    **Arguments:**

    - `unit`: the column that says to which unit a row belongs.
    - `columns`: one value per row; they become ragged arguments.
    - `unit_columns`: one value per unit.
    - `categories`: coded column -> its labels; code k is label k.
    - `dtypes`: column -> the type of its array.
    """

    unit: str
    columns: tuple[str, ...]
    unit_columns: tuple[str, ...] = ()
    categories: Mapping[str, tuple[Label, ...]] = dataclasses.field(default_factory=dict)
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Lists, strings and numbers only; `from_json` reads it back."""
        return {
            "unit": self.unit,
            "columns": list(self.columns),
            "unit_columns": list(self.unit_columns),
            "categories": {column: list(labels) for column, labels in self.categories.items()},
            "dtypes": dict(self.dtypes),
        }

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> TableSchema:
        """The schema that `to_json` wrote.

        **Errors:** `ArtifactError` where an entry is missing or unknown.
        """
        check_entries("table schema", spec, [field.name for field in dataclasses.fields(cls)])
        return cls(
            unit=spec["unit"],
            columns=tuple(spec["columns"]),
            unit_columns=tuple(spec["unit_columns"]),
            categories={column: tuple(labels) for column, labels in spec["categories"].items()},
            dtypes=dict(spec["dtypes"]),
        )
