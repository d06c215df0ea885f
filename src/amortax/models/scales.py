"""Is this a scale, or a prior of one? What the models are given as a number that is known or as a distribution."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist

from .._errors import ModelError

__all__ = ["check_positive", "check_prior", "known_or_drawn"]


def check_positive(who: str, value: Any) -> None:
    """Raises `ModelError` for a number that is not positive and finite."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ModelError(f"{who} must be a positive number, got {value!r}")


def check_prior(who: str, prior: Any, *, positive: bool = True, known: bool = True) -> None:
    """Raises `ModelError` unless `prior` is a distribution (on positive numbers alone), or a number where `known`."""
    if isinstance(prior, dist.Distribution):
        support: Any = prior.support
        support = getattr(support, "base_constraint", support)
        if positive and not np.all(np.asarray(getattr(support, "lower_bound", -1.0)) >= 0):
            raise ModelError(
                f"{who} is a scale, and its prior {type(prior).__name__} has the support {prior.support}; give one on "
                "positive numbers, numpyro.distributions.HalfNormal(1.0) say"
            )
    elif isinstance(prior, type | str) or prior is None or not known:
        call = f"; call it, {prior.__name__}(...)" if isinstance(prior, type) else ""
        either = "a NumPyro distribution" + " or a number" * known
        raise ModelError(f"{who} must be {either}, got {prior!r}{call}")
    elif isinstance(prior, numbers.Real) and positive:
        check_positive(who, prior)


def known_or_drawn(name: str, prior: dist.Distribution | float) -> Any:
    """The number, or a draw of the site `name`."""
    return numpyro.sample(name, prior) if isinstance(prior, dist.Distribution) else prior
