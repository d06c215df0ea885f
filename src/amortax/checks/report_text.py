"""How does a report read in a terminal? The same as on the page, in some sixty lines of at most 100 characters.

Verdict and reasons, the numbers, coverage, slices, latents, predictive checks and gaps where they were looked at, and
the worst units. Of every table those rows stand here that are worst; the page has all of them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amortax.checks.report_words import SEVERITY, TABLES, VERDICTS, is_numeric, number_rows, number_text

MOST_REASONS, MOST_ROWS, FEW_ROWS, MOST_UNITS = 6, 5, 2, 10
PAGE_ONLY = ("num_samples", "num_globals_draws", "globals_draws", "rank_draws")
UNIT_COLUMNS = ("verdict", "next_step", "pareto_k", "pareto_k_worst", "ess", "input_shift", "elbo", "reason")
IN_TABLES = {
    "coverage": ("coverage_", "tarp_", "sbc_p_"),
    "latents": ("latents",),
    "predictive": ("predictive_",),
    "gaps": ("approximation_gap", "amortization_gap", "generalisation_gap"),
}
"""Beginnings of numbers that a table says better."""

Table = Mapping[str, np.ndarray]


def terminal(report: Any) -> str:
    """The report as text; no character of a label can move the cursor."""
    parts = [_reasons(report), _numbers(report.numbers, report.tables)]
    parts += [told(report.tables[title]) for title, told in _TABLES.items() if title in report.tables]
    parts.append("\n".join(told(report.tables[title]) for title, told in _LINES.items() if title in report.tables))
    parts += [_units(report), _closing(report.tables)]
    return "\n\n".join(printable(part) for part in parts if part)


def _reasons(report: Any) -> str:
    """The worst reasons; what is to be done stands once below those that ask for the same."""
    ordered = sorted(report.reasons, key=lambda reason: -SEVERITY[reason.level])
    lines = [report.headline(), VERDICTS[report.verdict], ""]
    for step in dict.fromkeys(reason.next_step for reason in ordered[:MOST_REASONS]):
        same = [reason for reason in ordered[:MOST_REASONS] if reason.next_step == step]
        lines += [wrapped(f"{reason.level} {reason.code}: {reason.text}") for reason in same]
        lines.append(wrapped(f"     next: {step}"))
    if left := ordered[MOST_REASONS:]:
        lines.append(wrapped(f"and {len(left)} more: {', '.join(f'{each.level} {each.code}' for each in left)}"))
    return "\n".join(lines).rstrip()


def _numbers(numbers: dict[str, float], tables: Mapping[str, Table]) -> str:
    hidden = tuple(start for title, starts in IN_TABLES.items() if title in tables for start in starts)
    shown = {name: x for name, x in numbers.items() if not name.startswith(hidden) and name not in PAGE_ONLY}
    return aligned(("number", "value", "unit"), [(label, value, unit) for label, value, unit, _ in number_rows(shown)])


def _coverage(table: Table) -> str:
    """A row for each site, a column for each level; what is outside its band of chance is marked."""
    outside = _outside(table)
    levels = np.unique(table["nominal"])
    rows, order = [], []
    for name in dict.fromkeys(table["of"].tolist()):
        own = table["of"] == name
        order.append(-float(np.max(_beyond(table)[own])))
        cells = {level: i for i, level in zip(np.flatnonzero(own).tolist(), table["nominal"][own], strict=True)}
        rows.append([name, *(_cell(table["found"], outside, cells.get(level)) for level in levels)])
    rows = [rows[i] for i in np.argsort(order, kind="stable")]
    first = "coverage of intervals of" + " (!: not chance)" * bool(outside.any())
    headings = [first, *(f"{100 * level:.0f}%" for level in levels)]
    return aligned(headings, rows[:MOST_ROWS]) + _more(len(rows) - MOST_ROWS, "sites")


def _cell(found: np.ndarray, outside: np.ndarray, row: int | None) -> str:
    return "" if row is None else f"{found[row]:.3f}{'!' if outside[row] else ''}"


def _beyond(table: Table) -> np.ndarray:
    """How far a coverage is outside its band; below zero within."""
    return np.maximum(table["low"] - table["found"], table["found"] - table["high"])


def _outside(table: Table) -> np.ndarray:
    return _beyond(table) > 0


def _slices(table: Table) -> str:
    outside = np.flatnonzero(_outside(table))
    first = f"coverage by slice: {len(outside)} of {len(table['of'])} outside the band of chance"
    order = outside[np.argsort(-_beyond(table)[outside], kind="stable")]
    lines = [
        f"  {table['of'][i]}, {table['slice'][i]} {table['value'][i]} ({table['units'][i]:,} units): "
        f"{table['found'][i]:.3f} instead of {table['nominal'][i]:.2f}"
        for i in order[:FEW_ROWS]
    ]
    return "\n".join([first, *map(wrapped, lines)]) + _more(len(order) - FEW_ROWS, "slices")


def _latents(table: Table) -> str:
    idle = np.flatnonzero(np.asarray(table["verdict"]) != "active")
    first = f"latents: {len(table['latent']) - len(idle)} of {len(table['latent'])} active"
    said = [f"{table['latent'][i]} ({table['verdict'][i]})" for i in idle[:MOST_ROWS]]
    return wrapped(first + (f"; idle: {', '.join(said)}" if said else "") + _more(len(idle) - MOST_ROWS, "", " "))


def _predictive(table: Table) -> str:
    far = np.nan_to_num(np.abs(np.asarray(table["sds_apart"], np.float64)))
    order = np.argsort(-far, kind="stable")[:FEW_ROWS]
    first = f"data against replications: {len(far)} statistics, the farthest"
    lines = [
        f"  {table['statistic'][i]}: {number_text(table['observed'][i])} in the data, "
        f"{number_text(table['replicated'][i])} in replications, {far[i]:.1f} sds apart, "
        f"{100 * table['share_extreme'][i]:.0f}% of units extreme"
        for i in order
    ]
    return "\n".join([first, *map(wrapped, lines)])


def _gaps(table: Table) -> str:
    rows = [
        (str(name), f"{number_text(nats)} ± {number_text(error)}")
        for name, nats, error in zip(table["gap"], table["nats"], table["se"], strict=True)
    ]
    return aligned(("gap", "nats per unit"), rows)


_TABLES = {"coverage": _coverage, "gaps": _gaps}
_LINES = {"slices": _slices, "latents": _latents, "predictive": _predictive}


def _more(count: int, what: str, before: str = "\n") -> str:
    return f"{before}and {count} more {what} that are better".replace("  ", " ") if count > 0 else ""


def _units(report: Any) -> str:
    columns, rows = report.shown(MOST_UNITS, UNIT_COLUMNS)
    left = f"The {len(rows)} worst of {len(report):,} units (k and ESS over the draws of the globals):"
    return f"{left}\n\n{aligned(columns, rows)}"


def _closing(tables: Mapping[str, Table]) -> str:
    said = "k and ESS see the guide against the model, not the model against the world; to_html says more"
    others = [
        TABLES[title][0].lower() if title in TABLES else title for title in tables if title not in (*_TABLES, *_LINES)
    ]
    return wrapped(said + (f", and has {', '.join(others)}." if others else "."))


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text, at most 100 characters wide; columns of numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        numeric = i > 0 and is_numeric([row[i] for row in rows])
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=i == 1)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    console = Console(file=text, width=100, color_system=None, markup=False, highlight=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def wrapped(text: str) -> str:
    """Lines of at most 100 characters, all but the first indented."""
    return textwrap.fill(text, 100, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)


def printable(text: str) -> str:
    """The text without control characters (a label could move the cursor), lines kept."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
