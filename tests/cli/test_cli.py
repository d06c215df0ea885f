"""Do the commands do what they say, end to end, and are their outputs readable by others?"""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import xarray
from schools_job import amortax, seen_in, write_job


@pytest.fixture(scope="module")
def sampled(workplace, tmp_path_factory):
    """One run of `sample` for each form of output; the folder that holds them."""
    folder = tmp_path_factory.mktemp("draws")
    for name, more in (("d.nc", []), ("d.parquet", []), ("s.csv", ["--summary"]), ("s.parquet", ["--summary"])):
        common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--num-samples", 200]
        result = amortax("sample", workplace.path("schools.amx"), *common, "--output", folder / name, *more)
        assert result.exit_code == 0, result.output
        assert "for 3 units of 'school'" in result.stdout
    return folder


NO_PARTS = ["--simulated-units", 0, "--gap-units", 0, "--predictive-draws", 0]


def check(workplace, *more, parts=NO_PARTS):
    common = ["--model", workplace.model, "--data", workplace.path("pupils.csv"), "--num-samples", 100]
    return amortax("check", workplace.path("schools.amx"), *common, *parts, *more)


def test_fit_shows_the_plan_the_run_and_where_it_was_saved(workplace):
    assert workplace.fitted.exit_code == 0, workplace.fitted.output
    assert "amortized over plate 'school'" in workplace.fitted.stdout
    assert "trained on 8 units: 20 steps of 8 units" in workplace.fitted.stdout
    assert workplace.fitted.stdout.endswith(f"saved to {workplace.path('schools.amx')}\n")
    assert workplace.fitted.stderr == ""


def test_fit_leaves_nothing_but_the_posterior(workplace):
    known = {"schools.py", "schools.toml", "pupils.csv", "new.csv", "schools.amx"}
    assert {name for name in seen_in(workplace.folder) if not name.startswith("out")} == known


def test_options_of_fit_replace_those_of_the_job(workplace, tmp_path):
    job, output = write_job(tmp_path), tmp_path / "mine.amx"
    first = amortax("fit", job, "--num-steps", 3, "--seed", 5, "--output", output)
    assert first.exit_code == 0, first.output
    assert "3 steps" in first.stdout
    assert output.exists()
    assert not (tmp_path / "schools.amx").exists()
    assert "output" in amortax("fit", job, "--output", output).stderr


def test_netcdf_has_named_dimensions_and_labels(sampled):
    draws = xarray.open_dataset(sampled / "d.nc", engine="h5netcdf")
    assert draws["school"].values.tolist() == ["N0", "N1", "N2"]
    assert draws["level"].dims == ("sample", "school")
    assert draws["slope"].shape == (200, 2)


def test_parquet_rows_are_the_same_draws_with_the_globals_repeated(sampled):
    draws = xarray.load_dataset(sampled / "d.nc", engine="h5netcdf")
    table = pyarrow.parquet.read_table(sampled / "d.parquet")
    assert table.column_names == ["school", "sample", "slope[0]", "slope[1]", "spread", "level"]
    assert table.num_rows == 600
    columns = {name: np.asarray(table[name]).reshape(3, 200) for name in table.column_names}
    assert columns["school"][:, 0].tolist() == ["N0", "N1", "N2"]
    assert (columns["sample"] == np.arange(200)).all()
    np.testing.assert_array_equal(columns["level"], draws["level"].values.T)
    np.testing.assert_array_equal(columns["slope[1]"], np.tile(draws["slope"].values[:, 1], (3, 1)))


def test_a_summary_has_a_row_for_each_unit_and_number(sampled):
    draws = xarray.load_dataset(sampled / "d.nc", engine="h5netcdf")
    table = pyarrow.csv.read_csv(
        sampled / "s.csv", convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    )
    assert table.equals(pyarrow.parquet.read_table(sampled / "s.parquet"))
    rows = table.to_pylist()
    assert [row["site"] for row in rows] == ["slope[0]", "slope[1]", "spread", *["level"] * 3]
    assert [row["school"] for row in rows] == [None] * 3 + ["N0", "N1", "N2"]
    own = draws["level"].values[:, 1].astype(np.float64)
    wanted = [own.mean(), own.std(ddof=1), *np.quantile(own, [0.05, 0.5, 0.95])]
    np.testing.assert_allclose([rows[4][name] for name in ("mean", "sd", "q05", "q50", "q95")], wanted, rtol=1e-12)


