"""The verb `recalibrate`: a posterior whose intervals don't cover → intervals that do, on average over simulated units.

No training, and no other draws: quantiles of q at corrected levels (see `checks.levels` for the derivation).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ._errors import ArtifactError, DataError, GuideError, ModelError, check_entries
from ._types import check_key, whole_number
from .checks.later_slices import Slicing, slice_values, slicing
from .checks.levels import levels_of, places_for, units_needed, values_at
from .checks.recalibration import Functional, check_functionals, drawn_values, simulated_values
from .data import Units
from .own import table_of
from .posterior import Posterior

FEWEST = 19  # simulated units of a slice: as many as 90% intervals need
_FORMAT = "amortax-recalibration/1"
_GUARANTEE = (
    "What holds: an interval of level p of one functional holds the truth with probability from p to p + 1/(n + 1){}, "
    "n the simulated units; more often where values are discrete. That is on average over units simulated from the "
    "model, with globals from q(v) and with covariates, lengths and gaps as in the units given to recalibrate, and "
    "over what was simulated here.",
    "What does not: nothing is said of any one unit, of several functionals at once, or of the world where the model "
    "or q(v) is wrong. These are intervals only: draws, means and densities of q stay as they are.",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Recalibration:
    """Corrected levels of q's quantiles, by functional and slice; `print` says what its intervals guarantee.

    `levels` has, by functional, the levels of the simulated units' true numbers among draws of q, (n, ...) sorted, one
    array for each slice: uniform on (0, 1) where q is right.
    """

    posterior: Posterior
    functionals: tuple[Functional, ...]
    levels: dict[str, tuple[np.ndarray, ...]]
    slices: Slicing
    num_draws: int
    left_out: int  # simulated units that were of no use

    def intervals(self, data: Any, level: float = 0.9, *, key: Array, by: Any = None) -> Any:
        """Intervals of every functional for any units.

        **Arguments:** `data` units as for `sample`; `level` between 0 and 1; `key` a typed JAX key; `by` one value for
        each unit, if that is how slices were given. Ends beyond all draws may leave the support.

        **Returns** an `xarray.Dataset` with dims (plate, bound, ...), bound "lower" and "upper", and each unit's slice.

        **Raises** `DataError` for a level that the simulated units are too few for, with the number needed, for a
        value of `by` that has no slice, and where draws of q are not finite.
        """
        import xarray

        check_key(key)
        ends = self._ends(level)
        found = self.posterior.answerable(data)
        group = self._slice_of(found, by)
        structure = self.posterior.plan.structure
        dims = {s.name: [d or f"{s.name}_dim_{i}" for i, d in enumerate(s.dims)] for s in structure.sites}
        sites: dict[str, Any] = dict(self.functionals)
        parts: dict[str, list] = {name: [] for name in self.levels}
        pair = self.posterior.joint, self.posterior.guide
        for rows, values in drawn_values(pair, found, self.functionals, key=key, num_draws=self.num_draws):
            for name, draws in values.items():
                _refuse_broken(name, draws.reshape(len(draws), -1), found.take(rows))
                parts[name].append(np.stack([values_at(end[group[rows]], draws) for end in ends[name]], axis=1))
        plate = structure.plate
        variables = {
            name: ((plate, "bound", *dims.get(sites[name] if isinstance(sites[name], str) else "", ())), x)
            for name, x in ((name, np.concatenate(part)) for name, part in parts.items())
        }
        coords = {plate: found.labels, "bound": ["lower", "upper"]}
        if self.slices.by:
            coords["slice"] = (plate, np.asarray(self.slices.names)[group])
        return xarray.Dataset(variables, coords=coords, attrs={"level": level})

    def _slice_of(self, data: Units, by: Any) -> np.ndarray:
        if (self.slices.by == "by") != (by is not None):
            wanted = "one value for each unit, as in recalibrate" if by is None else "none"
            raise DataError(f"intervals: by= is {'missing' if by is None else 'given'}; expected {wanted}")
        if not self.slices.by:
            return np.zeros(len(data), int)
        by = self.slices.by if by is None else by
        return self.slices.of(slice_values(by, data, self.posterior.plan.structure), data)

    def _ends(self, level: float) -> dict[str, tuple[np.ndarray, ...]]:
        """By functional, the lower and the upper level of every slice, (slices, ...)."""
        if not 0 < level < 1:
            raise DataError(f"intervals: level must be a number between 0 and 1, got {level!r}")
        sizes = [len(x) for x in next(iter(self.levels.values()))]
        places = [places_for(level, size) for size in sizes]
        if None in places:
            first = places.index(None)
            needed = units_needed(level)
            raise DataError(
                f"intervals: level {level} needs {needed:,} simulated units in a slice, and {self.slices.names[first]} "
                f"has {sizes[first]:,}; give recalibrate(num_simulated={needed * len(sizes) + self.left_out:,}) or more"
            )
        return {
            name: tuple(np.stack([x[p[end] - 1] for x, p in zip(each, places, strict=True) if p]) for end in (0, 1))
            for name, each in self.levels.items()
        }

    def to_json(self) -> str:
        """Strict JSON: everything but the posterior, and functions, of which only the names are kept."""
        content = {
            "format": _FORMAT,
            "posterior": _fingerprint(self.posterior),
            "functionals": {name: what if isinstance(what, str) else None for name, what in self.functionals},
            "levels": {name: [x.tolist() for x in each] for name, each in self.levels.items()},
            "slices": dataclasses.asdict(self.slices),
            "num_draws": self.num_draws,
            "left_out": self.left_out,
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str, posterior: Posterior, functionals: Mapping[str, Callable] | None = None) -> Recalibration:
        """What `to_json` wrote, of the same posterior; `functionals` are the functions, by name.

        **Raises** `ArtifactError` for another posterior or format, `DataError` for a function that is not given.
        """
        entries = ("format", "posterior", "functionals", "levels", "slices", "num_draws", "left_out")
        content = json.loads(text)
        check_entries("recalibration", content, entries)
        if content["format"] != _FORMAT or content["posterior"] != _fingerprint(posterior):
            raise ArtifactError(
                f"the recalibration is of another posterior, or no {_FORMAT}; recalibrate this posterior anew"
            )
        given = dict(functionals or {})
        named: dict[str, Any] = {name: what or given.pop(name, None) for name, what in content["functionals"].items()}
        if given or None in named.values():
            needed = [name for name, what in content["functionals"].items() if what is None]
            raise DataError(f"recalibration: functions of {needed} are needed, got {sorted(functionals or {})}")
        by, *rest = (content["slices"][name] for name in ("by", "edges", "labels", "names"))
        return Recalibration(
            posterior,
            tuple(named.items()),
            {name: tuple(map(np.asarray, each)) for name, each in content["levels"].items()},
            Slicing(by, *map(tuple, rest)),
            content["num_draws"],
            content["left_out"],
        )

    def __str__(self) -> str:
        names = ", ".join(f"'{name}'" for name in self.levels)
        sizes = [len(x) for x in next(iter(self.levels.values()))]
        lines = [
            f"intervals of {names}, recalibrated on {sum(sizes):,} simulated units with {self.num_draws} draws each"
        ]
        for number, (slice_name, size) in enumerate(zip(self.slices.names, sizes, strict=True)):
            head = f"{self.slices.by}: {slice_name}" if self.slices.by else slice_name
            lines.append(f"  {head} ({size:,}): " + "; ".join(self._corrected(name, number) for name in self.levels))
        if self.left_out:
            lines.append(f"{self.left_out:,} simulated units left out, whose own numbers were out of all bounds")
        if any(np.any((end < 0) | (end > 1)) for ends in self._ends(0.9).values() for end in ends):
            lines.append("levels below 0 and above 1 are so many standard deviations of the draws outside all of them")
        where = f", in every slice of {self.slices.by}" if self.slices.by else ""
        holds, not_so = _GUARANTEE
        return "\n".join([*lines, *textwrap.wrap(holds.format(where), 100), *textwrap.wrap(not_so, 100)])

    def _corrected(self, name: str, number: int) -> str:
        values, places = self.levels[name][number], places_for(0.9, len(self.levels[name][number]))
        if values.ndim > 1:
            return f"{name} has {values[0].size} numbers, each with levels of its own"
        assert places is not None
        return f"90% of {name} is from level {values[places[0] - 1]:.3f} to {values[places[1] - 1]:.3f}"


def recalibrate(
    posterior: Posterior,
    data: Any,
    *,
    functionals: Mapping[str, str | Callable],
    key: Array,
    by: Any = None,
    num_simulated: int = 2000,
    num_draws: int = 500,
) -> Recalibration:
    """Levels of q's quantiles at which intervals of named functionals cover, from simulated units.

    For when `check` finds that intervals don't cover and training again isn't wanted. It tells how wide q should be on
    average, by slice; it doesn't make q follow a unit's data better.

    **Arguments:**

    - `data`: units whose covariates, lengths and gaps the simulated ones take; the training units, say.
    - `functionals`: name -> a site of the unit, or a JAX function of one unit's values (site -> array, globals and
      deterministic sites too, NaN in places that the unit hasn't) to a number. Each number of a site stands by itself.
    - `key`: a typed JAX key.
    - `by`: what slices units: a ragged plate (their size), a covariate with one number for each unit, or one value for
      each unit of `data`. Numbers with many values are cut into quarters.
    - `num_simulated`: units simulated in all, as many in every slice; 90% intervals need 19 in each, 99% 199.
    - `num_draws`: draws of q for each.

    **Returns** a `Recalibration`: `intervals` of new units, and `print` says what they guarantee.

    **Raises** `ModelError` if the model can't be simulated, `GuideError` for `am.free()` and `am.filtering()`,
    `DataError` for impossible functionals or slices, for too few units, and where draws of q are not finite.
    """
    _refuse(posterior)
    check_key(key)
    num_simulated = whole_number("recalibrate: num_simulated", num_simulated)
    num_draws = whole_number("recalibrate: num_draws", num_draws)
    found, pair = posterior.answerable(data), (posterior.joint, posterior.guide)
    checked = check_functionals(posterior.joint, found, functionals)
    slices, group = slicing(by, found, posterior.plan.structure)
    each = num_simulated // len(slices.names)
    if each < FEWEST or num_draws < FEWEST:
        raise DataError(
            f"recalibrate: num_simulated={num_simulated} gives {each} units for each of {len(slices.names)} slices, "
            f"and num_draws={num_draws}; give at least {FEWEST * len(slices.names)} units and {FEWEST} draws"
        )
    rows_key, simulation_key, tie_key = jax.random.split(key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.bits(rows_key, (4,))))
    rows = np.concatenate([rng.choice(np.flatnonzero(group == g), each) for g in range(len(slices.names))])
    true, draws, useful = simulated_values(pair, found, rows, checked, key=simulation_key, num_draws=num_draws)
    ties = np.random.default_rng(np.asarray(jax.random.bits(tie_key, (4,))))
    levels = {}
    for name, _ in checked:
        values, drawn = true[name][useful], draws[name][useful]
        _refuse_broken(name, np.concatenate([values[:, None], drawn], axis=1).reshape(len(values), -1), None)
        level = levels_of(values, drawn, ties.random(values.shape))
        own = group[rows][useful]
        levels[name] = tuple(np.sort(level[own == g], axis=0) for g in range(len(slices.names)))
    return Recalibration(posterior, checked, levels, slices, num_draws, int(np.sum(~useful)))


def _refuse(posterior: Posterior) -> None:
    posterior.refuse_unjudgeable("recalibrate")
    structure, guide = posterior.plan.structure, posterior.guide
    if structure.cannot_simulate:
        raise ModelError(
            f"recalibrate needs simulated units, but model '{structure.model}' can't be simulated: "
            f"{structure.cannot_simulate}; nobody knows then whether intervals cover: compare some units with NUTS"
        )
    if guide.local is None and not structure.summed:
        raise ModelError(f"recalibrate: units of model '{structure.model}' have no latents of their own")
    if table_of(guide) is not None:
        raise GuideError("recalibrate: am.free() has no q for simulated units, which are new ones; give an encoder")


def _refuse_broken(name: str, values: np.ndarray, data: Units | None) -> None:
    """Raises `DataError` where numbers of some units are not finite."""
    broken = np.flatnonzero(~np.all(np.isfinite(values), axis=1))
    if len(broken):
        where = "simulated units" if data is None else f"units, the first {data.name} '{data.labels[broken[0]]}'"
        raise DataError(
            f"recalibration: '{name}' is not finite in {len(broken)} of {len(values)} {where}; check the functional, "
            "or train again: intervals of such a q say nothing"
        )


def _fingerprint(posterior: Posterior) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter((posterior.joint.params, posterior.guide), eqx.is_array)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
