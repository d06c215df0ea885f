"""What does an encoder cost and lose? Two posteriors of one model on the same units: bounds unit by unit, time, memory.

    gap_i = ELBO_i of the first - ELBO_i of the second,   ELBO_i = E_q(v) E_q(u | d_i, v) [ log p(d_i, u | v) - log q ],

both at the same noise and the same draws of the globals v, half of them from each posterior. With parameters of each
unit's own (`free`) against an encoder of the same family this is the amortization gap (Cremer, Li and Duvenaud 2018).

Bounds of units are given at each posterior's own globals. Where two fits ended with their globals apart, each answers
badly at the other's, and the gap is not of amortization: it is then given at the globals of either, with a warning.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._errors import DataError
from ._types import Batch, check_key, trainable, whole_number
from .chunks import chunks
from .data import Units
from .guide import Guide
from .importance import log_weights, shared_draws
from .joint.joint import Joint
from .posterior import Posterior

GLOBAL_DRAWS = 8  # from each posterior
APART = 0.1  # nats per unit that the gap may differ between the globals of the one and of the other

Pair = tuple[Joint, Guide]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a posterior took: training, compiling included, and its trained parameters."""

    name: str  # its encoder
    seconds: float
    num_steps: int
    batch_size: int
    num_parameters: int
    parameter_bytes: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Bounds and costs of two posteriors; `print` shows them.

    `units` has one row per unit, in nats: label, `elbo_first` and `elbo_second`, each at its own globals, `gap` (first
    - second) at the same globals of both, and `gap_se`. `gap` and `gap_se` are of the mean over these units, `gap_at`
    at the globals of the first and of the second alone; standard errors are of Monte Carlo.
    """

    plate: str
    units: dict[str, np.ndarray]
    gap: float
    gap_se: float
    gap_at: tuple[float, float]
    costs: tuple[Cost, Cost]

    @property
    def apart(self) -> bool:
        """Whether the posteriors' globals are so far apart that the gap is not of amortization."""
        return abs(self.gap_at[0] - self.gap_at[1]) > APART + 5 * self.gap_se * 2**0.5

    def __str__(self) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table("posterior", "ELBO per unit", "trained in", "steps x units", "parameters", box=SIMPLE_HEAD)
        for place, cost in zip(("first", "second"), self.costs, strict=True):
            steps = f"{cost.num_steps:,} x {cost.batch_size:,}"
            size = f"{cost.num_parameters:,} ({cost.parameter_bytes / 1e6:,.2f} MB)"
            elbo = f"{self.units[f'elbo_{place}'].mean():.4f}"
            table.add_row(f"{place}, {cost.name}", elbo, f"{cost.seconds:,.1f} s", steps, size)
        out = io.StringIO()
        Console(file=out, width=110, force_terminal=False).print(table, highlight=False)
        gap, error = self.units["gap"], self.units["gap_se"]
        worst = int(np.argmax(np.abs(gap)))
        low, middle, high = map(_nats, np.quantile(gap, [0.05, 0.5, 0.95]))
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        return "\n".join(
            [
                *lines,
                f"gap, first - second, over {len(gap):,} units: {_nats(self.gap)} ± {_nats(self.gap_se)} nats per unit",
                f"unit by unit: median {middle}, nine in ten from {low} to {high}, largest "
                f"{_nats(gap[worst])} ± {_nats(error[worst])} at {self.plate} '{self.units[self.plate][worst]}'",
                *self._warning(),
            ]
        )

    def _warning(self) -> list[str]:
        if not self.apart:
            return []
        first, second = map(_nats, self.gap_at)
        return [
            f"WARN: the globals of the two are apart: the gap is {first} at the first's and {second} at the second's,",
            "so it is not the amortization gap. They may be in different modes, or one is not trained to its end:",
            "compare posterior.record.elbo_per_unit, train on, or fit again with another key.",
        ]


