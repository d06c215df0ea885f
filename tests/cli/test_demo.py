"""Does the demo leave what it says, and, in full, does it agree with the exact posterior?"""

import re

import numpy as np
import pytest
from schools_job import amortax, seen_in

from amortax import demo
from amortax.demo_report import LIMITS, OWN_LIMITS, Comparison, table

FILES = {"training.csv", "new.csv", "radon_model.py", "radon.toml", "radon.amx", "report.html", "counties.png"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, outcome, what was said) of a demo too short to be right."""
    folder, said = tmp_path_factory.mktemp("demo") / "out", []
    outcome = demo.run(folder, num_steps=60, num_samples=200, show=said.append)
    return folder, outcome, "\n".join(said)


def test_it_leaves_its_files_and_no_others(small):
    folder, _, _ = small
    assert seen_in(folder) == FILES
    assert (folder / "counties.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(small):
    page = (small[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert "Effects of the 10 counties never seen" in page


def test_what_was_saved_draws_the_same(small):
    assert small[1].same_after_loading


def test_the_story_names_the_counties_and_a_verdict(small):
    said = small[2]
    for text in (
        "919 houses in 85 counties",
        "amortized over plate 'county'",
        "STEVENS",
        "log_radon_scale",
        "sd ratio",
    ):
        assert text in said
    assert "the same bit for bit" in said
    assert re.search(r"^(PASS|FAIL) in \d+ s", said, re.MULTILINE)


def test_what_is_flagged_is_repaired_and_compared_again(small):
    _, outcome, said = small
    page = (small[0] / "report.html").read_text()
    assert 'posterior.refine(..., budget="exact") in ' in said
    assert "before: largest |difference|" in said
    assert "after:  largest |difference|" in said
    assert outcome.repaired.keys() == outcome.comparisons.keys()
    for heading in ("Before and after repair", "What all counties share, before and after repair"):
        assert f"<h2>{heading}</h2>" in page
    labels = outcome.comparisons["Effects of the 10 counties never seen"].names
    flagged = [str(x) for x in np.array(labels)[outcome.report.units["verdict"] != "PASS"]]
    assert ("No county was flagged" in said) == (not flagged)
    assert all(re.search(rf"{label}, (WARN|FAIL) .*: \w+, (PASS|FAIL); ", said) for label in flagged)


def test_new_counties_are_not_in_the_training_table(small):
    rows = {name: (small[0] / name).read_text().splitlines()[1:] for name in ("training.csv", "new.csv")}
    counties = {name: {row.partition(",")[0] for row in lines} for name, lines in rows.items()}
    assert {name: len(found) for name, found in counties.items()} == {"training.csv": 75, "new.csv": 10}
    assert not counties["training.csv"] & counties["new.csv"]
    assert sum(map(len, rows.values())) == 919


def test_its_files_are_a_job_for_the_command_line(small, tmp_path):
    folder = small[0]
    common = ["--model", f"{folder / 'radon_model.py'}:model", "--data", folder / "new.csv", "--num-samples", 200]
    result = amortax("sample", folder / "radon.amx", *common, "--output", tmp_path / "d.nc")
    assert result.exit_code == 0, result.output
    assert "10 units of 'county'" in result.stdout


def test_an_earlier_demo_is_replaced(small):
    folder = small[0]
    demo.write_project(folder, every=True, seed=0, num_steps=60)
    assert not (folder / "new.csv").exists()
    demo.write_project(folder, every=False, seed=0, num_steps=60)
    assert seen_in(folder) == FILES


def comparison(**changes):
    parts = {"names": ["a", "county_effect_scale"], "mean": [0.1, 0.2], "sd": [1.0, 1.2]}
    parts |= {"exact_mean": [0.0, 0.0], "exact_sd": [1.0, 1.0], **changes}
    return Comparison(parts.pop("names"), *(np.array(column, float) for column in parts.values()))


def test_limits_are_kept_from_both_sides():
    assert comparison().within.tolist() == [True, True]
    assert comparison(mean=[-0.16, 0.31]).within.tolist() == [False, False]
    assert comparison(sd=[0.84, 1.26]).within.tolist() == [False, False]
    assert comparison(sd=[1.16, 0.74]).within.tolist() == [False, False]
    assert comparison(mean=[np.nan, 0.0]).within.tolist() == [False, True]
    assert "OUTSIDE" in table(comparison(mean=[1.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_the_whole_demo_agrees_with_the_exact_answer(tmp_path, every):
    outcome = demo.run(tmp_path, every=every)
    assert outcome.passed
    effects, shared = outcome.comparisons.values()
    assert len(effects.names) == (85 if every else 10)
    assert np.abs(effects.difference).max() <= LIMITS[0]
    assert effects.ratio.min() >= LIMITS[1]
    assert effects.ratio.max() <= LIMITS[2]
    far, low, high = np.array([OWN_LIMITS.get(name, LIMITS) for name in shared.names]).T
    assert (np.abs(shared.difference) <= far).all()
    assert ((shared.ratio >= low) & (shared.ratio <= high)).all()
