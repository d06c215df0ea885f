"""How are the demo's answers compared with the exact ones, and how is that told? Tables, words and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .plots import figure_png, intervals_against_exact
from .psis import FLAT_K
from .repair import by_rung

LIMITS = (0.15, 0.85, 1.15)
"""Largest |difference of means| in exact sds; smallest and largest ratio of sds."""

OWN_LIMITS = {"county_effect_scale": (0.30, 0.75, 1.25)}
"""A scale of few units has a skew posterior, which a normal on its logarithm meets less well."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Our moments of some quantities beside exact ones, each of shape (quantities,); `houses` only for counties."""

    names: Sequence[str]
    mean: np.ndarray
    sd: np.ndarray
    exact_mean: np.ndarray
    exact_sd: np.ndarray
    houses: Sequence[int] | None = None
    by: str = "exact"  # whose the exact moments are

    @property
    def difference(self) -> np.ndarray:
        """Difference of the means, in exact sds."""
        return (self.mean - self.exact_mean) / self.exact_sd

    @property
    def ratio(self) -> np.ndarray:
        """Our sd by the exact one."""
        return self.sd / self.exact_sd

    @property
    def within(self) -> np.ndarray:
        """Which quantities are within their limits; NaN is not."""
        furthest, low, high = np.array([OWN_LIMITS.get(name, LIMITS) for name in self.names]).T
        return (np.abs(self.difference) <= furthest) & (self.ratio >= low) & (self.ratio <= high)

    def columns(self) -> dict[str, Sequence[Any] | np.ndarray]:
        """The comparison as columns of text and numbers, for a page."""
        first: dict[str, Sequence[Any] | np.ndarray] = (
            {"site": self.names} if self.houses is None else {"county": self.names, "houses": self.houses}
        )
        return {
            **first,
            "mean": self.mean,
            "sd": self.sd,
            f"{self.by} mean": self.exact_mean,
            f"{self.by} sd": self.exact_sd,
            f"difference [{self.by} sd]": [f"{value:+.3f}" for value in self.difference],
            "ratio of sds": self.ratio,
            "within limits": np.where(self.within, "yes", "NO"),
        }

    def worst(self) -> str:
        """The largest deviations in one line."""
        return (
            f"largest |difference| {np.abs(self.difference).max():.3f} sd, "
            f"ratios of sds {self.ratio.min():.3f} to {self.ratio.max():.3f}"
        )


def table(comparison: Comparison, rows: int = 12) -> str:
    """The comparison as text; the largest differences alone where there are more than `rows`."""
    order = list(range(len(comparison.names)))
    if len(order) > rows:
        order = np.argsort(-np.abs(comparison.difference), kind="stable")[:rows].tolist()
    wide = max(len(comparison.names[i]) for i in order)
    houses = "" if comparison.houses is None else f"{'houses':>8}"
    lines = [f"  {'':{wide}}{houses}   {'amortized':15}   {comparison.by:15}   {'difference':>10}   {'sd ratio':>8}"]
    for i in order:
        count = "" if comparison.houses is None else f"{comparison.houses[i]:8}"
        ours = f"{comparison.mean[i]:6.3f} ± {comparison.sd[i]:5.3f}"
        exact = f"{comparison.exact_mean[i]:6.3f} ± {comparison.exact_sd[i]:5.3f}"
        said = "" if comparison.within[i] else "   OUTSIDE"
        numbers = f"{comparison.difference[i]:+7.3f} sd   {comparison.ratio[i]:8.3f}{said}"
        lines.append(f"  {comparison.names[i]:{wide}}{count}   {ours:15}   {exact:15}   {numbers}")
    if len(order) < len(comparison.names):
        lines.append(f"  ... and {len(comparison.names) - len(order)} counties that differ less")
    return "\n".join(lines)


def beginning(data: Mapping[str, Sequence[Any]], num_new: int) -> str:
    """What the data are, and what is asked of them."""
    sizes = [len(houses) for houses in data["floor"]]
    lines = [
        f"Radon in Minnesota: {sum(sizes)} houses in {len(sizes)} counties, {min(sizes)} to {max(sizes)} in each.",
        "How high is each county's radon, given its own few houses and what all counties have in common?",
    ]
    if num_new:
        lines += [
            f"{num_new} counties are kept away from training. Their exact posterior is known, by quadrature over two",
            "scales and the rest in closed form: how far from it is the amortized answer for counties never seen?",
        ]
    else:
        lines += ["All counties are trained on; Stan's answer is known, from 20,000 draws of NUTS (Inference Gym)."]
    return "\n".join(lines)


def trained(record: Any, seconds: float) -> str:
    """How the training went."""
    first, last = record.elbo_per_unit[0], record.elbo_per_unit[-1]
    return (
        f"Trained on {record.num_units} counties: {record.num_steps:,} steps in {seconds:.1f} s, compiling included;\n"
        f"ELBO per county from {first:.2f} nats (first {record.step[0]} steps) to {last:.3f} (last ones)."
    )


