"""Which unit needs how much repair? Rung after rung, each only for the units that the ones before did not mend.

    encoder → own parameters → Pareto-smoothed reweighting → tempered SMC → HMC → FAIL

A rung is taken for a unit only where its numbers are better: parameters of its own where their bound rose by more than
its error, reweighting where the weights' tail allows it, SMC and HMC where further moves no longer change the draws.
What fails keeps the best q that was found, and is called FAIL.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Fixed, PyTree
from ..chunks import bucketed_lengths, chunks
from ..data import Units
from . import anneal, optimise, reweight
from .judge import Judged, judged
from .own import LARGEST_DENSE, AbstractOwn, OwnContext, encoded
from .rungs import Standing, agreed, arrived, better, mended, settled, standing
from .target import Target

SHARED, DRAWS = 8, 500  # draws of the globals, and of a unit at each of them, by which q is judged
FIRST, LAST = 8, 256  # moves of HMC between two looks at the draws
NEVER = float("inf")


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What was done for every unit: its rung, verdict, seconds; and draws where they are not the encoder's."""

    rung: np.ndarray
    verdict: np.ndarray
    seconds: np.ndarray
    draws: dict[int, np.ndarray]  # place of the unit in the data -> unconstrained locals (s, d)


@dataclasses.dataclass(frozen=True)
class Group:
    """Some units with a q of the same form."""

    units: np.ndarray  # places in the data
    own: AbstractOwn
    judgement: Judged
    stands: Standing

    def __getitem__(self, rows: np.ndarray) -> Group:
        return Group(*jax.tree.map(lambda x: x[rows], (self.units, self.own, self.judgement, self.stands)))


