"""In which order are discrete sites summed? By level: those in the same inner plates together, the innermost first.

A unit's density is summed over all assignments of its discrete sites. Those of an inner plate are summed element by
element, which never needs the product over elements: given the levels outside it, one element tells nothing of another,

    p(d) = Σ_a p(a) Π_j Σ_b p(b, d_j | a)        (a of the unit, b of element j).

So all that depends on a site must stand in all of its plates, which `refuse_sums` checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

from .._errors import ModelError
from .structure import Site, Structure

MOST_ASSIGNMENTS = 1024  # of all levels of a unit together; each is one evaluation of the model


@dataclasses.dataclass(frozen=True)
class Level:
    """The discrete sites in one set of inner plates, and all sites whose density is added up there."""

    plates: frozenset[str]
    sites: tuple[Site, ...]
    members: tuple[Site, ...]
    ancestors: tuple[int, ...]  # numbers of the levels in fewer of these plates, outermost first

    @property
    def size(self) -> int:
        """Assignments of its sites, for one element."""
        return math.prod(site.num_assignments for site in self.sites)

    def codes(self) -> np.ndarray:
        """Every assignment (assignments, width) as zeros and ones: one for the value of each site and event element."""
        table, parts = self.table(), [np.zeros((self.size, 0))]
        for site in self.sites:
            same = table[site.name].reshape(self.size, -1, 1) == np.asarray(site.choices)
            parts.append(same.reshape(self.size, -1))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def table(self) -> dict[str, np.ndarray]:
        """Every site's value (assignments, *event) in each assignment."""
        counts = [len(site.choices) for site in self.sites for _ in range(math.prod(site.event_shape))]
        digits = np.stack(np.unravel_index(np.arange(self.size), counts), axis=1) if counts else np.zeros((1, 0), int)
        found, start = {}, 0
        for site in self.sites:
            stop = start + math.prod(site.event_shape)
            values = np.asarray(site.choices)[digits[:, start:stop]]
            found[site.name], start = values.reshape(-1, *site.event_shape), stop
        return found


def levels_of(structure: Structure, known: Collection[Site] = ()) -> tuple[Level, ...]:
    """All levels, every one after its ancestors; the first is the unit's own, with or without discrete sites.

    **Arguments**: `known` sites that have a value and are not summed.
    """
    plates = {frozenset(), *(site.plates for site in structure.summed)}
    ordered = sorted(plates, key=lambda p: (len(p), sorted(p)))
    members: dict[frozenset[str], list[Site]] = {p: [] for p in ordered}
    for site in structure.of("local", "discrete", "observed", "factor"):
        if site.per_unit:
            members[[p for p in ordered if p <= site.plates][-1]].append(site)
    return tuple(
        Level(
            p,
            tuple(s for s in structure.summed if s.plates == p and s not in known),
            tuple(members[p]),
            tuple(i for i, other in enumerate(ordered) if other < p),
        )
        for p in ordered
    )


def refuse_sums(structure: Structure, follows: Mapping[str, frozenset[str]]) -> None:
    """Raises `ModelError` for discrete sites that can't be summed element by element.

    **Arguments**: `follows` names, for every site, the latents and arguments on which its distribution depends.
    """
    _refuse_shared_elements(structure, follows)
    _refuse_crossed(structure)


def _refuse_shared_elements(structure: Structure, follows: Mapping[str, frozenset[str]]) -> None:
    """Whatever depends on a discrete site must be in all of its plates."""
    for cause in structure.summed:
        source = cause.argument or cause.name
        for site in structure.of("local", "discrete", "observed", "factor"):
            if site.name == cause.name or source not in follows.get(site.name, frozenset()):
                continue
            if apart := sorted(cause.plates - site.plates):
                raise ModelError(
                    f"site '{site.name}' depends on the discrete site '{cause.name}' of every element of plate "
                    f"'{apart[0]}' but is not in that plate, so the elements can't be summed one by one; write "
                    f"'{site.name}' inside it, or make '{cause.name}' one event of the unit (.to_event), whose "
                    f"assignments are summed together, {MOST_ASSIGNMENTS:,} at most"
                )


def _refuse_crossed(structure: Structure) -> None:
    """The plates of a site that have discrete sites of their own must be nested."""
    levels = {site.plates for site in structure.summed}
    for site in structure.of("local", "discrete", "observed", "factor"):
        within = sorted((p for p in levels if p <= site.plates), key=len)
        if any(not a <= b for a, b in zip(within, within[1:], strict=False)):
            names = [s.name for s in structure.summed if s.plates in within]
            raise ModelError(
                f"site '{site.name}' is in plates {sorted(site.plates)}, of which several have discrete sites of their "
                f"own ({names}) that cross there and can't be summed apart; write one of them as an event of the "
                "unit (.to_event), or nest the plates"
            )


def refuse_too_many(structure: Structure) -> None:
    """Raises `ModelError` for too many assignments of what is not drawn: they multiply the work of every evaluation."""
    levels = levels_of(structure, structure.drawn)
    total = math.prod(level.size for level in levels)
    if total <= MOST_ASSIGNMENTS:
        return
    parts = ", ".join(
        f"'{s.name}' {len(s.choices)}" + (f"^{n}" if (n := math.prod(s.event_shape)) > 1 else "")
        for s in structure.summed
        if s not in structure.drawn
    )
    count = f"{total:,}" if total < 10**9 else f"{float(total):.1e}"
    draw = "let q draw those of the unit itself (classifier=am.factorised()), " if levels[0].size > 1 else ""
    raise ModelError(
        f"the discrete sites of one unit of plate '{structure.plate}' have {count} assignments ({parts}), of which "
        f"at most {MOST_ASSIGNMENTS:,} are summed; {draw}put independent ones in a plate of their own inside "
        f"'{structure.plate}' (its elements are summed one by one), give them fewer values, or sum some out yourself "
        "(numpyro.distributions.MixtureSameFamily)"
    )
