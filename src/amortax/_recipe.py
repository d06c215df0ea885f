"""Recipes: what is to be built once shapes are known; frozen, comparable, and written as JSON.

A recipe is a frozen dataclass whose fields are numbers, strings, tuples or other recipes. It is named by its class,
in lower case as users write it (`dense(width=64)`), and builds a module named in CamelCase (`Dense`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ._errors import ArtifactError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of every recipe."""

    build: ClassVar[Callable[..., Any]]

    def to_json(self) -> dict[str, Any]:
        """`{"recipe": name, option: value, ...}` with nested recipes written the same way."""
        options = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"recipe": type(self).__name__, **options}


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def from_json(spec: Any, table: Mapping[str, type[Recipe]]) -> Any:
    """The recipe that `to_json` wrote; `table` lists those that may be named, unknown names and options are errors."""
    if isinstance(spec, list):
        return tuple(from_json(item, table) for item in spec)
    if not isinstance(spec, dict):
        return spec
    options = dict(spec)
    name = options.pop("recipe", None)
    if name not in table:
        raise ArtifactError(f"recipe {name!r} is not one of {sorted(table)}; the file was written by another version")
    known = {field.name for field in dataclasses.fields(table[name])}
    if unknown := set(options) - known:
        raise ArtifactError(f"recipe {name!r} has no option {sorted(unknown)}; it has {sorted(known)}")
    return table[name](**{key: from_json(value, table) for key, value in options.items()})