def test_a_check_prints_and_writes_the_report(workplace, tmp_path):
    result = check(workplace, "--output", tmp_path / "r.html", "--units", tmp_path / "u.csv")
    verdict = result.stdout.split(":")[0]
    assert verdict in ("PASS", "WARN", "FAIL")
    assert result.exit_code == (3 if verdict == "FAIL" else 0)
    page = (tmp_path / "r.html").read_text()
    assert verdict in page
    assert "://" not in page
    assert page.count("data:image/png;base64,") == 3  # k of each unit, the worst units, the training
    assert "left out: Checks(simulated_units=0)" in page
    assert pyarrow.csv.read_csv(tmp_path / "u.csv")["school"].to_pylist() == [f"S{i}" for i in range(8)]
    assert seen_in(tmp_path) == {"r.html", "u.csv"}


def test_a_report_as_json_is_that_report(workplace, tmp_path):
    from amortax import Report

    result = check(workplace, "--output", tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    json.loads(text)
    assert str(Report.from_json(text)) in result.stdout


def test_other_units_need_the_training_table_to_judge_the_globals(workplace):
    common = ["--model", workplace.model, "--data", workplace.path("new.csv"), "--num-samples", 100, *NO_PARTS]
    without = amortax("check", workplace.path("schools.amx"), *common)
    assert "globals-unchecked" in without.stdout
    assert without.exit_code == 0
    assert amortax("check", workplace.path("schools.amx"), *common, "--strict").exit_code == 3
    beside = amortax("check", workplace.path("schools.amx"), *common, "--training", workplace.path("pupils.csv"))
    assert "Globals: Pareto k" in beside.stdout


def test_info_needs_no_model(workplace, tmp_path):
    file = tmp_path / "alone.amx"
    file.write_bytes((workplace.folder / "schools.amx").read_bytes())
    result = amortax("info", file)
    assert result.exit_code == 0, result.output
    for text in (
        "amortized over plate 'school'",
        "20 steps",
        "school (names the unit of a row)",
        "size (float32, the same",
    ):
        assert text in result.stdout
    assert re.search(r"made with amortax \d.*jax \d.*numpyro \d", result.stdout)


def test_every_command_has_an_example_and_help_is_quick():
    commands = ("fit", "sample", "check", "refine", "report", "info", "demo")
    for command in commands:
        assert f"Example:\n    amortax {command} " in amortax(command, "--help").stdout
    job = amortax("fit", "--help").stdout
    assert '\n    plate = "county"\n    [data]\n' in job  # the lines of the job file, as they are written
    assert "\\b" not in job
    start = time.perf_counter()
    listed = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60, check=True)
    assert all(f"\n  {command} " in listed.stdout for command in commands)
    assert listed.stderr == "[]"
    assert time.perf_counter() - start < 5.0


HELP = """
import sys
sys.argv = ["amortax", "--help"]
from amortax.cli import main
try:
    main()
finally:
    print([name for name in ("jax", "numpyro", "xarray", "pyarrow", "matplotlib", "equinox") if name in sys.modules],
          end="", file=sys.stderr)
"""


def test_version():
    from amortax import __version__

    assert amortax("--version").stdout == f"amortax {__version__}\n"


def test_labels_complete_in_training_may_be_missing_later_if_the_job_says_so(tmp_path):
    (tmp_path / "m.py").write_text(
        "import numpyro\nimport numpyro.distributions as dist\n\n\n"
        "def model(x, passed):\n"
        '    with numpyro.plate("pupil", x.shape[0]):\n'
        '        p = numpyro.sample("p", dist.Bernoulli(0.5), obs=passed)\n'
        '        numpyro.sample("x", dist.Normal(2.0 * p, 1.0), obs=x)\n'
    )
    (tmp_path / "known.csv").write_text("pupil,x,passed\n" + "".join(f"P{i},{i % 3}.0,{i % 2}\n" for i in range(8)))
    (tmp_path / "new.csv").write_text("pupil,x,passed\nA,0.5,\nB,1.5,1\n")
    job = tmp_path / "m.toml"
    text = 'model = "m.py:model"\nplate = "pupil"\n[data]\npath = "known.csv"\nunit = "pupil"\n'
    text += 'unit_columns = ["x", "passed"]\n[fit]\nnum_steps = 1\n'
    arguments = ["sample", tmp_path / "m.amx", "--model", f"{tmp_path / 'm.py'}:model", "--data", tmp_path / "new.csv"]
    job.write_text(text.replace("[fit]", 'missing = ["passed"]\n[fit]'))
    assert amortax("fit", job).exit_code == 0
    result = amortax(*arguments, "--output", tmp_path / "d.nc")
    assert result.exit_code == 0, result.output
    draws = xarray.load_dataset(tmp_path / "d.nc", engine="h5netcdf")
    assert set(np.unique(draws["p"].values[..., 1])) == {1}
