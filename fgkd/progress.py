"""Progress of long work: what it reports to its caller, and how the caller asks it to stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass


class Progress:
    """What long work calls; this base class ignores everything and never asks it to stop.

    Subclass it to show progress, as the commands' console does.
    """

    def message(self, line: str) -> None:
        """A line for a person: what was chosen, a finished epoch, a result."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` units of the current work are finished; done == total ends it."""

    def stoppable(self) -> contextlib.AbstractContextManager[None]:
        """Entered around work that looks at `stop_requested`."""
        return contextlib.nullcontext()

    def stop_requested(self) -> bool:
        """Whether to stop at the next safe point, with everything saved."""
        return False


SILENT = Progress()


@dataclass
class Pace:
    """Images per second, share of time spent waiting for data, and time left.

    Averages run since the line before. interval_s: seconds between lines.
    """

    total: int
    interval_s: float = 10.0

    def __post_init__(self) -> None:
        self._last = time.monotonic()
        self._start_line()

    def _start_line(self) -> None:
        self.images, self.units, self.wait_s, self.busy_s = 0, 0, 0.0, 0.0

    def add(
        self, done: int, images: int, wait_s: float, step_s: float, units: int = 1
    ) -> str | None:
        """Count a step, of `units` of the total; the text of a line when one is due, else None."""
        from fgkd.files import human_time

        self.images, self.units = self.images + images, self.units + units
        self.wait_s, self.busy_s = self.wait_s + wait_s, self.busy_s + step_s
        now = time.monotonic()
        if now - self._last < self.interval_s and done < self.total:
            return None
        busy_s = max(self.busy_s, 1e-9)
        left_s = (self.total - done) * self.busy_s / max(self.units, 1)
        rate, wait_pct = self.images / busy_s, 100 * self.wait_s / busy_s
        self._last = now
        self._start_line()
        return f"{rate:,.0f} img/s  data {wait_pct:.0f}%  ETA {human_time(left_s)}"
