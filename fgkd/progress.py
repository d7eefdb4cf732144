"""Progress of long work: what it reports to its caller, and how the caller asks it to stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Progress:
    """What long work calls; this base class ignores everything and never asks it to stop.

    Subclass it to show progress, as the commands' console does.
    """

    def message(self, line: str) -> None:
        """A line for a person: what was chosen, a result."""

    def milestone(self, line: str, best: bool = False) -> None:
        """A line that ends a part of the work, as an epoch; best: the best one so far."""
        self.message(f"{line}  (best)" if best else line)

    def interim(self, line: str) -> None:
        """A line that the next one replaces, as a step's losses; one every ten seconds or so."""
        self.message(line)

    def status(self, text: Callable[[], str]) -> None:
        """How the current work goes: call `text` for a line, at any time, or never."""

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
class _Window:
    """Sums since a moment, and the means that they give."""

    since: float = field(default_factory=time.monotonic)
    images: int = 0
    units: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0

    def add(self, images: int, units: int, wait_s: float, busy_s: float) -> None:
        self.images, self.units = self.images + images, self.units + units
        self.wait_s, self.busy_s = self.wait_s + wait_s, self.busy_s + busy_s

    def rate(self) -> str:
        busy_s = max(self.busy_s, 1e-9)
        return f"{self.images / busy_s:,.0f} img/s  data {100 * self.wait_s / busy_s:.0f}%"

    def left_s(self, units: int) -> float:
        return units * self.busy_s / max(self.units, 1)


@dataclass
class Pace:
    """Images per second, share of time spent waiting for data, and time left.

    Averages run since the line before. interval_s: seconds between lines. now: the rate and the
    share of the last second or so, for a live line.
    """

    total: int
    interval_s: float = 10.0
    now: str = ""

    def __post_init__(self) -> None:
        self._line, self._second = _Window(), _Window()

    def add(
        self, done: int, images: int, wait_s: float, step_s: float, units: int = 1
    ) -> str | None:
        """Count a step, of `units` of the total; the text of a line when one is due, else None."""
        from fgkd.files import human_time

        clock, line, second = time.monotonic(), self._line, self._second
        for window in (line, second):
            window.add(images, units, wait_s, step_s)
        if not self.now or clock - second.since >= 1:
            self.now, self._second = second.rate(), _Window()
        if clock - line.since < self.interval_s and done < self.total:
            return None
        self._line = _Window()
        return f"{line.rate()}  ETA {human_time(line.left_s(self.total - done))}"
