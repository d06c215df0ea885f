"""Recipes: what is to be built once shapes are known; frozen, comparable, and written as JSON.

A recipe is a frozen dataclass whose fields are numbers, strings, tuples or other recipes. It is named by its class,
in lower case as users write it (`dense(width=64)`), and builds a module named in CamelCase (`Dense`). It knows which
arguments of `amortize` take it, its slots, and refuses options that are none when it is made.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ._errors import ArtifactError, GuideError
from ._types import whole_number

FROM_ZERO = ("depth", "rank", "most")  # options that may be 0; other whole numbers start at 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of every recipe."""

    build: ClassVar[Callable[..., Any]]
    slots: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, slots: tuple[str, ...] = ()) -> None:
        """`class dense(Recipe, slots=("encoder",))`: the arguments of `amortize` that take it."""
        cls.slots = slots

    def __post_init__(self) -> None:
        """Raises `GuideError` for an option that is not what its annotation says."""
        for field in dataclasses.fields(self):
            checked = _option(f"am.{type(self).__name__}: {field.name}", field, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    def to_json(self) -> dict[str, Any]:
        """`{"recipe": name, option: value, ...}` with nested recipes written the same way."""
        options = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"recipe": type(self).__name__, **options}


def _option(name: str, field: dataclasses.Field, value: Any) -> Any:
    """The value of an option, if it is one."""
    kinds = re.findall(r"\w+", str(field.type))
    if value is None and "None" in kinds:
        return value
    if "int" in kinds:
        if field.name in FROM_ZERO and not isinstance(value, bool) and value == 0:
            return 0
        try:
            return whole_number(name, value, GuideError)
        except GuideError:
            least = int(field.name not in FROM_ZERO)
            raise GuideError(f"{name} must be a whole number from {least}, got {value!r}") from None
    if kinds[0] == "tuple":
        wrong, wanted = not isinstance(value, tuple), "left out: amortize reads it from the model"
    elif kinds[0] == "bool":
        wrong, wanted = not isinstance(value, bool), "True or False"
    elif kinds[0] == "float":
        wrong, wanted = not (isinstance(value, numbers.Real) and math.isfinite(value)), "a finite number"
    else:
        wrong, wanted = not isinstance(value, Recipe), "a recipe, am.full() say"
    if wrong:
        raise GuideError(f"{name} must be {wanted}, got {value!r}")
    return value


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
