"""What does a check run? `Checks`: how much of every part; 0 leaves one out, and the report says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .._errors import DataError
from .._types import whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks:
    """How much of every part `posterior.check` runs.

    Args:
        num_samples: draws of each unit per draw of the globals, for weights, k-hat and bounds.
        simulated_units: units simulated from the model at draws of q(v), for ranks and coverage; 0 leaves these out.
        rank_draws: draws of q among which a simulated unit's true numbers are ranked.
        gap_units: units refined one by one, to measure what the family and the encoder lose; 0 leaves this out.
        latent_units: units whose latents are compared with their prior, and components with each other; 0 leaves this
            out.
        predictive_draws: data sets replicated per unit for posterior-predictive checks; 0 leaves these out.
        statistics: name -> function of one unit's arguments (a dict of arrays without the unit axis) to a number, for
            posterior-predictive checks beside the mean, spread and extremes of every response.
        slices: name -> one number or label for each unit of `data`, by which the report groups them.

    Raises:
        DataError: where a count is no whole number.

    """

    num_samples: int = 500
    simulated_units: int = 2000
    rank_draws: int = 99
    gap_units: int = 32
    latent_units: int = 500
    predictive_draws: int = 200
    statistics: Mapping[str, Callable[[dict[str, Any]], Any]] = dataclasses.field(default_factory=dict)
    slices: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_samples", "rank_draws"):
            whole_number(f"Checks({name}=)", getattr(self, name))
        for name in ("simulated_units", "gap_units", "latent_units", "predictive_draws"):
            if getattr(self, name) != 0:
                whole_number(f"Checks({name}=)", getattr(self, name))
        for name, function in self.statistics.items():
            if not callable(function):
                raise DataError(
                    f"Checks(statistics=): '{name}' is {type(function).__name__}; give a function of a unit"
                )
