"""Which units made a step fail? Those of its batch whose own bound is not finite, in words for an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch, PyTree
from ..objectives.base import batch_size
from .step import Setting, unit_elbos


def at_fault(setting: Setting, params: PyTree, chosen: PyTree, units: Batch, labels: Sequence[Any]) -> str:
    """The labels of the units in a bad batch whose own bound is not finite; `chosen` are its indices or its rows."""
    if setting.data is None:
        each = np.asarray(unit_elbos(params, setting.rest, chosen, jax.random.key(0)))
        count = int(np.sum(~np.isfinite(each)))
        return f", in {count} units of the batch" if count else ""
    index = np.asarray(chosen) if chosen.shape[0] else np.arange(batch_size(units))
    batch = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), units)
    each = np.asarray(unit_elbos(params, setting.rest, batch, jax.random.key(0)))
    wrong = np.flatnonzero(~np.isfinite(each))
    return f", units {[labels[i] for i in index[wrong][:5]]}" if len(wrong) else ""
