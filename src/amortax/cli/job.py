"""What does a job file say? TOML with the tables [data], [guide], [fit], [output], every key checked before any work.

model = "radon_model.py:model"      # FILE.py:FUNCTION; files are relative to the job file
plate = "county"                    # the plate whose elements are the units; left out: units are whole data sets
[data]
path = "radon.csv"                  # CSV or Parquet, one row per observation
unit = "county"                     # the column that names a row's unit
columns = ["floor", "log_radon"]    # one value per row
unit_columns = ["log_uranium"]      # optional: one value per unit
missing = ["passed"]                # optional: labels that may be missing later, though none is in this table
categories = { item = ["a", "b"] }  # optional: coded 0, 1, ...; item = "found" takes the labels of the table
[guide]                             # optional: what the model's structure would choose otherwise
encoder = { recipe = "deep_set", width = 32 }
family = "full"
[fit]                               # optional
num_steps = 2000
batch_size = 64
objective = "elbo"                  # or { name = "iwelbo", num_particles = 8 }, or a list of such to add up
seed = 0
[output]                            # optional
posterior = "radon.amx"             # default: the job file's name with .amx
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .objective import WORDS, names_objective

FOUND = "found"
ROLES = {
    "encoder": "encoders",
    "family": "families",
    "shared_family": "families",
    "head": "heads",
    "classifier": "families.discrete",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked job; all paths as they can be opened from here. `guide` and `objective` are what the file says."""

    file: Path
    model: str
    plate: str | None
    table: Path
    unit: str
    columns: tuple[str, ...]
    unit_columns: tuple[str, ...]
    missing: tuple[str, ...]
    categories: dict[str, tuple | None]
    guide: dict[str, Any]
    num_steps: int | None
    batch_size: int | None
    objective: Any
    seed: int
    posterior: Path


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a value must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]
    required: bool = False


def _whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _categories(value: Any) -> bool:
    return isinstance(value, dict) and all(labels == FOUND or isinstance(labels, list) for labels in value.values())


def _recipe(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("recipe"), str))


_TEXT = _Kind("a text", lambda value: isinstance(value, str) and value != "", required=True)
_COUNT = _Kind("a whole number from 1", lambda value: _whole(value, 1))
_COLUMNS = _Kind("a list of column names", _texts)
_RECIPE = _Kind('a recipe, "deep_set" or { recipe = "deep_set", width = 32 }', _recipe)
_TABLE = _Kind("a table", lambda value: isinstance(value, dict))
_KEYS: dict[str, dict[str, _Kind]] = {
    "": {
        "model": _TEXT,
        "plate": dataclasses.replace(_TEXT, required=False),
        "data": dataclasses.replace(_TABLE, required=True),
        "guide": _TABLE,
        "fit": _TABLE,
        "output": _TABLE,
    },
    "data": {
        "path": _TEXT,
        "unit": _TEXT,
        "columns": _COLUMNS,
        "unit_columns": _COLUMNS,
        "missing": _COLUMNS,
        "categories": _Kind('a table of column = ["label", ...] or column = "found"', _categories),
    },
    "guide": dict.fromkeys(ROLES, _RECIPE),
    "fit": {
        "num_steps": _COUNT,
        "batch_size": _COUNT,
        "objective": _Kind(WORDS, names_objective),
        "seed": _Kind("a whole number from 0", lambda value: _whole(value, 0)),
    },
    "output": {"posterior": dataclasses.replace(_TEXT, required=False)},
}


def read_job(path: Path) -> Job:
    """The job in the file.

    Raises:
        InputError: naming file, key, expected and got, for a file that is not a job.

    """
    spec = _parse(path)
    for table in _KEYS:
        _check(path, table, spec.get(table, {}) if table else spec)
    folder, data, fit = path.parent, spec["data"], spec.get("fit", {})
    given = data.get("categories", {})
    posterior = folder / spec.get("output", {}).get("posterior", path.with_suffix(".amx").name)
    return Job(
        file=path,
        model=spec["model"],
        plate=spec.get("plate"),
        table=folder / data["path"],
        unit=data["unit"],
        columns=tuple(data.get("columns", ())),
        unit_columns=tuple(data.get("unit_columns", ())),
        missing=tuple(data.get("missing", ())),
        categories={name: None if labels == FOUND else tuple(labels) for name, labels in given.items()},
        guide=spec.get("guide", {}),
        num_steps=fit.get("num_steps"),
        batch_size=fit.get("batch_size"),
        objective=fit.get("objective"),
        seed=fit.get("seed", 0),
        posterior=posterior,
    )


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix != ".toml":
        raise InputError(f"job file {path}: expected a .toml file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"job file {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"job file {path} can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"job file {path} is not TOML: {error}") from error


def _check(path: Path, table: str, found: Mapping[str, Any]) -> None:
    """Every key of one table is known, of its kind, and there if it must be."""
    known, before = _KEYS[table], f"{table}." if table else ""
    for key, value in found.items():
        if key not in known:
            raise InputError(f"{path}: unknown key '{before}{key}'{_suggestion(key, known)}")
        if not known[key].fits(value):
            raise InputError(f"{path}: key '{before}{key}': expected {known[key].words}, got {value!r}")
    for key, kind in known.items():
        if kind.required and key not in found:
            words = f"the table [{key}]" if kind.words == _TABLE.words else f"the key '{before}{key}' ({kind.words})"
            raise InputError(f"{path}: {words} is missing")


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    for table, keys in _KEYS.items():
        if table and key in keys:
            return f"; it belongs to the table [{table}]"
    return f"; expected some of {', '.join(known)}"


def recipes(job: Job) -> dict[str, Any]:
    """The recipes of the table [guide], by the argument of `amortize` that takes them.

    Raises:
        InputError: for a recipe that there isn't, one of another role, an unknown option, or an option of another type.

    """
    from ..recipes import RECIPES

    built = {}
    for role, value in job.guide.items():
        options = {"recipe": value} if isinstance(value, str) else dict(value)
        where, name = f"{job.file}: key 'guide.{role}'", options.pop("recipe")
        fitting = {n: r for n, r in RECIPES.items() if _room(r) == ROLES[role]}
        if name not in fitting:
            raise InputError(f"{where}: expected one of the recipes {', '.join(fitting)}, got {name!r}")
        kinds = typing.get_type_hints(fitting[name])
        known = {field.name: kinds[field.name] for field in dataclasses.fields(fitting[name])}
        for option, given in options.items():
            if option not in known:
                expected = f"it has {', '.join(known)}" if known else "it has none"
                raise InputError(f"{where}: recipe {name!r} has no option {option!r}; {expected}")
            kind = _COUNT if known[option] in (int, int | None) else _typed(known[option])
            if not kind.fits(given):
                raise InputError(f"{where}: option {option!r}: expected {kind.words}, got {given!r}")
        built[role] = fitting[name](**options)
    return built


def _room(recipe: type) -> str:
    """The part of the package that a recipe is from; q of a choice is no family of numbers."""
    room = recipe.__module__.split(".", 1)[1]
    return room if room in ROLES.values() else room.split(".")[0]


def _typed(hint: Any) -> _Kind:
    """A value of the type that a recipe's field is annotated with."""
    types = tuple(typing.get_origin(part) or part for part in typing.get_args(hint) or (hint,))
    return _Kind(str(getattr(hint, "__name__", hint)), lambda value: isinstance(value, types))
