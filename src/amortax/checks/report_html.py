"""How does a report read in a browser? One self-contained page: no script, no address, every text escaped.

The order is that of the reader's questions: can I trust it, why not, what do I do, how does it look, how large are the
numbers, which units, and what has nobody looked at. Pictures are embedded as data; a policy in the head forbids loading
anything.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from html import escape

from amortax._errors import DataError
from amortax.checks.report_words import BLIND, COLUMNS, TABLES, VERDICTS, is_numeric

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --panel: #f4f6f8; --line: #d4d9df;
  --pass: #1a7f37; --warn: #9a6700; --fail: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9ba5b0; --paper: #14171b; --panel: #1e2329;
  --line: #373e47; --pass: #4cc26a; --warn: #d9a733; --fail: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.banner { border-left: .6rem solid var(--tone); background: var(--panel); padding: 1rem 1.2rem; border-radius: .3rem; }
.banner h1 { color: var(--tone); } .banner p { margin: .3rem 0 0; }
.PASS { --tone: var(--pass); } .WARN { --tone: var(--warn); } .FAIL { --tone: var(--fail); }
td.PASS, td.WARN, td.FAIL, .level { color: var(--tone); font-weight: 600; }
.soft { color: var(--soft); } code { background: var(--panel); padding: .1rem .3rem; border-radius: .2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { white-space: nowrap; } td { overflow-wrap: anywhere; min-width: 5.5rem; }
td:first-child { min-width: 12rem; }
td.value { white-space: nowrap; text-align: right; } th.value { text-align: right; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; } figure { margin: 1rem 0; }
img { max-width: 100%; background: #ffffff; border-radius: .3rem; } figcaption { color: var(--soft); }
"""

MOST_ROWS = 16  # of a table that is open

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Page:
    """All that the page shows, as text: `reasons` are (level, code, text, next step), `rows` the worst units."""

    verdict: str
    headline: str
    reasons: Sequence[tuple[str, str, str, str]]
    numbers: Sequence[tuple[str, str, str, str]]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: int
    about: Mapping[str, str]
    pictures: Mapping[str, bytes | str]
    tables: Mapping[str, Table]


def render(page: Page) -> str:
    """The page as HTML text.

    Raises:
        DataError: where a picture is neither PNG bytes nor SVG text.

    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(page.headline)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f'<header class="banner {escape(page.verdict)}"><h1>{escape(page.headline)}</h1>',
        f"<p>{escape(VERDICTS[page.verdict])}</p></header>",
        _reasons(page),
        *(_picture(title, picture) for title, picture in page.pictures.items()),
        _numbers(page),
        *(_titled(title, table) for title, table in page.tables.items()),
        _units(page),
        "<h2>What this report can't see</h2>",
        "<ul>" + "\n".join(f"<li>{escape(text)}</li>" for text in BLIND) + "</ul>",
        _about(page),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _reasons(page: Page) -> str:
    if not page.reasons:
        return ""
    items = [
        f'<li><span class="level {escape(level)}">{escape(level)}</span> <code>{escape(code)}</code> {escape(text)}'
        f"<br>Next: {escape(step)}</li>"
        for level, code, text, step in page.reasons
    ]
    return "<h2>Why, and what to do</h2>\n<ul>" + "\n".join(items) + "</ul>"


def _numbers(page: Page) -> str:
    if not page.numbers:
        return ""
    rows = [
        f'<tr><td>{escape(label)}</td><td class="value">{escape(value)}</td><td>{escape(unit)}</td>'
        f'<td class="soft">{escape(meaning)}</td></tr>'
        for label, value, unit, meaning in page.numbers
    ]
    head = '<tr><th>number</th><th class="value">value</th><th>unit</th><th>what it means</th></tr>'
    table = f"<table><thead>{head}</thead>\n<tbody>" + "\n".join(rows) + "</tbody></table>"
    return f'<h2>The numbers</h2>\n<div class="scroll">{table}</div>'


def _units(page: Page) -> str:
    said = f"{page.left_out:,} units that are better than these were left out." if page.left_out else "All units."
    words = dict(COLUMNS.values())
    meanings = [f"<dt>{escape(name)}</dt><dd>{escape(words[name])}</dd>" for name in page.columns if name in words]
    return (
        f'<h2>The units, worst first</h2>\n<p class="soft">{said} k and ESS are over the draws of the globals.</p>\n'
        + _table(page.columns, page.rows)
        + "\n<details><summary>What the columns mean</summary><dl>"
        + "\n".join(meanings)
        + "</dl></details>"
    )


def _titled(title: str, table: Table) -> str:
    """A table below its heading and what it means; folded where it is long."""
    heading, meaning = TABLES.get(title, (title, ""))
    said = f'<p class="soft">{escape(meaning)}</p>\n' if meaning else ""
    body = _table(*table)
    if len(table[1]) > MOST_ROWS:
        body = f"<details><summary>All {len(table[1]):,} rows</summary>{body}</details>"
    return f"<h2>{escape(heading)}</h2>\n{said}{body}"


def _about(page: Page) -> str:
    rows = [(name, str(fact)) for name, fact in page.about.items()]
    return "<h2>What was checked</h2>\n" + _table(("what", "fact"), rows) if rows else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = [i > 0 and is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    kinds = [' class="value"' if each else "" for each in numeric]
    head = "".join(f"<th{kind}>{escape(str(name))}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "\n".join("<tr>" + "".join(map(_cell, row, kinds)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(value: str, kind: str) -> str:
    tone = f' class="{value}"' if value in VERDICTS else kind
    return f"<td{tone}>{escape(value)}</td>"


def _picture(title: str, picture: bytes | str) -> str:
    """The picture as data in an `img`, where an SVG can neither run a script nor load a file."""
    if isinstance(picture, str) and "<svg" in picture:
        kind, content = "svg+xml", picture.encode()
    elif isinstance(picture, bytes) and picture.startswith(b"\x89PNG\r\n\x1a\n"):
        kind, content = "png", picture
    else:
        raise DataError(f"report: picture {title!r} is neither PNG bytes nor SVG text; make it with plots.figure_png")
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<h2>{escape(title)}</h2>\n<figure><img src="{source}" alt="{escape(title)}"></figure>'
