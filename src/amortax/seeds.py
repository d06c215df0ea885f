"""Would another key have given another answer? Posteriors of one model from several keys, beside each other.

For F fits, with mean m_f and sd s_f of each number (of a global, or of a unit's latent) from S draws,

    spread² = Var_f(m_f) / mean_f s_f²

is what the choice of the key adds to a posterior's own uncertainty; a site's is the root mean square over its numbers,
and its worst number is named. Of bounds, the spread over fits of the ELBO per unit. Fits draw with the same noise, of
which at most 1/S is left in spread². All fits may agree and be wrong alike: this sees what training leaves to chance,
not the distance from the exact posterior.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ._errors import DataError
from ._types import check_key, whole_number
from .evidence import evidence
from .posterior import Posterior

LIMIT = 0.1  # sd
BOUND_DRAWS = 200  # of each unit, for its ELBO
FEWEST = 100  # draws, without which noise is as large as the limit


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far posteriors from several keys lie apart; `print` shows it.

    `sites` has one row per latent: `site`, `spread` of its means and `worst` of one number (posterior sds), which one
    that is (`where`), and `sd_ratio`, the largest sd over the smallest among fits, root mean square over numbers.
    `elbo` is of each fit, nats per unit.
    """

    sites: dict[str, np.ndarray]
    elbo: np.ndarray

    @property
    def elbo_spread(self) -> float:
        """Sd over fits, nats per unit."""
        return float(self.elbo.std(ddof=1))

    @property
    def apart(self) -> tuple[str, ...]:
        """Sites whose means lie further apart than a tenth of a posterior sd."""
        return tuple(str(name) for name in self.sites["site"][self.sites["spread"] > LIMIT])

    def __str__(self) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table("site", "spread of means", "worst number", "where", "largest / smallest sd", box=SIMPLE_HEAD)
        for site, spread, worst, where, ratio in zip(*self.sites.values(), strict=True):
            table.add_row(site, f"{spread:.3f} sd", f"{worst:.3f} sd", where, f"{ratio:.3f}")
        out = io.StringIO()
        Console(file=out, width=110, force_terminal=False).print(table, highlight=False)
        bounds = ", ".join(f"{value:.4f}" for value in self.elbo)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        lines.append(f"ELBO of the {len(self.elbo)} fits: {bounds} (sd {self.elbo_spread:.4f}) nats per unit")
        if self.apart:
            lines += [
                f"WARN: the fits disagree on {', '.join(self.apart)} by more than {LIMIT} posterior sd: train longer,",
                "compare their bounds for one that is stuck, and see whether components have changed places.",
            ]
        return "\n".join(lines)


def spread(posteriors: Sequence[Any], data: Any, *, key: Array, num_samples: int = 1000) -> Spread:
    """Prints and returns how far the answers of several fits of one model lie apart on `data`.

    **Arguments**: `posteriors` two or more of one model, fitted with different keys; `data` units that all can answer
    for; `key` a typed JAX key; `num_samples` draws of each.

    **Returns** a `Spread`. All fits draw with the same noise.

    **Raises** `DataError` for fewer than two posteriors, posteriors of different models, and too few draws.
    """
    check_key(key)
    num_samples = whole_number("num_samples", num_samples)
    if num_samples < FEWEST:
        raise DataError(f"spread: num_samples={num_samples} are too few to see {LIMIT} sd; give {FEWEST} or more")
    if not all(isinstance(p, Posterior) for p in posteriors) or len(posteriors) < 2:
        raise DataError("spread: give a list of two or more posteriors of one model, fitted with different keys")
    first = posteriors[0]
    for number, posterior in enumerate(posteriors):
        posterior.refuse_unjudgeable("spread")
        if difference := first.plan.structure.difference(posterior.plan.structure):
            raise DataError(f"spread: posterior {number} is of another model than posterior 0: {difference}")
    draw_key, bound_key = jax.random.split(key)
    found, bounds = [], []
    for posterior in posteriors:
        units = posterior.answerable(data)
        found.append(_moments(posterior, units, num_samples, draw_key))
        numbers = evidence(posterior.joint, posterior.guide, units, BOUND_DRAWS, bound_key)
        bounds.append(float(numbers["elbo"].mean()))
    rows = [_row(name, found) for name in found[0]]
    result = Spread({column: np.array([row[column] for row in rows]) for column in rows[0]}, np.array(bounds))
    print(result)
    return result


def _moments(
    posterior: Posterior, units: Any, num_samples: int, key: Array
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(mean, variance) of every number of the latents, in the user's own space; NaN where it is padding."""
    structure = posterior.plan.structure
    drawn = posterior.sample(units, num_samples=num_samples, key=key)
    latents = [site.name for site in structure.of("global", "local") if site.name in drawn]
    values = {name: np.asarray(drawn[name], np.float64) for name in latents}
    return {name: (np.asarray(x.mean(axis=0)), np.asarray(x.var(axis=0, ddof=1))) for name, x in values.items()}


def _row(name: str, found: Sequence[dict]) -> dict[str, Any]:
    means, variances = (np.stack([each[name][i] for each in found]) for i in (0, 1))
    own = variances.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        square = means.var(axis=0, ddof=1) / own
        ratio = np.sqrt(variances.max(axis=0) / variances.min(axis=0))
    place = np.unravel_index(int(np.nanargmax(square)), square.shape) if square.size > 1 else ()
    return {
        "site": name,
        "spread": float(np.sqrt(np.nanmean(square))),
        "worst": float(np.sqrt(np.nanmax(square))),
        "where": f"[{', '.join(map(str, place))}]" if place else "",
        "sd_ratio": float(np.sqrt(np.nanmean(ratio**2))),
    }
