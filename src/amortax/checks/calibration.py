"""Do intervals of q cover what they say? Simulation-based calibration of the local block, by rank.

Units are simulated from the model at draws of q(v), and their true latents ranked among draws of q(u | d, v) at the
same v (see `simulated`). With a fresh v even an exact posterior would fail by slice. So this certifies q of the locals
given the globals, whatever q(v) is: the globals have weights of their own.

A site of many numbers has one sample of places with one of its numbers, drawn at random, for every simulated unit, so
that units stay independent; beside it, every single number that all units have is tested.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array

from .._errors import DataError
from ..data import Units
from ..guide import Guide
from ..joint.joint import Joint
from ..own import table_of
from .bands import BINS, bin_band, bin_counts, curve_band
from .calibration_verdicts import (
    FEWEST_UNITS,
    LEVELS,
    Judged,
    broken_reasons,
    coverage_reasons,
    distance_reasons,
    judge,
    rank_reasons,
    slice_reasons,
    unchecked,
)
from .options import Checks
from .report import Reason, Tables
from .simulated import Places, simulated_places
from .slices import slices_of

FEWEST_DRAWS = 19
BAND = 0.99  # of each band in the tables
DENSITY, DISTANCE = "log density", "all together (TARP)"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was found: numbers by name, reasons, tables by title, and what was done in words."""

    numbers: dict[str, float]
    reasons: list[Reason]
    tables: Tables
    about: str


def calibrate(joint: Joint, guide: Guide, data: Units, *, key: Array, checks: Checks) -> Calibration:
    """Simulates units in the stead of checked ones and judges q of their locals.

    **Raises** `DataError` where so few units or draws are asked for that nothing could be said, or where a slice
    has another number of values than there are units.
    """
    if why := _left_out(joint, guide, checks):
        asked = checks.simulated_units and (guide.local is not None or joint.structure.summed)
        cannot = joint.structure.cannot_simulate if asked else ""
        return Calibration({}, [unchecked(cannot)] if cannot else [], {}, why)
    _refuse_few(checks)
    slices = slices_of(data, joint.structure, checks)
    rows_key, places_key = jax.random.split(key)
    rows = np.asarray(jax.random.randint(rows_key, (checks.simulated_units,), 0, len(data)))
    places = simulated_places(joint, guide, data, rows, key=places_key, num_draws=checks.rank_draws)
    kept = np.asarray(places.useful & places.finite)
    useful = int(np.sum(places.useful))
    numbers = {"simulated_units": float(np.sum(kept)), "rank_draws": float(checks.rank_draws)}
    reasons = broken_reasons(useful - int(np.sum(kept)), useful, data.name)
    about = f"{checks.simulated_units:,} units simulated; certifies q of the locals given the globals, and no more"
    if useful < checks.simulated_units:
        about += f"; {checks.simulated_units - useful} of them left out, whose own numbers were out of all bounds"
    if np.sum(kept) < FEWEST_UNITS:
        return Calibration(numbers, reasons, {}, about + "; too few were of use to say anything")
    samples = _samples(joint, places, kept, np.random.default_rng(rows))
    judged, slice_rows = _judged(samples), _by_slice(samples, slices, rows[kept])
    reasons += rank_reasons(judged.every, judged.density, data.name) + coverage_reasons(judged.every, data.name)
    reasons += distance_reasons(judged.distance, data.name) + slice_reasons(slice_rows)
    tables = {"ranks": _rank_table(samples), "coverage": _coverage_table(judged)}
    if slice_rows:
        tables["slices"] = _slice_table(slice_rows)
    return Calibration(numbers | _numbers(judged), reasons, tables, about)


def _left_out(joint: Joint, guide: Guide, checks: Checks) -> str:
    """Why there is no calibration, or empty."""
    if not checks.simulated_units:
        return "left out: Checks(simulated_units=0)"
    if guide.local is None and not joint.structure.summed:
        return "left out: units have no latents of their own"
    if joint.structure.cannot_simulate:
        return f"left out: the model can't be simulated: {joint.structure.cannot_simulate}"
    if table_of(guide) is not None:
        return "left out: am.free() has no q for simulated units, which are new ones"
    return ""


