"""What is in a posterior file? Plan, training record, columns and versions, read without the model."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any


def describe_file(path: Path) -> str:
    """The description that `amortax info` prints.

    Raises:
        ArtifactError: where the file is damaged, or not a posterior.

    """
    from ..stored import read_posterior

    plan, record, schema, arrays, _ = read_posterior(path, _no_model)
    numbers = sum(array.size for array in arrays.values())
    parts = [
        f"{path}: {path.stat().st_size:,} bytes, {len(arrays)} arrays, {numbers:,} numbers",
        str(plan),
        "\n".join([describe_record(record), f"training data: SHA-256 {record.data_fingerprint}"]),
        _columns(schema),
        f"made with {', '.join(f'{name} {_version(name, version)}' for name, version in record.versions)}",
    ]
    return "\n\n".join(parts)


def describe_record(record: Any) -> str:
    """The training run in words."""
    said = {
        "converged": "the bound stopped rising",
        "num_steps": "as asked",
        "limit": "the limit, before the bound stopped rising",
        "interrupted": "interrupted, the best so far was kept",
        "validation": "the bound of the held-out units stopped rising",
    }
    speed = f"{record.num_steps:,} steps of {record.batch_size:,} units in {record.seconds:.1f} s"
    lines = [f"trained on {record.num_units:,} units: {speed} ({said.get(record.stopped, record.stopped)})"]
    if record.elbo_per_unit:
        lines.append(f"ELBO of the last steps: {record.elbo_per_unit[-1]:.4f} nats per unit")
    if record.skipped_steps:
        lines.append(f"steps rolled back because a number was not finite: {record.skipped_steps}")
    return "\n".join(lines)


def _columns(schema: Any) -> str:
    if schema is None:
        return "trained on arrays, not on a table: answer for new units in Python"
    coded = {name: f"one of {', '.join(map(str, labels))}" for name, labels in schema.categories.items()}
    kinds = {name: coded.get(name, schema.dtypes.get(name, "")) for name in (*schema.columns, *schema.unit_columns)}
    lines = [f"a new table needs the columns\n  {schema.unit} (names the unit of a row)"]
    lines += [f"  {name} ({kinds[name]})" for name in schema.columns]
    lines += [f"  {name} ({kinds[name]}, the same in all rows of a unit)" for name in schema.unit_columns]
    return "\n".join(lines)


def _version(name: str, written: str) -> str:
    """The version that wrote the file, and the one here if it is another."""
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return written
    return written if here == written else f"{written} (here: {here})"


def _no_model() -> None:
    """Stands for the model, which a description does not run."""
