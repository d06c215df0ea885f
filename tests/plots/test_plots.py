"""Do pictures show the numbers that they were given, on the Axes that they were given, and no text over another?"""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from amortax import plots
from amortax._errors import DataError
from amortax.checks.bands import bin_band, bin_counts
from amortax.checks.report import Reason, Report
from amortax.data import Units
from amortax.interop import to_datatree
from amortax.plots.canvas import BLUE, ORANGE
from amortax.plots.repairs import moves
from amortax.plots.worst import summary_of
from amortax.psis import FLAT_K

N = 30
LEVELS = np.array([0.5, 0.8, 0.9, 0.95])
LABELS = np.array([f"Clinic {i:02d}{' of a long name' * (i % 3)}, $_{{ or $" for i in range(N)])


def coverage_table(found):
    names = np.repeat(list(found), len(LEVELS))
    nominal = np.tile(LEVELS, len(found))
    values = np.concatenate([LEVELS + shift for shift in found.values()])
    return {"of": names, "nominal": nominal, "found": values, "low": nominal - 0.03, "high": nominal + 0.03}


def make_tables():
    rng = np.random.default_rng(0)
    ranks = {"level": bin_counts(rng.random(1000)), "slope": bin_counts(rng.beta(0.3, 0.3, 1000))}
    band = {"to rank": np.arange(1, 21) / 20, "low": np.full(20, 27), "high": np.full(20, 75)}
    slices = {"slice": ["size", "size"], "value": ["1 to 3", "4"], "units": [500, 500], "found": [0.9, 0.4]}
    slices |= {"of": ["level", "level"], "nominal": [0.9, 0.9], "low": [0.87, 0.87], "high": [0.93, 0.93]}
    predictive = {"statistic": ["mean of y", "sd of y"], "units": [30, 30], "observed": [1.0, 2.0], "p": [0.4, 0.01]}
    predictive |= {"replicated": [1.1, 1.0], "sds_apart": [-0.3, 5.0], "share_extreme": [0.0, 0.4]}
    latents = {"latent": ["level", "slope"], "kl": [2.0, 0.0], "activity": [1.0, 0.0], "verdict": ["active", "gave up"]}
    gaps = {"gap": ["approximation", "amortization"], "nats": [0.3, np.nan], "se": [0.02, np.nan]}
    tables = {"ranks": band | ranks, "coverage": coverage_table({"level": 0.01, "slope": -0.2})}
    tables |= {"slices": slices, "latents": latents, "predictive": predictive, "gaps": gaps}
    return {title: {name: np.asarray(x) for name, x in table.items()} for title, table in tables.items()}


def make_report(n=N, **changes):
    k = np.linspace(-0.2, 1.2, n)
    k[:3] = FLAT_K
    shift = np.linspace(0.1, 0.9, n)
    shift[-1:] = 30.0
    verdict = np.where(k > 0.7, "FAIL", np.where(shift > 1, "WARN", "PASS"))
    units = {"clinic": LABELS[:n], "verdict": verdict, "reason": np.where(verdict == "PASS", "", "pareto-k")}
    units |= {"next_step": np.where(verdict == "PASS", "none", "refine"), "pareto_k": k, "pareto_k_worst": k}
    units |= {"ess": np.full(n, 300.0), "input_shift": shift, "context_shift": 0.5 * shift}
    reasons = (Reason("pareto-k", "FAIL", "11 of 30 units have a Pareto k above 0.63.", "posterior.refine(units)"),)
    parts = {"verdict": "FAIL", "reasons": reasons, "units": units, "numbers": {"k_limit": 0.63, "coverage_90": 0.7}}
    parts |= {"unit_name": "clinic", "about": {"model": "m"}, "tables": make_tables()}
    return Report(**{**parts, **changes})


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def draws():
    """(sampled, refined): the first ten units left alone, the others moved, one of them in vain."""
    values = np.random.default_rng(1).normal(size=(400, N))
    rung = np.array(["encoder"] * 10 + ["own"] * 15 + ["hmc"] * 5)
    verdict = np.array(["PASS"] * (N - 1) + ["FAIL"])
    moved = np.where(rung == "encoder", values, 2.0 * values + np.arange(N))
    sampled = xarray.Dataset({"level": (("sample", "clinic"), values)}, coords={"clinic": LABELS})
    told = {"rung": ("clinic", rung), "verdict": ("clinic", verdict), "seconds": ("clinic", np.full(N, 0.1))}
    return sampled, sampled.assign(level=(("sample", "clinic"), moved), **told)