def _refuse_few(checks: Checks) -> None:
    for name, least in (("simulated_units", FEWEST_UNITS), ("rank_draws", FEWEST_DRAWS)):
        if getattr(checks, name) < least:
            raise DataError(
                f"check: {name}={getattr(checks, name)} is too few to judge coverage; give Checks({name}={least}) or "
                "more, or Checks(simulated_units=0) to leave it out"
            )


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Places in (0, 1), NaN where a unit has none; `sites` one sample each, `numbers` every number that all have."""

    sites: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    density: np.ndarray
    distance: np.ndarray
    flipped: frozenset[str]


def _samples(joint: Joint, places: Places, kept: np.ndarray, rng: np.random.Generator) -> _Samples:
    sites, numbers, flipped = {}, {}, set()
    for site in joint.structure.sites:
        if site.name not in places.sites:
            continue
        shape = [n for n in places.sites[site.name].shape[1:] if n > 1]
        values = np.asarray(places.sites[site.name], np.float64)[kept].reshape(int(np.sum(kept)), -1)
        own = np.asarray(places.own[site.name])[kept].reshape(values.shape)
        picked = np.argmax(np.where(own, rng.random(own.shape), -1.0), axis=1)
        one = np.where(own.any(axis=1), values[np.arange(len(values)), picked], np.nan)
        if np.sum(~np.isnan(one)) < FEWEST_UNITS:
            continue
        sites[site.name] = one
        if "LessThan" in site.support:
            flipped.add(site.name)
        if shape and own.all():
            indices = [", ".join(map(str, index)) for index in np.ndindex(*shape)]
            numbers |= {f"{site.name}[{index}]": values[:, i] for i, index in enumerate(indices)}
    together = np.asarray(places.density, np.float64)[kept], np.asarray(places.distance, np.float64)[kept]
    return _Samples(sites, numbers, *together, frozenset(flipped))


@dataclasses.dataclass(frozen=True)
class _Judgement:
    sites: list[Judged]
    every: list[Judged]  # sites and single numbers
    density: Judged
    distance: Judged


def _judged(samples: _Samples) -> _Judgement:
    def each(of: dict[str, np.ndarray]) -> list[Judged]:
        return [judge(n, x[~np.isnan(x)], flipped=n.partition("[")[0] in samples.flipped) for n, x in of.items()]

    sites = each(samples.sites)
    every = sites + each(samples.numbers)
    return _Judgement(sites, every, judge(DENSITY, samples.density), judge(DISTANCE, samples.distance))


def _numbers(judged: _Judgement) -> dict[str, float]:
    """The farthest site of each level, and the smallest p-values, multiplied by their number."""
    sites = judged.sites
    found = {f"coverage_{level * 100:.0f}": _farthest(level, sites) for level in LEVELS}
    found |= {f"tarp_{level * 100:.0f}": judged.distance.covered[level] for level in (0.5, 0.9)}
    tests = [p for j in [*judged.every, judged.density] for p in (j.bins, j.curve)]
    distance = judged.distance
    found["sbc_p_smallest"] = min(1.0, len(tests) * min(tests))
    found["coverage_p_smallest"] = min(1.0, len(judged.every) * min(j.intervals for j in judged.every))
    found["tarp_p_smallest"] = min(1.0, 3 * min(distance.bins, distance.curve, distance.intervals))
    found["calibration_largest_difference"] = max(max(j.shift, j.width) for j in judged.every)
    return found


def _farthest(level: float, sites: list[Judged]) -> float:
    return max((j.covered[level] for j in sites), key=lambda found: abs(found - level))


def _by_slice(
    samples: _Samples, slices: dict[str, tuple[np.ndarray, list[str]]], rows: np.ndarray
) -> list[tuple[str, str, Judged]]:
    """(slice, value, sample) of every site."""
    found = []
    for name, (group, values) in slices.items():
        for number, value in enumerate(values):
            for site, places in samples.sites.items():
                inside = places[(group[rows] == number) & ~np.isnan(places)]
                if len(inside):
                    found.append((name, value, judge(site, inside, flipped=site in samples.flipped)))
    return found


def _rank_table(samples: _Samples) -> dict[str, np.ndarray]:
    """One row for each of 20 bins of ranks, one column for each site; the band is that of all units."""
    low, high = bin_band(len(samples.density), BAND)
    columns = {"to rank": np.arange(1, BINS + 1) / BINS, "low": np.full(BINS, low), "high": np.full(BINS, high)}
    together = {**samples.sites, DENSITY: samples.density, DISTANCE: samples.distance}
    return columns | {name: bin_counts(x[~np.isnan(x)]) for name, x in together.items()}


def _coverage_table(judged: _Judgement) -> dict[str, np.ndarray]:
    """One row for each level of every site."""
    rows = [(j, level) for j in [*judged.sites, judged.distance] for level in LEVELS]
    bands = [_band(j, level) for j, level in rows]
    return {
        "of": np.array([j.name for j, _ in rows]),
        "nominal": np.array([level for _, level in rows]),
        "found": np.array([j.covered[level] for j, level in rows]),
        "low": np.array([low for low, _ in bands]),
        "high": np.array([high for _, high in bands]),
    }


def _slice_table(rows: list[tuple[str, str, Judged]]) -> dict[str, np.ndarray]:
    """Coverage of 90% intervals of every site in every slice; `low` and `high` hold all levels at once."""
    bands = [_band(j, 0.9) for *_, j in rows]
    return {
        "slice": np.array([name for name, *_ in rows]),
        "value": np.array([value for _, value, _ in rows]),
        "of": np.array([j.name for *_, j in rows]),
        "units": np.array([j.units for *_, j in rows]),
        "nominal": np.full(len(rows), 0.9),
        "found": np.array([j.covered[0.9] for *_, j in rows]),
        "low": np.array([low for low, _ in bands]),
        "high": np.array([high for _, high in bands]),
        "below the median": np.array([j.below for *_, j in rows]),
    }


def _band(judged: Judged, level: float) -> tuple[float, float]:
    low, high = curve_band(judged.units, BAND)
    at = round(level * BINS) - 1
    return low[at] / judged.units, high[at] / judged.units
