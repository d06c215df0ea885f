"""What can go wrong, by whose doing: every error names who, where, expected, got, and the next step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class AmortaxError(Exception):
    """Base of every error that amortax raises on purpose; the command line prints it in one line."""


class DataError(AmortaxError, ValueError):
    """The data can't be used as given: names file, argument or column, row, and value."""


class ModelError(AmortaxError, ValueError):
    """The model can't be read or amortized: names the site, the reason, and what to write instead."""


class GuideError(AmortaxError, ValueError):
    """An encoder or family that doesn't fit the model: names the block and the choice that fits."""


class FitError(AmortaxError, RuntimeError):
    """Training could not go on: names the step, the number, and what to change."""


class ArtifactError(AmortaxError, ValueError):
    """A saved posterior that can't be trusted or used: names the file and the difference."""


def check_entries(what: str, stored: Any, needed: Collection[str], optional: Collection[str] = ()) -> None:
    """Raises `ArtifactError` unless `stored` is a mapping with all of `needed` and nothing besides but `optional`."""
    if not isinstance(stored, Mapping):
        raise ArtifactError(f"the {what} is a {type(stored).__name__}; expected the entries {sorted(needed)}")
    unknown, missing = sorted(set(stored) - {*needed, *optional}), sorted(set(needed) - set(stored))
    if unknown or missing:
        found = [f"unknown entries {unknown}"] * bool(unknown) + [f"no entries {missing}"] * bool(missing)
        raise ArtifactError(
            f"the {what} has {' and '.join(found)}; expected the entries {sorted({*needed, *optional})}; "
            "another version wrote it"
        )
