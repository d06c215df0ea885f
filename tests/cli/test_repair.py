"""Do `refine` and `report` say what repair did, in words, files and exit codes?"""

import re

import numpy as np
import pyarrow.parquet
import pytest
import xarray
from schools_job import amortax

from amortax.cli import repair
from amortax.cli.errors import InputError
from amortax.repair import by_rung


def dataset(verdicts):
    rung = np.array(["encoder", "own", "hmc", "hmc"])
    told = {"rung": ("school", rung), "verdict": ("school", np.array(verdicts)), "seconds": ("school", np.arange(4.0))}
    return xarray.Dataset(told, coords={"school": ["A", "B", "C", "D\x1b"]}, attrs={"globals_rung": "hmc"})


def test_rungs_are_counted():
    table = by_rung(dataset(["PASS", "PASS", "FAIL", "PASS"]))
    assert {name: column.tolist() for name, column in table.items()} == {
        "rung": ["encoder", "own", "hmc"],
        "units": [1, 1, 2],
        "PASS": [1, 1, 1],
        "FAIL": [0, 0, 1],
        "seconds": [0.0, 1.0, 5.0],
    }
    assert by_rung(xarray.Dataset()) == {}


def test_units_that_failed_are_named():
    said = repair.told(dataset(["PASS", "PASS", "FAIL", "FAIL"]), "school")
    assert re.search(r"^hmc +2 +0 +2 +5\.00$", said, re.MULTILINE)
    assert "FAIL, not to be relied on: school C, D?" in said
    assert "globals: hmc" in said
    assert "FAIL, not" not in repair.told(dataset(["PASS"] * 4), "school")


@pytest.mark.parametrize("budget", ["soon", "0", "-1", "nan"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(InputError, match=f"--budget {budget}: expected seconds above zero, or exact"):
        repair.seconds_or_exact(budget)


def test_budgets():
    assert [repair.seconds_or_exact(budget) for budget in (None, "exact", "2.5")] == [None, "exact", 2.5]


@pytest.fixture(scope="module")
def refined(workplace, tmp_path_factory):
    """(folder, result) of `refine` in either form."""
    folder = tmp_path_factory.mktemp("refined")
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--num-samples", 50]
    results = [
        amortax("refine", workplace.path("schools.amx"), *common, "--output", folder / name)
        for name in ("d.nc", "d.parquet")
    ]
    return folder, results


def test_refine_says_the_rung_of_every_unit(refined):
    folder, results = refined
    for result in results:
        assert result.exit_code in (0, 3), result.output
        assert "for 3 units of 'school'" in result.stdout
    draws = xarray.load_dataset(folder / "d.nc", engine="h5netcdf")
    assert draws["rung"].dims == ("school",)
    assert draws.attrs["globals_rung"] == "encoder"
    failed = bool((draws["verdict"] == "FAIL").any())
    assert results[0].exit_code == (3 if failed else 0)
    table = pyarrow.parquet.read_table(folder / "d.parquet")
    assert table.column_names[:5] == ["school", "sample", "rung", "verdict", "seconds"]
    assert table.num_rows == 150
    assert np.asarray(table["rung"]).reshape(3, 50)[:, 7].tolist() == draws["rung"].values.tolist()
    np.testing.assert_array_equal(np.asarray(table["level"]).reshape(3, 50), draws["level"].values.T)


def test_units_that_are_left_as_they_were_have_the_draws_of_sample(workplace, refined, tmp_path):
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--num-samples", 50]
    assert amortax("sample", workplace.path("schools.amx"), *common, "--output", tmp_path / "d.nc").exit_code == 0
    before = xarray.load_dataset(tmp_path / "d.nc", engine="h5netcdf")
    after = xarray.load_dataset(refined[0] / "d.nc", engine="h5netcdf")
    left = (after["rung"] == "encoder").values
    np.testing.assert_array_equal(before["level"].values[:, left], after["level"].values[:, left])
    np.testing.assert_array_equal(before["spread"].values, after["spread"].values)


def test_units_that_can_not_be_repaired_exit_with_3(workplace, tmp_path, monkeypatch):
    from amortax.posterior import Posterior

    def hopeless(self, units, *, num_samples, **_):
        plate = self.plan.structure.plate
        size = len(units)
        told = {"rung": (plate, ["hmc"] * size), "verdict": (plate, ["FAIL"] * size), "seconds": (plate, [0.1] * size)}
        level = (("sample", plate), np.zeros((num_samples, size)))
        return xarray.Dataset({"level": level, **told}, coords={plate: units.labels}, attrs={"globals_rung": "encoder"})

    monkeypatch.setattr(Posterior, "refine", hopeless)
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--output", tmp_path / "d.nc"]
    result = amortax("refine", workplace.path("schools.amx"), *common)
    assert result.exit_code == 3
    assert "FAIL, not to be relied on: school N0, N1, N2" in result.stdout
    assert (tmp_path / "d.nc").exists()


def test_a_report_with_repair_has_before_and_after(workplace, tmp_path):
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--output", tmp_path / "r.html"]
    common += ["--training", workplace.path("pupils.csv"), "--simulated-units", 0, "--gap-units", 0]
    result = amortax("report", workplace.path("schools.amx"), *common, "--predictive-draws", 0, "--refine")
    assert result.exit_code in (0, 3), result.output
    assert result.exit_code == (3 if result.stdout.startswith("FAIL") else 0)
    assert result.stdout.endswith(f"wrote {tmp_path / 'r.html'}\n")
    page = (tmp_path / "r.html").read_text()
    for heading in ("Before and after repair", "What repair did", "The worst units, and their data"):
        assert f"<h2>{heading}</h2>" in page
    again = amortax("report", workplace.path("schools.amx"), *common)
    assert again.exit_code == 1
    assert "already there" in again.stderr


def test_a_report_is_a_page(workplace, tmp_path):
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--output", tmp_path / "r.json"]
    result = amortax("report", workplace.path("schools.amx"), *common)
    assert result.exit_code == 1
    assert ".html" in result.stderr
