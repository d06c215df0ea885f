"""Does a report say the verdict first, survive JSON, and never let a label become markup?"""

import json
import re
import time

import numpy as np
import pytest

from amortax import plots
from amortax._errors import DataError
from amortax.checks.report import Reason, Report

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 16


def make(labels, *, verdict="WARN", k=None, **changes):
    n = len(labels)
    k = np.linspace(0.1, 0.9, n) if k is None else np.asarray(k)
    units = {
        "county": np.array(labels),
        "verdict": np.where(k > 0.7, "WARN", "PASS"),
        "reason": np.where(k > 0.7, "pareto-k", ""),
        "next_step": np.where(k > 0.7, "refine", "none"),
        "elbo": np.linspace(-20.0, -3.0, n),
        "iw_elbo": np.linspace(-19.5, -2.9, n),
        "pareto_k": k - 0.1,
        "pareto_k_worst": k,
        "ess": np.linspace(800.0, 12.5, n),
        "ess_worst": np.linspace(700.0, 2.5, n),
        "log_evidence": np.linspace(-19.4, -2.8, n),
    }
    parts = {
        "verdict": verdict,
        "reasons": (Reason("pareto-k", "WARN", "2 of 9 counties have k above 0.70.", "posterior.refine(data)"),),
        "units": units,
        "numbers": {
            "elbo_per_unit": -11.3,
            "elbo_per_unit_se": 0.021,
            "globals_pareto_k": float("nan"),
            "k_limit": 0.667,
            "num_samples": 1000.0,
            "odd": float("-inf"),
        },
        "unit_name": "county",
        "about": {"model": "radon", "families": "county_effect: full normal"},
    }
    return Report(**{**parts, **changes})


@pytest.fixture(scope="module")
def report():
    return make([f"C{i}" for i in range(9)])


def test_json_is_strict_and_round_trips():
    k = np.array([0.2, np.nan, np.inf, -np.inf])
    first = make(["A", "B", "null", "Infinity"], k=k)
    text = first.to_json()

    def refuse(name):
        raise AssertionError(name)

    json.loads(text, parse_constant=refuse)
    second = Report.from_json(text)
    assert second.to_json() == text
    assert second.reasons == first.reasons
    assert second.about == first.about
    assert second.unit_name == first.unit_name
    for name, column in first.units.items():
        assert np.array_equal(second.units[name], column, equal_nan=column.dtype.kind == "f"), name
        assert second.units[name].dtype.kind == column.dtype.kind
    assert np.isnan(second.numbers["globals_pareto_k"])
    assert second.numbers["odd"] == -np.inf


@pytest.mark.parametrize("labels", [np.arange(3), np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "M8[ns]")])
def test_labels_of_other_types(labels):
    first = make(labels)
    second = Report.from_json(first.to_json())
    assert [str(v) for v in second.units["county"]] == [str(v) for v in labels]
    assert str(labels[2])[:10] in str(first)


def test_json_of_another_format_is_refused():
    with pytest.raises(DataError, match="amortax-report/1"):
        Report.from_json('{"verdict": "PASS"}')


def test_worst_orders_by_verdict_then_k():
    report = make(["a", "b", "c", "d"], k=[0.9, np.nan, 0.2, 0.75])
    assert report.worst(3)["county"].tolist() == ["a", "d", "b"]
    assert report.worst(100)["county"].tolist() == ["a", "d", "b", "c"]
    assert report.counts() == {"FAIL": 0, "WARN": 2, "PASS": 2}


def test_terminal_text(report):
    text = str(report)
    lines = text.splitlines()
    assert lines[0] == "WARN: 9 units of 'county' (3 WARN, 6 PASS)"
    assert max(map(len, lines)) <= 100
    assert "pareto-k: 2 of 9 counties have k above 0.70." in text
    assert "next: posterior.refine(data)" in text
    assert re.search(r"ELBO per unit +-11\.300 ± 0\.021 +nats per unit", text)
    assert re.search(r"Globals: Pareto k +NaN", text)
    assert text.index("C8") < text.index("C0")
    assert "not the model against the world" in text