@pytest.fixture(scope="module")
def data():
    lengths = np.arange(N) % 3 + 1
    x = np.arange(3.0)[None] + np.arange(N)[:, None]
    mask = np.arange(3)[None] < lengths[:, None]
    return Units({"x": x, "size": np.arange(N)}, {"x": mask}, {"x": lengths}, LABELS, "clinic")


def drawings(report, draws, data):
    """Every picture of a report, by name, as functions of `ax`."""
    sampled, refined = draws
    three = [0.1, 0.5, 0.9]
    return {
        "ranks": lambda ax: plots.rank_histogram(report.tables["ranks"]["slope"], name="slope", ax=ax),
        "coverage": lambda ax: plots.coverage_curve(report, ax=ax),
        "shift": lambda ax: plots.k_against_shift(report, ax=ax),
        "k": lambda ax: plots.pareto_k_by_unit(report.units["pareto_k"], 0.7, ax=ax),
        "worst": lambda ax: plots.worst_units(report, sampled, refined=refined, data=data, ax=ax),
        "gaps": lambda ax: plots.gap_bars(report, ax=ax),
        "training": lambda ax: plots.training_curve([0, 10, 20], [-90.0, -3.0, -2.9], ax=ax),
        "repair": lambda ax: plots.before_and_after(sampled, refined, ax=ax),
        "exact": lambda ax: plots.intervals_against_exact(
            ["a", "b", "$"], (three,) * 3, (three,) * 3, [3, 1, 2], ax=ax
        ),
    }


NAMES = ("ranks", "coverage", "shift", "k", "worst", "gaps", "training", "repair", "exact")


