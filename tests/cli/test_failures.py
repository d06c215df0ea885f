"""What happens when something is wrong? One line, the right exit code, and nothing left on disk."""

import dataclasses
import signal
import subprocess
import sys

import pytest
from schools_job import amortax, seen_in, write_job

from amortax import load
from amortax.cli import answer, train
from amortax.cli.model_file import read_model


def refused(result, said, code=1):
    """The error is one line on standard error, without a traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    return True


def sample(workplace, folder, **changes):
    options = {
        "model": workplace.model,
        "data": workplace.path("new.csv"),
        "output": folder / "d.nc",
        "num-samples": 50,
    }
    posterior = changes.pop("posterior", workplace.path("schools.amx"))
    flags = changes.pop("flags", [])
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in {**options, **changes}.items()]
    return amortax("sample", posterior, *flags, *(item for pair in pairs for item in pair))


def with_model(folder, text):
    (folder / "m.py").write_text(text)
    return f"{folder / 'm.py'}:model"


def test_a_posterior_is_not_overwritten_unless_forced(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda job, show: trained(workplace))
    job = write_job(tmp_path)
    (tmp_path / "schools.amx").write_text("precious")
    before = seen_in(tmp_path)
    refused(amortax("fit", job), "schools.amx is already there; give --force to replace it")
    assert (tmp_path / "schools.amx").read_text() == "precious"
    assert seen_in(tmp_path) == before
    assert amortax("fit", job, "--force").exit_code == 0
    assert (tmp_path / "schools.amx").read_bytes()[:2] == b"PK"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("d.csv", "unknown kind of file '.csv'; expected .nc or .parquet"),
        ("absent/d.nc", "no such folder"),
        ("there.nc", "is already there; give --force"),
        ("folder.nc", "is a folder"),
    ],
)
def test_an_output_that_can_not_be_written_is_refused_before_any_work(workplace, tmp_path, output, said):
    (tmp_path / "there.nc").write_text("precious")
    (tmp_path / "folder.nc").mkdir()
    before = seen_in(tmp_path)
    refused(sample(workplace, tmp_path, output=tmp_path / output, model="absent.py:model"), said)
    assert seen_in(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("absent.py:model", "model file absent.py: no such file"),
        ("schools.py", "expected FILE.py:FUNCTION"),
        ("schools.amx:model", "is not a .py file"),
        ("{}:modle", "has no function 'modle'; did you mean 'model'?"),
        ("{}:zzz", "has no function 'zzz'; it defines model, other, careless"),
        ("{}:NUMBER", "'NUMBER' is a int, not a function"),
    ],
)
def test_a_model_that_is_not_there(workplace, tmp_path, model, said):
    refused(sample(workplace, tmp_path, model=model.format(workplace.path("schools.py"))), said)
    assert seen_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import numpy\n\nraise ValueError('no\\nluck')\n", "m.py, line 3 failed on import: ValueError: no luck"),
        ("def model(:\n", "m.py, line 1: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "m.py, line 2 failed on import: SystemExit: 3"),
        ("import a_module_that_is_not_there\n", "m.py, line 1 failed on import: ModuleNotFoundError"),
    ],
)
def test_a_model_file_that_raises(workplace, tmp_path, text, said):
    refused(sample(workplace, tmp_path, model=with_model(tmp_path, text)), said)
    assert seen_in(tmp_path) == {"m.py"}


def test_a_model_file_may_import_its_neighbours(workplace, tmp_path):
    (tmp_path / "neighbour.py").write_text((workplace.folder / "schools.py").read_text())
    path = list(sys.path)
    result = sample(workplace, tmp_path, model=with_model(tmp_path, "from neighbour import model\n"))
    assert result.exit_code == 0, result.output
    assert sys.path == path
    assert seen_in(tmp_path) == {"m.py", "neighbour.py", "d.nc"}


def test_another_model_than_the_trained_one(workplace, tmp_path):
    refused(sample(workplace, tmp_path, model=f"{workplace.path('schools.py')}:other"), "slope")
    refused(sample(workplace, tmp_path, model=f"{workplace.path('schools.py')}:careless"), "undefined_name")
    assert seen_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("school,size,x\nA,1,2\n", "no column 'y'; it has ['school', 'size', 'x']"),
        ("school,size,x,y\nA,1,2,3\nA,1,two,3\n", "line 3, column 'x'"),
        ("school,size,x,y\nA,1,2,3\nA,7,2,3\n", "a unit column has one value per unit"),
    ],
)
def test_a_new_table_that_does_not_fit(workplace, tmp_path, text, said):
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    before = seen_in(tmp_path)
    refused(sample(workplace, tmp_path, data=tmp_path / "t.csv"), said)
    assert seen_in(tmp_path) == before


def test_a_posterior_file_that_is_none(workplace, tmp_path):
    refused(sample(workplace, tmp_path, posterior="absent.amx"), "absent.amx")
    refused(amortax("info", workplace.path("pupils.csv")), "pupils.csv")
    whole = (workplace.folder / "schools.amx").read_bytes()
    (tmp_path / "flipped.amx").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    refused(amortax("info", tmp_path / "flipped.amx"), "flipped.amx")
    refused(sample(workplace, tmp_path, posterior=tmp_path / "flipped.amx"), "flipped.amx")


def trained(workplace):
    return load(workplace.folder / "schools.amx", read_model(workplace.model))


def test_a_posterior_of_arrays_is_not_for_tables(workplace, tmp_path):
    dataclasses.replace(trained(workplace), schema=None).save(tmp_path / "a.amx")
    refused(sample(workplace, tmp_path, posterior=tmp_path / "a.amx"), "was trained on arrays, not on a table")
    assert "trained on arrays" in amortax("info", tmp_path / "a.amx").stdout


def test_wrong_usage_exits_with_2(workplace):
    assert amortax("fit").exit_code == 2
    assert amortax("refine").exit_code == 2
    assert amortax("sample", workplace.path("schools.amx"), "--model", workplace.model).exit_code == 2
    assert amortax("fit", "job.toml", "--num-steps", 0).exit_code == 2


def test_nothing_stays_behind_when_writing_fails(workplace, tmp_path, monkeypatch):
    def full(dataset, path, **options):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("xarray.Dataset.to_netcdf", full)
    refused(sample(workplace, tmp_path), "No space left on device")
    assert seen_in(tmp_path) == set()
    (tmp_path / "d.nc").write_text("precious")
    refused(sample(workplace, tmp_path, flags=["--force"]), "No space left on device")
    assert (tmp_path / "d.nc").read_text() == "precious"


def test_what_nobody_foresaw_is_one_line_and_debug_has_the_rest(workplace, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(answer, "opened", broken)
    refused(sample(workplace, tmp_path), "ZeroDivisionError: surprise (unexpected; --debug shows where")
    result = sample(workplace, tmp_path, flags=["--debug"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_in_training_saves_the_best_so_far(tmp_path, monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("amortax.train.progress.Progress.update", pressed)
    result = amortax("fit", write_job(tmp_path), "--num-steps", 200)
    assert result.exit_code == 130, result.output
    assert "interrupted, the best so far was kept" in result.stdout
    assert seen_in(tmp_path) == {"schools.py", "schools.toml", "pupils.csv", "schools.amx"}
    assert "interrupted" in amortax("info", tmp_path / "schools.amx").stdout


def test_ctrl_c_before_training_leaves_nothing(tmp_path):
    job = write_job(tmp_path)
    (tmp_path / "schools.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    before = seen_in(tmp_path)
    command = [sys.executable, "-c", "from amortax.cli import main; main()", "fit", str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert seen_in(tmp_path) == before
