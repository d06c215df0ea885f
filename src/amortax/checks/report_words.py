"""What does each number of a report mean, in which unit, and what is it blind to? The one place for those words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from amortax.psis import FLAT_K

SEVERITY = {"PASS": 0, "WARN": 1, "FAIL": 2}

VERDICTS = {
    "PASS": "No check that was run found a reason for distrust.",
    "WARN": "Usable with care: read the reasons below before relying on the answers that they name.",
    "FAIL": "Do not rely on these answers before the reasons below are dealt with.",
}

# name -> (label, unit, what it means); NAME_se, where given, is shown behind NAME as ± one standard error
NUMBERS = {
    "elbo_per_unit": (
        "ELBO per unit",
        "nats per unit",
        "Lower bound of the log evidence, over all units named here, divided by their number. Higher is better. "
        "It has no absolute scale: compare it with other guides of the same model on the same data.",
    ),
    "iw_elbo_per_unit": (
        "Importance-weighted ELBO per unit",
        "nats per unit",
        "A tighter bound of the same quantity, from several draws per unit. What it gains on the ELBO is the least "
        "that the guide loses against the exact posterior.",
    ),
    "elbo": ("ELBO", "nats", "The same bound for all units together, the shared part counted once."),
    "iw_elbo": ("Importance-weighted ELBO", "nats", "The tighter bound for all units together."),
    "globals_pareto_k": (
        "Globals: Pareto k",
        "",
        "Tail index of the importance weights of the shared latents over all training units. Under the limit, "
        "reweighting the guide's draws is reliable; above it, the guide misses part of the posterior's mass, unless "
        "the weights hardly differ (effective sample size within a hundredth of the draws) and have no tail to speak "
        "of.",
    ),
    "globals_k_limit": (
        "Globals: limit of Pareto k",
        "",
        "min(1 - 1/log10(S), 0.7) for the draws of the globals alone.",
    ),
    "globals_ess": ("Globals: effective sample size", "draws", "How many exact draws the weighted ones are worth."),
    "globals_error_nats": (
        "Globals: Monte-Carlo error of a weight",
        "nats",
        "Standard error of the log weight of one draw of the shared latents, summed over the units. Above 0.5 nats the "
        "Pareto k of the globals says nothing, and the globals are unchecked.",
    ),
    "globals_draws": ("Globals: draws", "draws", "Draws of the shared latents behind their own Pareto k."),
    "simulated_units": (
        "Simulated units",
        "units",
        "Simulated from the model at draws of the globals, to see where their true latents lie among draws of the "
        "guide. This certifies the guide of a unit's own latents given the globals, and not the globals.",
    ),
    "rank_draws": ("Draws per simulated unit", "draws", "Among which its true latents are ranked."),
    "coverage_50": ("Coverage of 50% intervals", "", "Share of simulated units whose truth they hold, worst site."),
    "coverage_80": ("Coverage of 80% intervals", "", "The same; the table of coverage has the band of each."),
    "coverage_90": ("Coverage of 90% intervals", "", "The same."),
    "coverage_95": ("Coverage of 95% intervals", "", "The same."),
    "tarp_50": ("TARP coverage at 50%", "", "Of regions around random points, all latents of a unit together."),
    "tarp_90": ("TARP coverage at 90%", "", "The same (Lemos et al., 2023)."),
    "sbc_p_smallest": (
        "Ranks: smallest p-value",
        "",
        "That the ranks of the true latents, and of the log density there, are uniform, multiplied by the number of "
        "tests. Small ones count where the difference is large too.",
    ),
    "coverage_p_smallest": ("Coverage: smallest p-value", "", "The same, for the curve of coverage at all levels."),
    "tarp_p_smallest": ("TARP: smallest p-value", "", "The same, for the distances from random points."),
    "calibration_largest_difference": (
        "Calibration: largest difference",
        "",
        "Between the share of true latents in an interval, central or one-sided, and what the guide says of it. Chance "
        "alone gives about 0.03 with 2,000 units.",
    ),
    "kl_per_unit": (
        "KL of q from the prior, per unit",
        "nats",
        "How much a unit's data move q of its latents away from their prior, in the mean over units.",
    ),
    "latents": ("Latents of a unit", "", "Elements of an inner plate count as one, as do those of a site of over 100."),
    "active_latents": (
        "Active latents",
        "",
        "Those whose posterior means vary over units by more than 0.01 prior variances, or whose KL from the prior is "
        "over 0.01 nats. Idle ones are no failure where a unit's own q leaves them idle too (table of latents); with a "
        "learned decoder that is said given this decoder.",
    ),
    "active_directions": (
        "Active directions",
        "",
        "The same for directions, whatever the rotation of the latents: eigenvalues of the covariance of posterior "
        "means over units, on the prior's scale, above 0.01.",
    ),
    "predictive_units": ("Predictive checks: units", "", "Units whose responses were drawn again."),
    "predictive_draws": ("Predictive checks: draws", "draws", "Replications of each of them, from draws of q."),
    "predictive_extreme": (
        "Predictive checks: extreme units",
        "share",
        "The largest share, over statistics, of units whose statistic lies outside 95% of its replications. A right "
        "model has about 5% or fewer, since q has seen the same data: the check is conservative.",
    ),
    "approximation_gap": (
        "Approximation gap",
        "nats per unit",
        "From the best that the family can do for a unit to the evidence: what the family loses.",
    ),
    "amortization_gap": (
        "Amortization gap",
        "nats per unit",
        "From the encoder's answer to the best of the family for the unit: what one network for all loses.",
    ),
    "generalisation_gap": (
        "Generalisation gap",
        "nats per unit",
        "The amortization gap of these units, less that of training units.",
    ),
    "gap_units": ("Units behind the gaps", "units", "Refined one by one."),
    "k_limit": ("Limit of Pareto k", "", "min(1 - 1/log10(S), 0.7) for S draws (Vehtari et al., 2024)."),
    "num_samples": ("Draws per unit", "draws", "Draws of a unit's latents for each draw of the shared latents."),
    "num_globals_draws": (
        "Draws of the globals",
        "draws",
        "Each unit is checked given each of these; the report shows the median and the worst.",
    ),
}

# column -> (heading in a table, what it means)
COLUMNS = {
    "verdict": ("verdict", "PASS, WARN or FAIL for this unit alone."),
    "reason": ("reason", "The check behind the verdict."),
    "next_step": (
        "next step",
        "none; reweight (the weights mend these draws: posterior.refine does it); refine (posterior.refine, to find "
        "the unit's own posterior); refit (nothing here is finite: mend the data or the model, then train again).",
    ),
    "elbo": ("ELBO [nats]", "Lower bound of the unit's log evidence."),
    "iw_elbo": ("IW-ELBO [nats]", "The tighter, importance-weighted bound."),
    "pareto_k": (
        "k median",
        "Pareto k over the draws of the globals: the median. flat: the weights have no tail, as where the guide, given "
        "the globals, is the model's own posterior.",
    ),
    "pareto_k_worst": ("k worst", "The same: the worst."),
    "pareto_k_se": (
        "k error",
        "Monte-Carlo standard error of the median k. A unit above the limit by less is a warning, not a failure.",
    ),
    "ess": ("ESS [draws]", "Effective sample size: the median."),
    "ess_worst": ("ESS worst [draws]", "The same: the worst."),
    "input_shift": (
        "input shift",
        "How far the unit's inputs are from those of the training units, in limits: 1 is the limit that one in 200 "
        "units like the training units passes.",
    ),
    "context_shift": ("context shift", "The same of what the encoder makes of them."),
    "outside": (
        "outside",
        "The argument with a category that no training unit had, or whose numbers leave the range of training.",
    ),
    "predictive_p": (
        "predictive p",
        "Of the statistic in which the unit's data are least like their replications, the two-sided p-value: one of "
        "several, and so small by chance in some units.",
    ),
    "log_evidence": ("log evidence [nats]", "Estimate of log p(data of the unit) from the weights."),
}

# table -> (heading, what it means)
TABLES = {
    "ranks": (
        "Ranks of the truth",
        "Simulated units by the rank of their true number among draws of q, in 20 bins up to the share named first. "
        "All counts lie within low and high with probability 99% where q is right.",
    ),
    "coverage": (
        "Coverage of intervals",
        "Share of simulated units whose truth lies in the central interval. All levels of a site lie within low and "
        "high with probability 99% where q is right: below, intervals are too narrow; above, too wide.",
    ),
    "slices": (
        "Coverage by slice",
        "The same for the units of each slice alone, 90% intervals. Below the median: share of truths there, 0.5 where "
        "q is neither too high nor too low.",
    ),
    "latents": (
        "Latents of a unit",
        "KL of q from the prior in nats, and the variance of posterior means over units in prior variances. Of idle "
        "ones the verdict says whether a unit's own q would use them.",
    ),
    "predictive": (
        "The data against replications of them",
        "Each statistic in the data and in data drawn from the answers: the mean over units, its p-value, how many sds "
        "of the replicated mean lie between, and the share of units outside 95% of their replications.",
    ),
    "gaps": (
        "What is lost where",
        "Nats per unit between the log evidence and the bound, with standard errors, by what causes them.",
    ),
}

BLIND = (
    "Pareto k and the effective sample size compare the guide q with the model's posterior. They do not compare the "
    "model with the world: a wrong model that is fitted well gets a PASS.",
    "They see only where the guide draws. A guide that misses a whole mode of the posterior, or is far too wide, can "
    "have a good Pareto k.",
    "The ELBO is a bound on one number, the evidence. A good bound does not say that intervals cover.",
    "Input and context shift say that a unit is unlike the training units, not that its answer is wrong; and a unit "
    "inside their limits may still be answered badly. Up to 1% of units like the training units are flagged by design. "
    "Where nothing is stored of the training units (fewer than 20, no encoder), shift is not checked.",
    "Calibration simulates units from the model at draws of the globals. It sees a guide that is too wide, too narrow, "
    "or without a mode, on the whole; not one unit alone, nor the globals, nor a model unlike the world. Where the "
    "model simulates units unlike the real ones, it may find faults that the real ones don't meet.",
    "Posterior-predictive checks compare the model with the data, in the statistics that were given and no others. "
    "They use q's draws, so that a bad q shows in them too, and are blind to what a unit's latents can absorb.",
)


def number_text(value: object) -> str:
    """A number as the report prints it: three decimals, whole ones without, not finite in words; the rest as it is."""
    if not isinstance(value, (float, np.floating)):
        return str(value)
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1000.0:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"


def column_texts(column: Sequence[Any] | np.ndarray) -> list[str]:
    """The cells of a column of a table: floats with one number of decimals, so that the eye can compare them."""
    values = np.asarray(column)
    if values.dtype.kind != "f":
        return [number_text(value) for value in column]
    finite = values[np.isfinite(values)]
    largest = np.max(np.abs(finite), initial=0.0)
    decimals = 0 if np.all(finite == np.round(finite)) else 3 if largest < 10 else 2 if largest < 100 else 1
    return [f"{value:,.{decimals}f}" if math.isfinite(value) else number_text(value) for value in values]


def unit_texts(name: str, column: Sequence[Any] | np.ndarray) -> list[str]:
    """The cells of a column of units, by its name: a Pareto k of weights without a tail is called flat."""
    texts = column_texts(column)
    if not name.startswith("pareto_k"):
        return texts
    return ["flat" if value == FLAT_K else text for value, text in zip(column, texts, strict=True)]


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column of texts is one of numbers, to be aligned at its right."""
    return bool(cells) and all(
        text[:1] in tuple("+-0123456789") or text in ("NaN", "infinite", "flat") for text in cells
    )


def number_rows(numbers: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """(label, value with its standard error, unit, meaning) of each number, known ones first."""
    known = [name for name in NUMBERS if name in numbers]
    other = [name for name in numbers if name not in NUMBERS and name.removesuffix("_se") not in known]
    rows = []
    for name in known + other:
        label, unit, meaning = NUMBERS.get(name, (name, "", ""))
        value = number_text(numbers[name])
        if f"{name}_se" in numbers and name in NUMBERS:
            value += f" ± {number_text(numbers[f'{name}_se'])}"
        rows.append((label, value, unit, meaning))
    return rows
