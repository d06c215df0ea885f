"""Which objective does a job name? `objective` in the table [fit]: a name, a table with options, or a list to add up.

objective = "wake_sleep"
objective = { name = "iwelbo", num_particles = 8 }
objective = ["elbo", { name = "forward_kl", weight = 0.5 }]
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from ..objectives.base import AbstractObjective

WORDS = 'an objective, "elbo" or { name = "iwelbo", num_particles = 8 }, or a list of them'
WEIGHT = "weight"


def names_objective(value: Any) -> bool:
    """Whether `value` has the form of one."""
    if isinstance(value, list):
        return bool(value) and all(names_objective(item) and not isinstance(item, list) for item in value)
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("name"), str))


def objective(where: str, value: Any) -> AbstractObjective | None:
    """The objective that `value` names, None for None; `where` begins the message of an error.

    Raises:
        InputError: for an objective that there isn't, an unknown option, or an option that it refuses.

    """
    if value is None:
        return None
    from .._errors import FitError
    from ..objectives.sum import Sum

    try:
        if not isinstance(value, list):
            if isinstance(value, dict) and WEIGHT in value:
                raise InputError(f"{where}: {WEIGHT!r} is for one of several objectives; a single one has none")
            return _one(where, value)[0]
        parts = [_one(where, item) for item in value]
        return Sum(*(each for each, _ in parts), weights=[weight for _, weight in parts])
    except FitError as error:
        raise InputError(f"{where}: {error}") from error


def _one(where: str, value: Any) -> tuple[AbstractObjective, float]:
    """An objective and its weight in a sum."""
    from ..objectives import elbo, forward, iwelbo, wake_sleep

    table = {
        "elbo": elbo.ELBO,
        "iwelbo": iwelbo.IWELBO,
        "renyi": iwelbo.Renyi,
        "forward_kl": forward.ForwardKL,
        "wake_sleep": wake_sleep.WakeSleep,
    }
    options: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    name, weight = options.pop("name"), options.pop(WEIGHT, 1.0)
    if name not in table:
        raise InputError(f"{where}: expected one of the objectives {', '.join(table)}, got {name!r}")
    fields = {field.name: field for field in dataclasses.fields(table[name])}
    for option, given in options.items():
        if option not in fields:
            raise InputError(f"{where}: objective {name!r} has no option {option!r}; it has {', '.join(fields)}")
        if not isinstance(given, bool | int | float):
            raise InputError(f"{where}: option {option!r}: expected a number, got {given!r}")
    missing = [n for n, field in fields.items() if field.default is dataclasses.MISSING and n not in options]
    if missing:
        raise InputError(f"{where}: objective {name!r} needs the option {missing[0]!r}")
    return table[name](**options), weight
