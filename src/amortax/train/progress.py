"""What does the user see while it trains? One line: bound per unit, units per second, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """A progress bar on a terminal, nothing elsewhere; `shown` None decides by whether standard error is a terminal."""

    def __init__(self, total: int, shown: bool | None) -> None:
        self.total = total
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.bar: Any = None
        self.task: Any = None
        self.start = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("training"),
                BarColumn(),
                TextColumn("ELBO {task.fields[elbo]} nats/unit · {task.fields[rate]} units/s ·"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, elbo="…", rate="…")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, elbo_per_unit: float, units: int) -> None:
        """Reports `step` of the total, the bound of the last block, and the units passed so far."""
        if self.bar is not None:
            rate = units / max(time.perf_counter() - self.start, 1e-9)
            self.bar.update(self.task, completed=step, elbo=f"{elbo_per_unit:.4f}", rate=f"{rate:,.0f}")
