"""How is padding kept from being work? Units that are all in every step are grouped by length, padded by group.

A county of 116 houses among counties of ten would otherwise make every county cost 116.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from .._types import Batch

MOST_GROUPS = 3  # each is compiled on its own
WORTH = 0.75  # a further group must bring the padded cells below this share


def by_length(data: Batch) -> tuple[Batch, ...]:
    """The units of host `data` in at most `MOST_GROUPS` groups, by the lengths of their longest ragged argument.

    One where latents come with them: those of ragged plates are as many as the longest unit has.
    """
    if not data.lengths or data.latents is not None:
        return (data,)
    return tuple(trimmed(data, rows) for rows in rows_by_length(data))


def rows_by_length(data: Batch) -> list[np.ndarray]:
    """The rows of every group."""
    longest = np.max(np.stack([np.asarray(n) for n in data.lengths.values()]), axis=0)
    cuts = [int(longest.max())]
    while len(cuts) < MOST_GROUPS:
        candidates = [sorted({*cuts, int(c)}) for c in np.unique(longest) if c not in cuts]
        best = min(candidates, key=lambda c: _cells(longest, c), default=cuts)
        if _cells(longest, best) > WORTH * _cells(longest, cuts):
            break
        cuts = best
    bounds = [-1, *sorted(cuts)]
    chosen = [
        np.flatnonzero((longest > low) & (longest <= high)) for low, high in zip(bounds, bounds[1:], strict=False)
    ]
    return [rows for rows in chosen if len(rows)]


def _cells(longest: np.ndarray, cuts: list[int]) -> int:
    """Padded cells in all, each unit padded to the least cut that holds it."""
    ends = np.asarray(cuts)
    return int(np.maximum(ends, 1)[np.searchsorted(ends, longest)].sum())


def trimmed(data: Batch, rows: np.ndarray) -> Batch:
    """These units, padded no longer than the longest of them."""
    part = jax.tree.map(lambda x: np.asarray(x)[rows], data)

    def cut(values: dict) -> dict:
        ends = {name: max(int(part.lengths[name].max()), 1) for name in part.lengths}
        return {name: x[:, : ends[name]] if name in ends else x for name, x in values.items()}

    return dataclasses.replace(part, arrays=cut(part.arrays), masks=cut(part.masks))