def compare(first: Posterior, second: Posterior, data: Any, *, key: Array, num_samples: int = 500) -> Comparison:
    """Prints and returns how far two posteriors of one model differ on `data`, and what each took.

    **Arguments:** `first`, `second` of the same model, `free` first for the amortization gap of the second; `data`
    units that both can answer for; `key` a typed JAX key; `num_samples` draws of each unit per draw of the globals.

    **Returns** a `Comparison`. Each posterior is judged under its own learned parameters, if the model has any. A gap
    below zero says that the first was not trained to its end, or that the second's family bends further.

    **Raises** `DataError` for posteriors of different models, and for units that one of them can't answer for.
    """
    check_key(key)
    num_samples = whole_number("num_samples", num_samples)
    if num_samples < 2:
        raise DataError("compare: num_samples must be 2 or more, for a standard error")
    for posterior in (first, second):
        if not isinstance(posterior, Posterior):
            raise DataError(f"compare(first, second, data): expected two posteriors, got {posterior!r}")
        posterior.refuse_unjudgeable("compare")
    if difference := first.plan.structure.difference(second.plan.structure):
        raise DataError(f"compare: the posteriors are of different models, {difference}; give two of one model")
    plate, units = first.plan.structure.plate, (first.answerable(data), second.answerable(data))
    shared_key, unit_key = jax.random.split(key)
    pairs = ((first.joint, first.guide), (second.joint, second.guide))
    shared = _shared(shared_key, *pairs)
    found = _means(pairs, units, shared, unit_key, num_samples)
    difference_each = found[0] - found[1]
    per_draw = difference_each.mean(axis=0)
    several = shared.shape[0] > 1
    spread = difference_each.std(axis=1, ddof=1) / np.sqrt(shared.shape[0]) if several else np.sqrt(found[2][:, 0])
    total = per_draw.std(ddof=1) / np.sqrt(len(per_draw)) if several else np.sqrt(found[2].sum()) / len(units[0])
    half = (shared.shape[0] + 1) // 2  # draws of the first posterior, then of the second; one, empty, is of both
    rows = {
        plate: np.asarray(units[0].labels),
        "elbo_first": found[0][:, :half].mean(axis=1),
        "elbo_second": found[1][:, -half:].mean(axis=1),
        "gap": difference_each.mean(axis=1),
        "gap_se": spread,
    }
    gap_at = float(per_draw[:half].mean()), float(per_draw[-half:].mean())
    costs = _cost(first), _cost(second)
    comparison = Comparison(plate, rows, float(per_draw.mean()), float(total), gap_at, costs)
    print(comparison)
    return comparison


def _nats(value: float) -> str:
    return f"{round(float(value), 5) + 0.0:.5f}"  # no -0.00000


def _shared(key: Array, first: Pair, second: Pair) -> Float[Array, "r g"]:
    """Draws of the globals, half from each posterior; without globals one, empty."""
    if first[1].shared is None:
        return jnp.zeros((1, 0))
    keys = jax.random.split(key)
    draws = [shared_draws(k, guide, GLOBAL_DRAWS)[0] for k, (_, guide) in zip(keys, (first, second), strict=True)]
    return jnp.concatenate(draws)


def _means(
    pairs: tuple[Pair, Pair], units: tuple[Units, Units], shared: Array, key: Array, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean log weight of the first, of the second, squared standard error of their difference), each (units, R)."""
    parts = []
    draws, structure = shared.shape[0] * count, pairs[0][0].structure
    for one, other in zip(chunks(units[0], structure, draws), chunks(units[1], structure, draws), strict=True):
        part = _chunk_means(pairs, (one.batch, other.batch), shared, one.index, key, count)
        parts.append([np.asarray(x, np.float64)[: one.stop - one.start] for x in part])
    first, second, square = (np.concatenate(x) for x in zip(*parts, strict=True))
    return first, second, square


@eqx.filter_jit
def _chunk_means(
    pairs: tuple[Pair, Pair], batches: tuple[Batch, Batch], shared: Array, index: Array, key: Array, count: int
) -> tuple[Array, Array, Array]:
    contexts = tuple(guide.encode(batch) for (_, guide), batch in zip(pairs, batches, strict=True))

    def given(unit_key: Array, shared: Array, contexts: tuple, units: tuple) -> tuple[Array, Array, Array]:
        weights = [
            log_weights(unit_key, guide, joint, context, shared, unit, count)
            for (joint, guide), context, unit in zip(pairs, contexts, units, strict=True)
        ]
        difference = weights[0] - weights[1]
        return jnp.mean(weights[0]), jnp.mean(weights[1]), jnp.var(difference, ddof=1) / count

    def one(index: Array, contexts: tuple, units: tuple) -> tuple[Array, Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, index), shared.shape[0])
        return jax.vmap(given, in_axes=(0, 0, None, None))(keys, shared, contexts, units)

    return jax.vmap(one)(index, contexts, batches)


def _cost(posterior: Posterior) -> Cost:
    pair, record = (posterior.joint, posterior.guide), posterior.record
    arrays = jax.tree.leaves(eqx.filter(pair, trainable(pair)))
    encoder = posterior.plan.encoder
    name = "without locals" if encoder is None else type(encoder).__name__
    size, weight = sum(x.size for x in arrays), sum(x.nbytes for x in arrays)
    return Cost(name, record.seconds, record.num_steps, record.batch_size, size, weight)
