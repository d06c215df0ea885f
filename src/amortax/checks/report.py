"""What did the check find, for whom, and what is to be done? The `Report` of `posterior.check`.

A report holds a verdict with its reasons, the numbers behind them with units, and one row per unit. It computes
nothing; all is given to it. It is read in a terminal (`print`), in a browser (`to_html`), by a program (`to_json`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amortax._errors import DataError
from amortax._files import write_bytes
from amortax.checks.report_html import Page, render
from amortax.checks.report_text import terminal
from amortax.checks.report_words import COLUMNS, SEVERITY, column_texts, number_rows, unit_texts
from amortax.data.outgoing import arrow_table, pandas_frame

Column = Sequence[Any] | np.ndarray
Tables = dict[str, dict[str, np.ndarray]]  # title -> column -> entries

_FORMAT = "amortax-report/1"


@dataclasses.dataclass(frozen=True)
class Reason:
    """One finding: its `code` in kebab-case, `level` WARN or FAIL, one sentence with number and limit, what to do."""

    code: str
    level: str
    text: str
    next_step: str


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What a check found.

    Args:
        verdict: PASS, WARN or FAIL, for the artifact on this data.
        reasons: the findings behind it; none for PASS.
        units: columns with one entry per unit: the labels, named by `unit_name`, then `verdict`, `reason`, `next_step`
            (none, reweight, refine or refit), `elbo`, `iw_elbo`, `log_evidence` (nats), `pareto_k`, `ess` (median over
            the draws of the globals), `pareto_k_worst`, `ess_worst`, `pareto_k_se`; where the training units are known,
            `input_shift`, `context_shift` and what tells of them.
        numbers: name to number; `report_words.NUMBERS` has their labels, units and meaning.
        unit_name: what a unit is called, such as "county"; also the name of the column of labels.
        about: facts in words: model, sites, encoder, families, number of units, versions.
        tables: what is not one number and not one row per unit, by title: column -> entries (ranks, slices, latents).

    Raises:
        DataError: where the parts do not fit together.

    >>> reason = Reason("pareto-k", "WARN", "1 of 1 counties has k 0.81, limit 0.70.", "train longer")
    >>> columns = {"county": ["A"], "verdict": ["WARN"], "reason": ["pareto-k"], "next_step": ["refine"]}
    >>> units = {name: np.array(column) for name, column in columns.items()}
    >>> report = Report("WARN", (reason,), units, {"elbo_per_unit": -1.2}, "county", {"model": "radon"})
    >>> Report.from_json(report.to_json()).verdict
    'WARN'

    """

    verdict: str
    reasons: tuple[Reason, ...]
    units: dict[str, np.ndarray]
    numbers: dict[str, float]
    unit_name: str
    about: dict[str, str]
    tables: Tables = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {self.verdict, *(reason.level for reason in self.reasons)}
        missing = [name for name in (self.unit_name, "verdict", "reason", "next_step") if name not in self.units]
        if missing:
            raise DataError(f"report: units has no column {missing[0]!r}, only {list(self.units)}; add it")
        found |= {str(value) for value in np.unique(self.units["verdict"])}
        if not found <= set(SEVERITY):
            raise DataError(f"report: verdict {sorted(found - set(SEVERITY))[0]!r} is none of {list(SEVERITY)}")
        sizes = {name: len(column) for name, column in self.units.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"report: the columns of units differ in length: {sizes}; give one entry per unit in each")

    def __len__(self) -> int:
        return len(self.units[self.unit_name])

    def worst(self, n: int = 10) -> dict[str, np.ndarray]:
        """The `n` worst units, worst first: by verdict, then `pareto_k_worst` (NaN counts as worst), then `ess`."""
        severity = np.array([SEVERITY[str(value)] for value in self.units["verdict"]], np.int64)
        tail = np.asarray(self.units.get("pareto_k_worst", np.zeros(len(self))), np.float64)
        few = np.asarray(self.units.get("ess", np.zeros(len(self))), np.float64)
        order = np.lexsort((few, -np.where(np.isnan(tail), np.inf, tail), -severity))[:n]
        return {name: np.asarray(column)[order] for name, column in self.units.items()}

    def counts(self) -> dict[str, int]:
        """How many units have each verdict, worst verdict first."""
        return {name: int(np.sum(self.units["verdict"] == name)) for name in reversed(SEVERITY)}

    def to_json(self) -> str:
        """Strict JSON (RFC 8259): NaN is null, infinities are the strings "Infinity" and "-Infinity"."""
        content = {
            "format": _FORMAT,
            "verdict": self.verdict,
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "numbers": {name: _encode(value) for name, value in self.numbers.items()},
            "unit_name": self.unit_name,
            "about": self.about,
            **_encode_table("kinds", "units", self.units),
            "tables": {title: _encode_table("kinds", "columns", table) for title, table in self.tables.items()},
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote; `DataError` where the text is another format."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"report: the text is not a report of format {_FORMAT!r}; write it with Report.to_json")
        tables = content.get("tables", {})
        return cls(
            verdict=content["verdict"],
            reasons=tuple(Reason(**reason) for reason in content["reasons"]),
            units=_decode_table(content["kinds"], content["units"]),
            numbers={name: float(_number(value)) for name, value in content["numbers"].items()},
            unit_name=content["unit_name"],
            about=content["about"],
            tables={title: _decode_table(table["kinds"], table["columns"]) for title, table in tables.items()},
        )

    def to_arrow(self) -> Any:
        """The units as a `pyarrow.Table`: label, verdict, reason, next step, numbers."""
        return arrow_table(self.units)

    def to_pandas(self) -> Any:
        """The units as a `pandas.DataFrame`, one row per unit, labels in the column `unit_name`."""
        return pandas_frame(self.units)

    def to_dataset(self) -> Any:
        """The units as an `xarray.Dataset` with their labels as coordinates, the verdict and all numbers as attributes.

        `to_datatree(draws, report=report)` puts it beside the draws as the group `check`.
        """
        import xarray

        columns = {name: (self.unit_name, np.asarray(x)) for name, x in self.units.items() if name != self.unit_name}
        attributes = {"verdict": self.verdict, **{name: float(value) for name, value in self.numbers.items()}}
        return xarray.Dataset(
            columns, coords={self.unit_name: np.asarray(self.units[self.unit_name])}, attrs=attributes
        )

    def headline(self) -> str:
        """The verdict and how many units have which, in one line."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts().items() if count)
        return f"{self.verdict}: {len(self):,} units of {self.unit_name!r}" + (f" ({counts})" if counts else "")

    def __str__(self) -> str:
        return terminal(self)

    def to_html(
        self,
        *,
        pictures: Mapping[str, bytes | str] | None = None,
        tables: Mapping[str, Mapping[str, Column]] | None = None,
    ) -> str:
        """One HTML page that needs nothing else: `pictures` by title (PNG bytes, SVG text), more `tables` by title."""
        columns, rows = self.shown(200, tuple(COLUMNS))
        page = Page(
            verdict=self.verdict,
            headline=self.headline(),
            reasons=[(r.level, r.code, r.text, r.next_step) for r in self.reasons],
            numbers=number_rows(self.numbers),
            columns=columns,
            rows=rows,
            left_out=len(self) - len(rows),
            about=self.about,
            pictures=dict(pictures or {}),
            tables={title: _rows(table) for title, table in {**self.tables, **(tables or {})}.items()},
        )
        return render(page)

    def write_html(
        self,
        path: str | os.PathLike[str],
        *,
        pictures: Mapping[str, bytes | str] | None = None,
        tables: Mapping[str, Mapping[str, Column]] | None = None,
    ) -> None:
        """Writes `to_html` so that `path` is at every moment the old file or the whole new one."""
        write_bytes(path, self.to_html(pictures=pictures, tables=tables).encode())

    def shown(self, n: int, wanted: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Headings and cells of the `n` worst units: the labels, then the wanted columns that there are."""
        worst = self.worst(n)
        given = [name for name in wanted if name in worst and (name != "reason" or any(self.units["reason"]))]
        names = [self.unit_name, *given]
        headings = [COLUMNS[name][0] if name in COLUMNS else name for name in names]
        worst[self.unit_name] = np.array([str(label) for label in worst[self.unit_name]])
        cells = [unit_texts(name, worst[name]) for name in names]
        return headings, [list(row) for row in zip(*cells, strict=True)]


def _rows(table: Mapping[str, Column]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, as text, of a table given by columns."""
    columns = [column_texts(column) for column in table.values()]
    return list(table), [list(row) for row in zip(*columns, strict=True)]


def _kind(column: np.ndarray) -> str:
    return {"f": "number", "i": "integer", "u": "integer", "b": "truth"}.get(np.asarray(column).dtype.kind, "text")


def _encode(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if not isinstance(value, (float, np.floating)):
        return str(value)
    if np.isfinite(value):
        return float(value)
    return None if np.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _encode_table(kinds: str, columns: str, table: Mapping[str, Column]) -> dict[str, Any]:
    return {
        kinds: {name: _kind(np.asarray(column)) for name, column in table.items()},
        columns: {name: [_encode(v) for v in np.asarray(column)] for name, column in table.items()},
    }


def _decode_table(kinds: dict[str, str], columns: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: _decode(values, kinds[name]) for name, values in columns.items()}


def _decode(values: list, kind: str) -> np.ndarray:
    if kind == "number":
        return np.array([_number(value) for value in values], np.float64)
    return np.array(values, {"integer": np.int64, "truth": np.bool_}.get(kind, np.str_))
