"""Do places of the truth look uniform, and how far are they from it? Verdicts of calibration, in plain NumPy.

A finding needs significance and size, since many simulated units show faults that nobody minds, and few show nothing.

*Significance.* Four families of tests: `sbc` (bins and curve of every number, and of the log density), `coverage`
(the curve of central intervals of every number), `tarp` (bins, curve and intervals of the distance), `coverage-slice`
(curves and intervals by slice). Within each, p-values are multiplied by their number (Bonferroni), which holds however
the tests hang together; each family has a quarter of the false alarms. So the exact posterior raises a WARN in at most
0.2% of runs and a FAIL in at most 0.02%, by design; less, as the tests of one sample go together.

*Size.* The largest difference between the share of true values below a quantile of q, or within a central interval of
it, and what q says: above 0.02 for a WARN, 0.1 for a FAIL. A normal q whose sd is 0.8 or 1.25 times the right one is
off by 0.1 (its 90% intervals hold 81% or 96%), and so is one that is moved by a quarter of an sd: between the 0.1 sd
that the weights of a unit let pass and the 0.3 sd at which they fail. 2,000 units show a difference of 0.05 or more.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .bands import bin_counts, bins_p_value, curve_p_value, folded, largest_difference
from .report import Reason

WARN_RATE, FAIL_RATE, FAMILIES = 0.002, 0.0002, 4  # false alarms of all families together
WARN_SIZE, FAIL_SIZE = 0.02, 0.1  # shares of probability
FEWEST_UNITS = 100  # below, a test says nothing
LEVELS = (0.5, 0.8, 0.9, 0.95)
BROKEN_SHARE = 0.01  # of simulated units with draws that are not finite: more are a failure
NARROW = "q is too narrow, or leaves out what numbers have in common"
STEP = "train longer, give the encoder more width, or choose a richer family (am.full, am.coupling, am.mixture)"


@dataclasses.dataclass(frozen=True)
class Judged:
    """One sample of places: how unusual it is, how far off, and which way."""

    name: str
    units: int
    bins: float  # p-values
    curve: float
    intervals: float
    shift: float  # the largest differences, of one-sided and of central shares
    width: float
    covered: dict[float, float]  # level -> share of units that its central interval holds
    below: float  # share under the median of q
    mean: float
    extremes: float  # mean of |2 place - 1|: above a half where q is too narrow
    flipped: bool = False  # a larger number is a smaller value

    @property
    def ways(self) -> str:
        """How q differs, in words: place and width, where these are clear."""
        deviation = np.sqrt(12.0 * self.units)
        up = (self.mean - 0.5) * deviation * (-1 if self.flipped else 1)
        said = []
        if self.intervals < 1e-3:
            said.append("too narrow" if self.extremes > 0.5 else "too wide")
        if abs(up) > 4.0:
            said.append("too low" if up > 0 else "too high")
        return " and ".join(said) or "of another shape"


def judge(name: str, places: np.ndarray, *, flipped: bool = False) -> Judged:
    """All numbers of one sample of places in (0, 1), one for each simulated unit."""
    counts, central = bin_counts(places), bin_counts(folded(places))
    return Judged(
        name=name,
        units=len(places),
        bins=bins_p_value(counts),
        curve=curve_p_value(counts),
        intervals=curve_p_value(central),
        shift=largest_difference(counts),
        width=largest_difference(central),
        covered={level: float(np.mean(folded(places) <= level)) for level in LEVELS},
        below=float(np.mean(places < 0.5)),
        mean=float(np.mean(places)),
        extremes=float(np.mean(folded(places))),
        flipped=flipped,
    )


def level_of(p_value: float, size: float) -> str:
    """PASS, WARN or FAIL of one test of a family, its p-value multiplied by the number of tests."""
    if p_value < FAIL_RATE / FAMILIES and size > FAIL_SIZE:
        return "FAIL"
    return "WARN" if p_value < WARN_RATE / FAMILIES and size > WARN_SIZE else "PASS"


def rank_reasons(numbers: list[Judged], density: Judged, unit: str) -> list[Reason]:
    """`sbc`: the ranks of every number and of the log density, in one family."""
    tests = 2 * (len(numbers) + 1)
    found = []
    flagged = [(j, tests * min(j.bins, j.curve), max(j.shift, j.width)) for j in numbers]
    if level := _worst([(p, size) for _, p, size in flagged]):
        worst, p, size = min(flagged, key=lambda f: (f[1], -f[2]))
        text = (
            f"q of '{worst.name}' is {worst.ways}: ranks of the true values of {worst.units:,} simulated units "
            f"({unit}) are not uniform (p {_p(p)}, off by {size:.3f}, limit {WARN_SIZE})"
            f"{_others(flagged, worst)}."
        )
        found.append(Reason("sbc", level, text, STEP))
    p, size = tests * min(density.bins, density.curve), max(density.shift, density.width)
    if level := _worst([(p, size)]):
        what, why = ("less", NARROW) if density.mean < 0.5 else ("more", "q is too wide, or elsewhere")
        text = (
            f"The true latents of simulated units ({unit}) are {what} probable than draws of q: {why} "
            f"(ranks of the log density, p {_p(p)}, off by {size:.3f}, limit {WARN_SIZE})."
        )
        found.append(Reason("sbc-density", level, text, STEP))
    return found


def coverage_reasons(numbers: list[Judged], unit: str) -> list[Reason]:
    """`coverage`: central intervals of every number."""
    flagged = [(j, len(numbers) * j.intervals, j.width) for j in numbers]
    level = _worst([(p, size) for _, p, size in flagged])
    if not level:
        return []
    worst, p, size = min(flagged, key=lambda f: (f[1], -f[2]))
    text = (
        f"90% intervals of '{worst.name}' hold the true value of {worst.covered[0.9]:.1%} of {worst.units:,} simulated "
        f"units ({unit}), 50% intervals of {worst.covered[0.5]:.1%} (p {_p(p)}, off by {size:.3f} at most, limit "
        f"{WARN_SIZE}){_others(flagged, worst)}."
    )
    return [Reason("coverage", level, text, STEP)]


def distance_reasons(distance: Judged, unit: str) -> list[Reason]:
    """`tarp`: regions around random points, over all numbers together."""
    p, size = 3 * min(distance.bins, distance.curve, distance.intervals), max(distance.shift, distance.width)
    level = _worst([(p, size)])
    if not level:
        return []
    text = (
        f"All numbers together: the true latents of simulated units ({unit}) are not at the distances from random "
        f"points at which draws of q are (TARP, p {_p(p)}, off by {size:.3f}, limit {WARN_SIZE})."
    )
    return [Reason("tarp", level, text, STEP)]


def slice_reasons(slices: list[tuple[str, str, Judged]]) -> list[Reason]:
    """`coverage-slice`: one-sided shares and central intervals of (slice, value, sample)."""
    known = [(name, value, j) for name, value, j in slices if j.units >= FEWEST_UNITS]
    tests = 2 * len(known)
    flagged = [(name, value, j, tests * min(j.curve, j.intervals), max(j.shift, j.width)) for name, value, j in known]
    level = _worst([(p, size) for *_, p, size in flagged])
    if not level:
        return []
    name, value, worst, p, size = min(flagged, key=lambda f: (f[3], -f[4]))
    text = (
        f"Where {name} is {value}, q of '{worst.name}' is {worst.ways}: its 90% intervals hold "
        f"{worst.covered[0.9]:.1%} (p {_p(p)}, off by {size:.3f}, limit {WARN_SIZE}). The table 'slices' has them all."
    )
    return [Reason("coverage-slice", level, text, STEP)]


def broken_reasons(broken: int, useful: int, unit: str) -> list[Reason]:
    """`calibration-non-finite`: simulated units of which q has no finite draws."""
    if not broken:
        return []
    text = f"For {broken} of {useful} simulated units ({unit}) draws of q, or their density, are not finite."
    level = "FAIL" if broken > BROKEN_SHARE * useful else "WARN"
    return [
        Reason("calibration-non-finite", level, text, "look for overflowing scales, or units unlike the training's")
    ]


def unchecked(why: str) -> Reason:
    """`calibration-unchecked`: nobody knows whether intervals cover."""
    text = f"Whether intervals cover was not checked, since the model can't be simulated: {why}."
    step = "rewrite the model so that it can be simulated, or compare some units with NUTS"
    return Reason("calibration-unchecked", "WARN", text, step)


def _worst(tests: list[tuple[float, float]]) -> str:
    """FAIL, WARN or empty."""
    levels = {level_of(p, size) for p, size in tests}
    return next((level for level in ("FAIL", "WARN") if level in levels), "")


def _others(flagged: list[tuple[Judged, float, float]], worst: Judged) -> str:
    others = [j.name for j, p, size in flagged if j is not worst and level_of(p, size) != "PASS"]
    if not others:
        return ""
    named = ", ".join(f"'{name}'" for name in others[:3]) + ", ..." * (len(others) > 3)
    return f"; off too: {named}"


def _p(value: float) -> str:
    return f"{value:.1g}" if value >= 1e-12 else "below 1e-12"
