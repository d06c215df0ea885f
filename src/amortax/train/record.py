"""What happened in a training run? Plain numbers, stored with the posterior."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .._errors import check_entries


@dataclasses.dataclass(frozen=True)
class Record:
    """The run that made a posterior. Bounds are of training batches, in nats per unit, at the time they were passed."""

    num_units: int
    num_steps: int
    batch_size: int
    seconds: float
    stopped: str  # "converged", "num_steps", "limit", "interrupted", "validation"
    skipped_steps: int  # steps rolled back because something was not finite
    step: tuple[int, ...] = ()  # at the end of every block
    elbo_per_unit: tuple[float, ...] = ()  # mean over the block
    validation_elbo_per_unit: tuple[float, ...] = ()
    bias: str = ""  # what made the gradient another than that of the bound, if anything did
    data_fingerprint: str = ""
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def units_per_second(self) -> float:
        """Units passed per second of training, compiling included."""
        return self.num_steps * self.batch_size / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which has no NaN and no infinity: a bound that is not finite is stored as its name."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(spec: dict[str, Any]) -> Record:
        """The record that `to_json` wrote.

        **Raises** `ArtifactError` for unknown entries, and for those missing that every version writes.
        """
        needed = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(Record)}
        check_entries("training record", spec, [n for n, always in needed.items() if always], needed)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        for name in ("elbo_per_unit", "validation_elbo_per_unit"):
            plain[name] = tuple(map(float, plain.get(name, ())))
        plain["versions"] = tuple(tuple(pair) for pair in spec.get("versions", ()))
        return Record(**plain)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