def test_long_reasons_are_wrapped():
    reason = Reason("pareto-k", "WARN", "a sentence " * 20, "a command " * 20)
    assert max(map(len, str(make(["a"], reasons=(reason,))).splitlines())) <= 100


def test_terminal_text_of_hostile_labels():
    text = str(make(["[red]x[/red]", "a\x1b[31mb", "c\nd"]))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_html_is_one_safe_page(report):
    html = report.to_html(pictures={"Intervals": PNG, "Curve": "<svg xmlns='http://www.w3.org/2000/svg'></svg>"})
    body = html[html.index("<body>") :]
    assert body.index("WARN: 9 units") < body.index("Why, and what to do") < body.index("The numbers")
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    assert "src=" not in re.sub(r'src="data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+"', "", html)
    assert "predictive checks" in html
    assert "wrong model that is fitted well" in html
    assert "prefers-color-scheme: dark" in html


def test_html_escapes_every_text():
    bad = "<script>alert('x')</script>\"&"
    reason = Reason(bad, "FAIL", bad, bad)
    changes = {"reasons": (reason,), "numbers": {bad: 1.0}, "about": {bad: bad}, "verdict": "FAIL"}
    report = make([bad, "b"], **changes)
    html = report.to_html(pictures={bad: PNG}, tables={bad: {bad: [bad, 1.5]}})
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") >= 10


def test_html_says_how_many_units_were_left_out():
    report = make([f"C{i}" for i in range(1000)])
    html = report.to_html()
    assert "800 units" in html
    assert "C999<" in html
    assert "C799<" not in html
    assert "All units" in make(["a", "b"]).to_html()


def test_a_picture_that_is_none_is_refused(report):
    with pytest.raises(DataError, match="'Curve' is neither"):
        report.to_html(pictures={"Curve": b"GIF89a"})


def test_the_pictures_of_plots_are_taken(report):
    three = [0.1, 0.5, 0.9]
    figures = [
        plots.intervals_against_exact(["a", "b", "c"], (three, three, three), (three, three, three), [3, 1, 2]),
        plots.training_curve([0, 10, 20], [-90.0, -3.0, float("nan")]),
        plots.pareto_k_by_unit([*three, float("nan")], 0.7),
        plots.pareto_k_by_unit([], 0.7),
    ]
    names = [label.get_text() for label in figures[0].get_yticklabels()]
    assert names == ["a (3)", "c (2)", "b (1)"]
    pngs = [plots.figure_png(axes.figure) for axes in figures]
    assert report.to_html(pictures={str(i): png for i, png in enumerate(pngs)}).count("data:image/png") == 4
    assert plots.figure_png(plots.pareto_k_by_unit([], 0.7).figure) == pngs[-1]
    with pytest.raises(DataError, match="2 labels, 3 counts"):
        plots.intervals_against_exact(["a", "b"], (three, three, three), (three, three, three), [3, 1, 2])


def test_write_html_replaces_whole_files(report, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            report.write_html(path)
    assert path.read_text() == "old"
    report.write_html(path)
    assert path.read_text() == report.to_html()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_parts_that_do_not_fit_are_refused():
    good = make(["a", "b"]).units
    with pytest.raises(DataError, match="'next_step'"):
        make([], units={name: v for name, v in good.items() if name != "next_step"})
    with pytest.raises(DataError, match="differ in length"):
        make([], units={**good, "ess": np.zeros(3)})
    with pytest.raises(DataError, match="'GOOD'"):
        make(["a"], verdict="GOOD")


def test_a_report_without_units_or_reasons():
    report = make(np.array([], str), verdict="PASS", reasons=())
    assert str(report).startswith("PASS: 0 units")
    assert "All units" in report.to_html()
    assert len(Report.from_json(report.to_json())) == 0


def test_ten_thousand_units_are_quick():
    report = make([f"C{i}" for i in range(10_000)])
    start = time.perf_counter()
    html, text, content = report.to_html(), str(report), report.to_json()
    assert time.perf_counter() - start < 3.0
    assert len(html) < 200_000
    assert len(text) < 6_000
    assert len(Report.from_json(content)) == 10_000