def compared(comparisons: Mapping[str, Comparison], num_samples: int) -> str:
    """The tables, and what is allowed."""
    furthest, low, high = LIMITS
    own = "; ".join(f"{name}: {far} sd, {lo} to {hi}" for name, (far, lo, hi) in OWN_LIMITS.items())
    error = 1 / np.sqrt(num_samples)
    lines = []
    for title, comparison in comparisons.items():
        verdict = "PASS" if comparison.within.all() else "FAIL"
        lines += [title, "", table(comparison), "", f"  {verdict}: {comparison.worst()}", ""]
    lines += [
        f"Limits: {furthest} sd, ratio {low} to {high} ({own}). The {num_samples:,} draws behind our",
        f"means and sds alone make errors of about {error:.3f} sd and {error / np.sqrt(2):.3f} in the ratio.",
    ]
    return "\n".join(lines)


def checked(report: Any, seconds: float) -> str:
    """What the check, which knows no exact answer, says."""
    lines = [f"posterior.check, which knows no exact answer, says in {seconds:.1f} s:  {report.headline()}"]
    if "globals_pareto_k" in report.numbers:
        k, limit = report.numbers["globals_pareto_k"], report.numbers["globals_k_limit"]
        worst = float(np.max(report.units["pareto_k_worst"]))
        own = (
            "flat, all weights equal"
            if worst == FLAT_K
            else f"{worst:.2f} at worst (limit {report.numbers['k_limit']:.2f})"
        )
        lines.append(
            f"  Pareto k of what all counties share: {k:.2f} (limit {limit:.2f}); of each county, given that: {own}"
        )
    lines += [f"  {reason.level} {reason.code}: {reason.text}" for reason in report.reasons]
    return "\n".join(lines)


def repaired(
    report: Any, refined: Any, before: Mapping[str, Comparison], after: Mapping[str, Comparison], seconds: float
) -> str:
    """What repair did: the rungs, what became of each county that was flagged, how far all are from exact."""
    rungs = by_rung(refined)
    told = ", ".join(f"{count} {rung}" for rung, count in zip(rungs["rung"], rungs["units"], strict=True))
    lines = [
        f'posterior.refine(..., budget="exact") in {seconds:.1f} s: each county went as far as it needs ({told});',
        f"  what all counties share: {refined.attrs['globals_rung']}.",
        *_flagged(report, refined, before, after),
    ]
    for title, found in after.items():
        lines += [f"  {title}", f"    before: {before[title].worst()}", f"    after:  {found.worst()}"]
    return "\n".join(lines)


def _flagged(report: Any, refined: Any, before: Mapping[str, Comparison], after: Mapping[str, Comparison]) -> list[str]:
    """A line for each county that the check flagged; one that says so where there is none."""
    flagged = np.flatnonzero(np.asarray(report.units["verdict"]) != "PASS").tolist()
    if not flagged:
        return ["  No county was flagged."]
    first, last = next(iter(before.values())), next(iter(after.values()))
    return [
        f"  {first.names[i]}, {report.units['verdict'][i]} {report.units['reason'][i]}: "
        f"{refined['rung'].values[i]}, {refined['verdict'].values[i]}; "
        f"{abs(first.difference[i]):.3f} sd from the exact answer before, {abs(last.difference[i]):.3f} after"
        for i in flagged
    ]


def both(before: Comparison, after: Comparison) -> dict[str, Sequence[Any] | np.ndarray]:
    """Distances from the exact answer before and after repair, as columns for a page."""
    return {
        "county" if before.houses is not None else "site": before.names,
        f"difference before [{before.by} sd]": [f"{value:+.3f}" for value in before.difference],
        f"after [{before.by} sd]": [f"{value:+.3f}" for value in after.difference],
        "ratio of sds before": before.ratio,
        "after": after.ratio,
    }


def pictures(drawn: Mapping[str, Any], exact: Mapping[str, Any], houses: Mapping[str, int]) -> dict[str, bytes]:
    """PNGs by title: the intervals of each table's counties beside the exact ones."""
    figures = {}
    for part, draws in drawn.items():
        labels, effect = draws["county"].values.tolist(), draws["county_effect"].values
        ours = (effect.mean(0), *np.quantile(effect, (0.05, 0.95), axis=0))
        theirs = (exact[part].mean, exact[part].q05, exact[part].q95)
        title = f"90% intervals of the {len(labels)} {PARTS[part]}"
        counts = [houses[label] for label in labels]
        figures[f"The {PARTS[part]}, amortized and exact"] = intervals_against_exact(
            labels, ours, theirs, counts, axis_label="county effect (log pCi/L)", title=title
        )
    return {title: figure_png(axes.figure) for title, axes in figures.items()}


PARTS = {"new": "counties never seen", "training": "counties trained on"}
