"""How are answers written to a file? NetCDF as xarray has them, or one flat table for a database or data frame.

The table of draws has one row for each unit and draw, sorted by unit, then `sample`. Its columns are the unit,
`sample`, then every site: a site of several numbers has a column for each, `theta[0]`, `theta[1]`, counted from 0
(nulls where a unit has fewer). Globals stand in every row again, so that a row is one joint draw of all that concerns
the unit, and so does what repair says of each unit (rung, verdict, seconds); repeated values take next to no room in
Parquet. The summary has one row per unit and number instead.

A file appears under its name only when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing
from .errors import InputError

CELLS_AT_ONCE = 10_000_000
QUANTILES = (0.05, 0.5, 0.95)


def check_output(path: Path, suffixes: Sequence[str], force: bool) -> None:
    """Raises `InputError` before any work if the file couldn't, or shouldn't, be written."""
    if path.suffix not in suffixes:
        raise InputError(f"output {path}: unknown kind of file {path.suffix!r}; expected {' or '.join(suffixes)}")
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"no such folder {path.parent}; make it first"
        raise InputError(f"output {path}: {what}")
    if path.exists() and not force:
        raise InputError(f"output {path} is already there; give --force to replace it")


def write_draws(draws: Any, path: Path, *, plate: str, unit: str) -> None:
    """The Dataset that `sample` returned, as .nc or .parquet; the table names its units by the column `unit`."""
    with replacing(path) as partial:
        if path.suffix == ".nc":
            draws.to_netcdf(partial, engine="h5netcdf")
        else:
            _write_rows(draws, partial, plate, unit)


def _write_rows(draws: Any, path: Path, plate: str, unit: str) -> None:
    import pyarrow.parquet as pq

    samples, labels = draws.sizes["sample"], np.asarray(draws[plate].values)
    columns = 2 + sum(1 for _ in _elements(draws, plate))
    step, writer = max(1, CELLS_AT_ONCE // (samples * columns)), None
    try:
        for start in range(0, len(labels), step):
            table = _rows(draws, plate, unit, labels, slice(start, start + step))
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _rows(draws: Any, plate: str, unit: str, labels: np.ndarray, block: slice) -> Any:
    """The rows of some units; every column has the same type in every block."""
    import pyarrow as pa

    samples, names = draws.sizes["sample"], labels[block]
    columns = {unit: np.repeat(names, samples), "sample": np.tile(np.arange(samples, dtype=np.int32), len(names))}
    for name, variable in draws.data_vars.items():
        if "sample" not in variable.dims:
            columns[str(name)] = np.repeat(np.asarray(variable.values)[block], samples)
    for name, values, per_unit in _elements(draws, plate):
        if name in columns:
            raise InputError(f"two columns of the table would be called {name!r}; write a .nc file")
        columns[name] = values[:, block].T.reshape(-1) if per_unit else np.tile(values, len(names))
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _elements(draws: Any, plate: str) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Every number of every site: `theta[0]`, its values (sample,) or (sample, unit), whether each unit has its own."""
    for name, variable in draws.data_vars.items():
        if "sample" not in variable.dims:
            continue
        values, per_unit = np.asarray(variable.values), plate in variable.dims
        shape = values.shape[1 + per_unit :]
        for index in np.ndindex(shape):
            place = f"[{','.join(map(str, index))}]" if index else ""
            yield f"{name}{place}", values[(slice(None),) * (1 + per_unit) + index], per_unit


def summary(draws: Any, *, plate: str, unit: str) -> dict[str, Any]:
    """Columns `unit`, site, mean, sd, q05, q50, q95: a row per number, globals first with no unit.

    A unit whose draws are no numbers has its rows, of NaN; what lies beyond a unit's own elements has none.
    """
    labels = np.asarray(draws[plate].values).tolist()
    rows: list[tuple] = []
    found = sorted(_elements(draws, plate), key=lambda element: element[2])  # globals first, else as they come
    firsts: dict[str, np.ndarray] = {}  # of every site, whether its first element is a number, unit by unit
    for name, values, per_unit in found:
        values = np.atleast_2d(values.astype(np.float64).T)
        moments = [
            values.mean(1),
            values.std(1, ddof=min(1, values.shape[1] - 1)),
            *np.quantile(values, QUANTILES, axis=1),
        ]
        real = firsts.setdefault(name.partition("[")[0], ~np.isnan(moments[0]))
        for label, has_first, *numbers in zip(labels if per_unit else [None], real, *moments, strict=True):
            if not (np.isnan(numbers[0]) and has_first):  # else beyond the unit's own elements
                rows.append((label, name, *numbers))
    names = (unit, "site", "mean", "sd", *(f"q{round(100 * level):02d}" for level in QUANTILES))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
