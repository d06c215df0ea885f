"""Are the observed values possible? Every value against its site's support, every index against its axis, before training.

Compiled code clamps a wrong index and returns a number for an impossible count; here they are errors that name the
unit, the place and the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._errors import DataError
from .._types import Batch
from .joint import Joint
from .structure import Site

CHUNK = 4096


def check_values(joint: Joint, data: Batch, labels: Sequence[Any]) -> None:
    """Raises `DataError` at the first index out of range or observed value outside its support; host arrays in."""
    for argument in joint.structure.arguments:
        if argument.categories is not None:
            _check_index(argument.name, argument.categories, data, labels)
    sites = tuple(s for s in joint.structure.of("observed") if s.checkable and s.per_unit)
    if not sites:
        return
    size = len(labels)
    chunk = min(CHUNK, size)
    for start in range(0, size, chunk):
        rows = np.minimum(np.arange(start, start + chunk), size - 1)
        part = jax.tree.map(lambda x, r=rows: np.asarray(x)[r], data)
        possible = _possible(joint, sites, part)
        for site, good in zip(sites, possible, strict=True):
            bad = np.argwhere(~np.asarray(good))
            if len(bad):
                _refuse(site, part, bad[0], labels[rows[bad[0][0]]], joint.structure.plate)


def _check_index(name: str, count: int, data: Batch, labels: Sequence[Any]) -> None:
    value, mask = np.asarray(data.arrays[name]), data.masks.get(name)
    wrong = (value < 0) | (value >= count)
    bad = np.argwhere(wrong if mask is None else wrong & np.asarray(mask))
    if len(bad):
        where = tuple(bad[0])
        raise DataError(
            f"data['{name}'] is {value[where]} at unit '{labels[where[0]]}'{_place(where[1:])}, but the model uses it as an "
            f"index into an axis of length {count}: expected 0 to {count - 1}"
        )


@eqx.filter_jit
def _possible(joint: Joint, sites: tuple[Site, ...], data: Batch) -> list[jax.Array]:
    def one(unit: Batch) -> list[jax.Array]:
        return [good for good in joint.in_support(unit, sites)]

    return jax.vmap(one)(data)


def _refuse(site: Site, part: Batch, bad: np.ndarray, label: Any, plate: str) -> None:
    where = tuple(int(i) for i in bad)
    got = f"is {part.arrays[site.argument][where[: part.arrays[site.argument].ndim]]}" if site.argument else "is"
    raise DataError(
        f"observed site '{site.name}' {got} at {plate} '{label}'{_place(where[1:])}, outside its support "
        f"{site.support}; correct the value, mark it missing (NaN), or change the distribution"
    )


def _place(where: Sequence[Any]) -> str:
    return f", element {', '.join(str(int(i)) for i in where)}" if len(where) else ""