@pytest.mark.parametrize("name", NAMES)
def test_axes_are_returned_the_given_ones_where_some_are_given(name, report, draws, data):
    draw = drawings(report, draws, data)[name]
    given = Figure().add_subplot()
    assert draw(given) is given
    assert given.has_data()
    own = draw(None)
    assert own.figure is not given.figure
    assert plots.figure_png(own.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_over_another_or_outside(name, report, draws, data):
    axes = drawings(report, draws, data)[name](None)
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(lambda x: hasattr(x, "get_text")) if text.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_visible() and _shown(t, axes)]
    assert len(boxes) > 3
    for text, box in boxes:
        assert min(box.x0, box.y0) >= -1, text
        assert max(box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 1, text
    for i, (first, one) in enumerate(boxes):
        for second, other in boxes[i + 1 :]:
            assert first == second or not _overlap(one, other), (first, second)


def _shown(text, axes):
    """Tick labels out of the limits are there, but not drawn."""
    if text not in (*axes.get_xticklabels(), *axes.get_xticklabels(minor=True), *axes.get_yticklabels()):
        return not any(text in (*a.get_xticklabels(which="both"),) for a in axes.child_axes)
    box, x, y = axes.get_window_extent(), *axes.transData.transform(text.get_position())
    return box.x0 - 1 <= x <= box.x1 + 1 if text in axes.get_xticklabels() else box.y0 - 1 <= y <= box.y1 + 1


def _overlap(one, other):
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide > 1 and high > 1


def test_bins_outside_the_band_of_chance_stand_out(report):
    counts = report.tables["ranks"]["slope"]
    low, high = bin_band(1000, 0.99)
    bars = plots.rank_histogram(counts).patches
    bars = [bar for bar in bars if bar.get_width() < 0.1]
    assert [bar.get_height() for bar in bars] == counts.tolist()
    out = (counts < low) | (counts > high)
    assert out.any()
    assert not out.all()
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == np.where(out, ORANGE, BLUE).tolist()


def test_the_most_uneven_sites_have_panels():
    rng = np.random.default_rng(3)
    table = {f"z[{i}]": bin_counts(rng.random(1000)) for i in range(20)} | {"bad": np.eye(20, dtype=int)[0] * 500}
    panels = plots.rank_histograms(table)
    assert len(panels) == 12
    assert "bad" in [panel.get_title() for panel in panels]
    assert "12 most uneven of 21" in panels[0].figure.get_suptitle()
    assert [panel.get_title() for panel in plots.rank_histograms(make_report())] == ["level", "slope"]
    with pytest.raises(DataError, match="no site with a count"):
        plots.rank_histograms({"z": np.zeros(20, int)})


def test_curves_outside_their_band_are_named_first(report):
    axes = plots.coverage_curve(report)
    names = [label for label in axes.get_legend_handles_labels()[1] if label != "by chance"]
    assert names == ["slope (outside)", "level"]
    line = next(line for line in axes.lines if line.get_label() == "level")
    np.testing.assert_allclose(line.get_ydata(), LEVELS + 0.01)
    many = coverage_table({f"z[{i}]": 0.0 for i in range(9)})
    assert "3 more" in plots.coverage_curve(many).get_legend_handles_labels()[1]


def test_every_unit_is_a_point_and_flat_ones_are_at_the_bottom(report):
    axes = plots.k_against_shift(report)
    points = np.concatenate([np.asarray(each.get_offsets()) for each in axes.collections])
    assert len(points) == N
    assert np.sum(points[:, 1] == points[:, 1].min()) == 3  # the flat ones
    assert points[:, 1].min() > FLAT_K
    assert axes.get_xscale() == "symlog"
    assert {"PASS: 19", "FAIL: 11"} == set(axes.get_legend_handles_labels()[1])
    broken = {**report.units, "pareto_k_worst": np.where(np.arange(N) < 4, np.nan, 0.1)}
    labels = plots.k_against_shift(broken, 0.7).get_legend_handles_labels()[1]
    assert "not finite, not drawn: 4" in labels


def test_k_against_shift_needs_shift(report):
    units = {name: x for name, x in report.units.items() if "shift" not in name}
    with pytest.raises(DataError, match="pareto_k_by_unit"):
        plots.k_against_shift(units)
    found = plots.pictures(make_report(units=units, tables={}))
    assert list(found) == ["How far to trust each unit"]


def test_worst_units_are_on_top_with_their_intervals_and_data(report, draws, data):
    axes = plots.worst_units(report, draws[0], data=data, count=4)
    labels = report.worst(4)["clinic"]
    assert [text.get_text()[:9] for text in axes.get_yticklabels()] == [label[:9] for label in labels]
    middle = next(line for line in axes.lines if len(line.get_xdata()) == 4).get_xdata()
    np.testing.assert_allclose(middle, np.median(draws[0]["level"].sel(clinic=labels).values, axis=0))
    beside = axes.child_axes[0].get_yticklabels()[0].get_text()
    assert beside.startswith("FAIL pareto-k, k 1.20\n3 rows, x 30 ± 0.816, size 29")
    assert summary_of(data, LABELS[0]) == "1 rows, x 0, size 0"
    with pytest.raises(DataError, match="no site 'other'"):
        plots.worst_units(report, draws[0], site="other")
    with pytest.raises(DataError, match="among the draws"):
        plots.worst_units(report, draws[0].isel(clinic=[0]), count=3)


def test_moves_are_in_sds_of_the_repaired_draws(draws):
    sampled, refined = draws
    before, after = sampled["level"].values, refined["level"].values
    expected = np.abs(np.mean(after - before, axis=0)) / after.std(axis=0)
    np.testing.assert_allclose(moves(sampled, refined), expected, rtol=1e-12)
    labels = plots.before_and_after(sampled, refined).get_legend_handles_labels()[1]
    assert labels == ["encoder: 10", "repaired: 19", "FAIL: 1"]
    with pytest.raises(DataError, match="posterior.refine"):
        plots.before_and_after(sampled, sampled)
    with pytest.raises(DataError, match="differ in their 30 units"):
        plots.before_and_after(sampled.isel(clinic=slice(3)), refined)


def test_elements_that_a_unit_does_not_have_do_not_move():
    values = np.zeros((5, 2, 2))
    values[:, 0, 1] = np.nan
    first = xarray.Dataset({"z": (("sample", "unit", "row"), values)}, coords={"unit": [0, 1]})
    rungs = {"rung": ("unit", ["own", "own"]), "verdict": ("unit", ["PASS", "PASS"])}
    assert moves(first, first.assign(**rungs)).tolist() == [0.0, 0.0]


def test_gaps_that_are_not_known_have_no_bar(report):
    axes = plots.gap_bars(report)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["approximation: 0.300 ± 0.020"]
    with pytest.raises(DataError, match="no table 'gaps', only"):
        plots.gap_bars(make_report(tables={}))


class Page(HTMLParser):
    """Counts tags, keeps the pictures, and refuses what is not closed."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.headings = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def test_the_page_has_the_verdict_then_every_picture_then_tables(report, draws, data, tmp_path):
    sampled, refined = draws
    plots.write_html(report, tmp_path / "r.html", data=data, drawn=sampled, refined=refined)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert len(page.images) == 6
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    order = ["Why, and what to do", "How far to trust each unit", "The worst units, and their data"]
    order += ["Before and after repair", "Ranks of the truth among draws", "Coverage, found and nominal", "Gaps"]
    order += ["The numbers", "Ranks of the truth", "Coverage of intervals", "Coverage by slice", "Latents of a unit"]
    order += ["The data against replications of them", "What is lost where", "The units, worst first"]
    assert page.headings[: len(order)] == order


def test_there_is_no_picture_without_units():
    empty = make_report(0, verdict="PASS", reasons=(), tables={})
    assert plots.pictures(empty) == {}
    Page(empty.to_html())


def test_the_terminal_says_what_the_page_says(report):
    text = str(report)
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert re.search(r"slope +0\.300! +0\.600! +0\.700! +0\.750!", text)
    assert "1 of 2 outside the band of chance" in text
    assert "level, size 4 (500 units): 0.400 instead of 0.90" in text
    assert "latents: 1 of 2 active; idle: slope (gave up)" in text
    assert "sd of y: 2 in the data, 1 in replications, 5.0 sds apart, 40% of units extreme" in text
    assert re.search(r"approximation +0\.300 ± 0\.020", text)
    assert "Coverage of 90% intervals" not in text  # the table says it


def test_reasons_that_ask_for_the_same_say_so_once():
    reasons = [Reason(f"code-{i}", "WARN" if i % 2 else "FAIL", "words", "train longer") for i in range(9)]
    text = str(make_report(reasons=tuple(reasons)))
    assert text.count("train longer") == 1
    assert text.index("FAIL code-8") < text.index("WARN code-1")
    assert "and 3 more: WARN code-3, WARN code-5, WARN code-7" in text


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["plot_forest", "plot_posterior", "plot_density"])
def test_arviz_draws_what_was_sampled(name, draws):
    arviz = pytest.importorskip("arviz")
    few = draws[0].isel(clinic=slice(3)).assign_coords(clinic=["A", "B", "C"], sample=np.arange(400))
    axes = np.ravel(getattr(arviz, name)(to_datatree(few)["posterior"].to_dataset(), backend_kwargs={}, show=False))
    assert any(each.has_data() for each in axes)
    assert np.sum([bool(each.get_title()) for each in axes]) >= 1
