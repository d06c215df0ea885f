"""Does the model draw data like these? Posterior-predictive p-values of statistics of every unit's responses.

Of every unit the responses are drawn again, at S draws of (v, u_i) from q; for a statistic T the mid-p is

    p_i = ( #{T(rep_s) < T(d_i)} + ½ #{T(rep_s) = T(d_i)} ) / S.

Were the latents known, p_i would be uniform. They were fitted to d_i itself, and so the p_i crowd around ½ (Meng 1994;
Bayarri and Berger 2000): too few are extreme where the model is right, never too many, but for noise. So the share of
units with p_i outside (0.025, 0.975) is compared with an upper bound of the binomial at the nominal share, and the mean
of T over units with its replications. What q itself gets wrong shows here too: read this once q against the model is
fine. Units that share what is badly known are not independent; the wide limits are for that.

Meng (1994), Posterior predictive p-values, Annals of Statistics 22; Gelman, Meng and Stern (1996).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._types import Batch
from ..answer import draw_shared
from ..chunks import Chunk, chunks, evenly
from ..data import Units
from ..guide import Guide
from ..joint.draws import draw_again
from ..joint.joint import Joint
from .report import Reason, Tables
from .statistics import built_in, of_user

MOST_UNITS = 500  # looked at, evenly spaced
TAIL = 0.025  # on either side, beyond which a unit's p is extreme
FALSE_ALARM = 1e-3  # of all statistics together, for units that are independent
LEAST_SHARE = 1.5  # times the nominal share: below, a difference does not matter
FAR = 4.5  # sds of the replications by which the mean over units may differ
FEWEST_DRAWS = 40  # whose p-values can be extreme at all


class Predictive(NamedTuple):
    """What a part of a check found, and why nothing was done, or empty."""

    numbers: dict[str, float]
    reasons: list[Reason]
    columns: dict[str, np.ndarray]
    tables: Tables
    skipped: str


def predictive(
    joint: Joint,
    guide: Guide,
    data: Units,
    *,
    key: Array,
    draws: int,
    statistics: Mapping[str, Callable[[dict[str, Any]], Any]],
) -> Predictive:
    """Posterior-predictive checks of `data` by so many replications of each unit."""
    responses = [s.argument for s in joint.structure.of("observed") if s.argument is not None and s.per_unit]
    if why := _not_possible(joint, responses, draws):
        return Predictive({}, [], {}, {}, why)
    rows = evenly(len(data), MOST_UNITS)
    shared = draw_shared(guide, jax.random.fold_in(key, 0), draws)
    values = _statistics(joint, guide, data.take(rows), shared, jax.random.fold_in(key, 1), statistics)
    found = [judge(name, x[0], x[1:]) for name, x in values.items()]
    table = {column: np.array([row[column] for row in found]) for column in found[0]} if found else {}
    each = np.full(len(data), np.nan)
    if values:
        each[rows] = np.fmin.reduce([two_sided(p_values(x[0], x[1:])) for x in values.values()], axis=0)
    numbers = {"predictive_units": float(len(rows)), "predictive_draws": float(draws)}
    if found:
        numbers["predictive_extreme"] = float(np.nanmax(table["share_extreme"]))
    return Predictive(numbers, reasons(table, draws), {"predictive_p": each}, {"predictive": table}, "")


def _not_possible(joint: Joint, responses: list[str], draws: int) -> str:
    if not draws:
        return "not asked for (Checks(predictive_draws=0))"
    if draws < FEWEST_DRAWS:
        return f"{draws} draws are too few to be extreme; give Checks(predictive_draws={FEWEST_DRAWS}) or more"
    why = joint.structure.cannot_simulate
    if why and "improper prior" not in why:  # latents come from q
        return f"the model draws no data: {why}"
    return "" if responses else "no argument of a unit is observed as it is (obs=x), so that none can be drawn again"


def _statistics(
    joint: Joint, guide: Guide, data: Units, shared: Array, key: Array, statistics: Mapping[str, Callable]
) -> dict[str, np.ndarray]:
    """Every statistic by name, (1 + draws, units): of the data, then of their replications."""
    parts: list[dict[str, np.ndarray]] = []
    for chunk in chunks(data, joint.structure, len(shared)):
        drawn = _replications(joint, guide, chunk.batch, chunk.index, shared, key)
        both = {name: _beside(chunk, name, np.asarray(x)) for name, x in drawn.items()}
        found: dict[str, np.ndarray] = {}
        for name, values in both.items():
            count = chunk.stop - chunk.start
            mask = chunk.batch.masks.get(name)
            own = np.ones(values.shape[1:], bool) if mask is None else np.asarray(mask)[:count]
            found |= built_in(joint.structure, joint.structure.argument(name), values, own)
        parts.append(found | of_user(statistics, data, chunk.start, both))
    names = dict.fromkeys(name for part in parts for name in part)
    sizes = [next(iter(part.values())).shape for part in parts if part]
    if len(sizes) < len(parts):
        return {}
    absent = [np.full(size, np.nan) for size in sizes]
    return {n: np.concatenate([p.get(n, x) for p, x in zip(parts, absent, strict=True)], axis=1) for n in names}


def _beside(chunk: Chunk, name: str, drawn: np.ndarray) -> np.ndarray:
    """The data themselves before their replications (draws, units, ...), without the units that fill the chunk."""
    seen = np.asarray(chunk.batch.arrays[name])[None]
    return np.concatenate([seen, drawn])[:, : chunk.stop - chunk.start]


@eqx.filter_jit
def _replications(
    joint: Joint, guide: Guide, batch: Batch, index: Array, shared: Array, key: Array
) -> dict[str, Float[Array, "draws units ..."]]:
    contexts = guide.encode(batch)

    def one(index: Array, context: Any, unit: Batch) -> dict[str, Array]:
        def draw(key: Array, v: Array) -> dict[str, Array]:
            local_key, data_key = jax.random.split(key)
            local, _ = guide.sample_local(local_key, context, v, unit, joint)
            return draw_again(joint, data_key, local, v, unit)

        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])
        return jax.vmap(draw)(keys, shared)

    return jax.vmap(one, out_axes=1)(index, contexts, batch)


def p_values(observed: Float[np.ndarray, " units"], replicated: Float[np.ndarray, "draws units"]) -> np.ndarray:
    """Mid-p of every unit: the share of replications below, ties counted half; NaN where the data have no value."""
    near = np.abs(replicated - observed) <= 1e-9 * np.maximum(np.abs(observed), 1.0)
    below = (replicated < observed) & ~near
    valid = np.isfinite(replicated)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (np.sum(below & valid, axis=0) + 0.5 * np.sum(near & valid, axis=0)) / np.sum(valid, axis=0)
    return np.where(np.isfinite(observed), found, np.nan)


def two_sided(p: np.ndarray) -> np.ndarray:
    """Twice the smaller tail."""
    return 2.0 * np.minimum(p, 1.0 - p)


def judge(name: str, observed: np.ndarray, replicated: np.ndarray) -> dict[str, Any]:
    """One row of the table: what the statistic is in the data and in replications, and how far that is apart."""
    p = p_values(observed, replicated)
    there = np.isfinite(p) & np.isfinite(replicated).all(axis=0)
    if not there.any():
        return _row(name, 0, *[np.nan] * 5)
    seen, drawn = observed[there].mean(), replicated[:, there].mean(axis=1)
    sd = drawn.std(ddof=1)
    far = (seen - drawn.mean()) / sd if sd > 1e-9 * max(abs(seen), 1.0) else 0.0
    pooled = float(p_values(np.array([seen]), drawn[:, None])[0])
    share = float(np.mean((p[there] < TAIL) | (p[there] > 1.0 - TAIL)))
    return _row(name, int(there.sum()), seen, drawn.mean(), pooled, far, share)


def _row(name: str, units: int, seen: float, drawn: float, pooled: float, far: float, share: float) -> dict[str, Any]:
    return {
        "statistic": name,
        "units": units,
        "observed": float(seen),
        "replicated": float(drawn),
        "p": float(pooled),
        "sds_apart": float(far),
        "share_extreme": float(share),
    }


def nominal_share(draws: int) -> float:
    """The share of extreme p-values of a uniform rank among so many draws."""
    return 2.0 * np.ceil(TAIL * draws) / (draws + 1)


def share_limit(units: int, draws: int, num_statistics: int) -> float:
    """The share of extreme units up to which it may be chance (binomial), and up to which it does not matter."""
    from scipy.special import betainc  # SciPy comes with JAX

    nominal, counts = nominal_share(draws), np.arange(1, units + 1)
    tail = betainc(counts, units - counts + 1, nominal)  # P(that many or more)
    possible = counts[tail < FALSE_ALARM / num_statistics]
    fewest = possible[0] if len(possible) else units + 1
    return max((fewest - 1) / units, LEAST_SHARE * nominal)


def reasons(table: Mapping[str, np.ndarray], draws: int) -> list[Reason]:
    """One warning that names every statistic in which the data are unlike their replications."""
    said = []
    count = len(table["statistic"]) if table else 0
    for i in range(count):
        share, apart, p = (float(table[name][i]) for name in ("share_extreme", "sds_apart", "p"))
        limit = share_limit(int(table["units"][i]), draws, count) if table["units"][i] else np.inf
        values = f"{table['observed'][i]:.3g} in the data, {table['replicated'][i]:.3g} in replications"
        if share > limit:
            said.append(f"'{table['statistic'][i]}' ({values}; extreme in {share:.0%} of units, limit {limit:.0%})")
        elif abs(apart) > FAR and p in (0.0, 1.0):
            said.append(f"'{table['statistic'][i]}' ({values}; {abs(apart):.1f} sds apart, limit {FAR})")
    if not said:
        return []
    text = f"The data are unlike what the model draws in {'; '.join(said[:3])}" + f" and {len(said) - 3} more" * (
        len(said) > 3
    )
    step = (
        "if q passes the other checks the model is wrong there: draw posterior.predict(...) beside the data, and give "
        "the likelihood what it lacks (heavier tails, more spread, zeros, dependence)"
    )
    return [Reason("predictive", "WARN", text + ".", step)]
