"""Does every file that amortax writes appear whole or not at all, on the disk and not only in its cache?"""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from amortax import demo
from amortax._errors import ArtifactError
from amortax._files import replacing, write_bytes
from amortax.artifact import write_artifact
from amortax.checks.report import Report
from amortax.cli.output import write_draws
from amortax.data import write_table

TABLE = {"school": ["a", "b"], "score": [1.0, 2.0]}


def report():
    units = {"school": np.array(["a"]), "verdict": np.array(["PASS"]), "reason": np.array([""])}
    return Report("PASS", (), units | {"next_step": np.array(["none"])}, {}, "school", {})


def draws():
    import xarray

    return xarray.Dataset({"z": (("sample", "school"), np.zeros((3, 2)))}, coords={"school": ["a", "b"]})


WRITERS = {
    "posterior.amx": lambda path: write_artifact(path, {}, {"x": np.zeros(3)}),
    "report.html": lambda path: report().write_html(path),
    "table.csv": lambda path: write_table(TABLE, path),
    "table.parquet": lambda path: write_table(TABLE, path),
    "draws.nc": lambda path: write_draws(draws(), path, plate="school", unit="school"),
    "draws.parquet": lambda path: write_draws(draws(), path, plate="school", unit="school"),
    "counties.png": lambda path: demo.write_bytes(path, b"picture"),
    "report.json": lambda path: write_bytes(path, b"{}"),
}
every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_data_reaches_the_disk_before_its_name_and_the_name_before_the_call_returns(name, tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def watched_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target) == str(tmp_path)
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    WRITERS[name](tmp_path / name)
    assert events == ["file", "rename", "folder"]


@every_writer
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(name, call, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises((OSError, ArtifactError), match="No space left on device"):
            WRITERS[name](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


@every_writer
def test_a_new_file_has_the_permissions_that_the_user_wants(name, tmp_path):
    previous = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o640


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    def interrupted(partial):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    for path in (tmp_path / "a.csv", tmp_path / ("long" * 60 + ".csv")):
        with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
            interrupted(partial)
        assert partial.suffix == path.suffix
        assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_beside_the_file_it_becomes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bytes("here.json", memoryview(b"{}"))
    assert Path("here.json").read_bytes() == b"{}"