class Ladder:
    """One climb: the units, the globals that answers are given at, and what is known of each unit so far."""

    def __init__(
        self, target: Target, data: Units, shared: Array, *, num_samples: int, key: Array, exact: bool
    ) -> None:
        """`shared` are draws (s, g) of the globals, at which answers are given; (1, 0) where there are none."""
        self.target, self.data, self.shared, self.key, self.exact = target, data, shared, key, exact
        self.num_samples = num_samples
        self.lengths = bucketed_lengths(data)
        self.rung = np.full(len(data), "encoder", dtype="<U9")
        self.verdict = np.full(len(data), "FAIL", dtype="<U4")
        self.seconds = np.zeros(len(data))
        self.draws: dict[int, np.ndarray] = {}
        self.judges = shared[np.linspace(0, len(shared) - 1, min(SHARED, len(shared))).astype(int)]
        self.until = NEVER

    def climb(self, until: float = NEVER) -> Repaired:
        """Takes every unit as far up as it needs, and as `until` of `time.monotonic` allows."""
        self.until = until
        first = self._judged("encoder", np.arange(len(self.data)))
        if first is not None:
            good = mended(first.stands, exact=self.exact)
            self.verdict[first.units[good]] = "PASS"
            bad = first[~good]
            if len(bad.units):
                found = self._own_parameters(bad)
                self._finish(bad[~np.isin(bad.units, found.units)] if found else bad, "encoder")
                if found:
                    self._finish(found, "own")
        return Repaired(self.rung, self.verdict, self.seconds, self.draws)

    def _over(
        self,
        name: str,
        units: np.ndarray,
        draws: int,
        what: Callable[..., PyTree],
        *rows: PyTree,
        until: float | None = None,
    ) -> PyTree:
        """`what(key, batch, index, *rows)` of some units, chunk by chunk, as far as time allows; None: of none.

        The key follows from the name, so that each purpose has noise of its own; `until` stands for the climb's end.
        """
        key, found = jax.random.fold_in(self.key, zlib.crc32(name.encode())), []
        until = self.until if until is None else until
        pieces = chunks(self.data.take(units), self.target.joint.structure, draws, self.lengths) if len(units) else ()
        for chunk in pieces:
            if time.monotonic() > until:
                break
            began, places, own = time.monotonic(), np.asarray(chunk.index), units[chunk.start : chunk.stop]
            part = what(
                key, chunk.batch, jnp.asarray(units[places]), *jax.tree.map(lambda x, p=places: jnp.asarray(x[p]), rows)
            )
            size = len(own)
            found.append(jax.tree.map(lambda x, n=size: np.asarray(x)[:n], part))
            self.seconds[own] += (time.monotonic() - began) / size
        return jax.tree.map(lambda *x: np.concatenate(x), *found) if found else None

    def _judged(self, name: str, units: np.ndarray, own: AbstractOwn | None = None) -> Group | None:
        """The units, as far as time allows, judged under the encoder's q or their `own`."""
        target, judges = self.target, self.judges

        def what(key: Array, batch: Any, index: Array, *rows: Any) -> tuple[AbstractOwn, Judged]:
            q = rows[0] if rows else encoded(target, batch)
            return q, judged(key, target, q, judges, batch, index, DRAWS)

        found = self._over(name, units, len(judges) * DRAWS, what, *(() if own is None else (own,)))
        if found is None:
            return None
        q, judgement = found
        q = _located(q, judgement) if isinstance(q, OwnContext) else q
        stands = standing(judgement.numbers, judgement.own, DRAWS)
        return Group(units[: len(stands.k)], q, judgement, stands)

    def _own_parameters(self, group: Group) -> Group | None:
        """Those of the units that parameters of their own make better."""
        target, judges, center = self.target, self.judges, jnp.mean(self.shared, axis=0)
        normal = target.continuous and group.judgement.best.shape[-1] <= LARGEST_DENSE
        rate = optimise.RATE["normal" if normal else "context"]

        def what(key: Array, batch: Any, index: Array, own: AbstractOwn, best: Array) -> AbstractOwn:
            start = optimise.normals(target, best, center, batch) if normal else own
            return optimise.optimised(key, target, start, judges, batch, index, rate)

        draws = len(judges) * optimise.PARTICLES
        own = self._over("own", group.units, draws, what, group.own, group.judgement.best)
        if own is None:
            return None
        done = len(jax.tree.leaves(own)[0])
        found = self._judged("judge", group.units[:done], own)
        if found is None:
            return None
        return found[better(found.stands, group[np.arange(len(found.units))].stands)]

    def _finish(self, group: Group, rung: str) -> None:
        """Draws of units from q, from q reweighted, or from samplers, as their numbers ask for."""
        good = mended(group.stands, exact=self.exact or rung == "own")  # once in repair, the next rung costs little
        weighed = ~good & settled(group.stands)
        self.verdict[group.units[good]] = "PASS"
        done = self._reweight(group[weighed])
        if rung == "own":
            self._draw(group[~np.isin(group.units, done)])
        if np.any(rest := ~good & ~weighed) and self.target.continuous:
            self._sample(group[rest])

    def _draw(self, group: Group) -> None:
        """Takes the units' own q as the answer."""
        target, shared, count = self.target, self.shared, self.num_samples

        def what(key: Array, batch: Any, index: Array, own: AbstractOwn) -> Array:
            return reweight.drawn(key, target, own, shared, batch, index, count)

        self._keep("draw", group, count, what, until=NEVER)  # what was found is kept
        self.rung[group.units] = "own"

    def _reweight(self, group: Group) -> np.ndarray:
        """Takes q reweighted as the answer, of those units that it returns."""
        if not len(group.units):
            return group.units
        target, shared, count = self.target, self.shared, self.num_samples
        candidates = reweight.candidates_for(float(np.min(group.stands.kept)))

        def what(key: Array, batch: Any, index: Array, own: AbstractOwn) -> Array:
            return reweight.resampled(key, target, own, shared, batch, index, count, candidates)

        done = self._keep("reweight", group, count * candidates, what)
        self.rung[done], self.verdict[done] = "reweight", "PASS"
        return done

    def _sample(self, group: Group) -> None:
        """SMC, then HMC for as long as it changes the draws; they are taken where they have come to rest."""
        target, shared, count = self.target, self.shared, self.num_samples

        def lead(key: Array, batch: Any, index: Array, own: AbstractOwn) -> anneal.Led:
            return anneal.annealed(key, target, own, shared, batch, index, count)

        led = self._over("smc", group.units, count * anneal.PARTICLES, lead, group.own)
        if led is None:
            return
        trusted = agreed(led.log_evidence, led.local, led.arrived, pooled=target.pooled)
        rest, rung, moves = np.arange(len(trusted)), "smc", FIRST
        group, chains = group[rest], anneal.first_chains(led)
        while len(rest) and moves <= LAST:
            after = self._moved(group[rest], jax.tree.map(lambda x, r=rest: x[r], chains), moves)
            if after is None:
                break
            rest = rest[: len(after.step)]
            start, chains = chains.local[rest], anneal.with_rows(chains, rest, after)
            still = arrived(start, after.local, after.accepted, trusted[rest] & (rung == "smc"))
            self._place(group[rest[still]], rung, chains.local[rest[still]])
            rest, moves, rung = rest[~still], 2 * moves, "hmc"

    def _place(self, group: Group, rung: str, local: Any) -> None:
        """Takes draws in the chart as the answer."""
        target, shared = self.target, self.shared

        def what(_: Array, batch: Any, index: Array, own: AbstractOwn, local: Array) -> Array:
            return anneal.placed(target, own, shared, batch, local)

        self._keep("place", group, self.num_samples, what, local, until=NEVER)
        self.rung[group.units], self.verdict[group.units] = rung, "PASS"

    def _moved(self, group: Group, chains: anneal.Moved, moves: int) -> anneal.Moved | None:
        target, shared = self.target, self.shared

        def go(key: Array, batch: Any, index: Array, own: AbstractOwn, chains: anneal.Moved) -> anneal.Moved:
            return anneal.moved(key, target, own, shared, batch, index, chains, moves)

        return self._over(f"hmc {moves}", group.units, self.num_samples, go, group.own, chains)

    def _keep(
        self,
        name: str,
        group: Group,
        draws: int,
        what: Callable[..., Array],
        *rows: PyTree,
        until: float | None = None,
    ) -> np.ndarray:
        """Keeps draws (units, s, d), with choices where these were summed; says of which units time allowed them."""
        target, shared = self.target, self.shared

        def complete(key: Array, batch: Any, index: Array, *rows: Any) -> Array:
            draw_key, choice_key = jax.random.split(key)
            return anneal.completed(choice_key, target, shared, batch, index, what(draw_key, batch, index, *rows))

        found = self._over(name, group.units, draws, complete, group.own, *rows, until=until)
        done = group.units[: 0 if found is None else len(found)]
        self.draws.update(zip(done.tolist(), () if found is None else found, strict=True))
        return done


def _located(own: OwnContext, judgement: Judged) -> OwnContext:
    """q with the center and scale of its draws."""
    center, scale = np.asarray(judgement.center), np.asarray(judgement.scale)
    place = Fixed({"center": center, "scale": np.maximum(np.nan_to_num(scale, nan=1.0, posinf=1.0), 1e-6)})
    return eqx.tree_at(lambda q: q.place, own, place)
