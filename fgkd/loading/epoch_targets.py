"""Stored targets of a run's batches, gathered from memory-mapped shards a few batches at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fgkd.cache.encodings import Arrays
from fgkd.cache.reader import Reader

CHUNK = 2 << 20  # bytes that are gathered at a time


@dataclass(frozen=True)
class Need:
    """The rows of one step, of one view."""

    step: int
    view: int
    rows: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """What was gathered at once, in the order of the shards.

    rows: those of each step, as planned. places: where they are in the arrays.
    """

    arrays: Arrays
    rows: dict[int, np.ndarray]
    places: dict[int, np.ndarray]


class EpochTargets:
    """The stored arrays of planned steps, in order.

    The first chunk is one step, so that a run begins at once although each shard's sha256 is
    checked when it is first opened; each following one is twice as long, up to `CHUNK` bytes. What
    follows in the next epoch is read ahead into the page cache by the system.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.names = [*reader.codec.arrays(), "digests"]
        self._most = max(1, CHUNK // reader.codec.bytes_per_view())  # rows
        self._next = 1
        self._planned: deque[Need] = deque()
        self._chunk = Chunk({}, {}, {})
        self._ahead = ThreadPoolExecutor(1)

    def plan(self, needs: Iterable[Need], following: int | None = None) -> None:
        """Announce an epoch's steps, after those announced before. following: the next view."""
        self._planned.extend(needs)
        if following is not None:
            self._ahead.submit(self.reader.read_ahead, following)

    def of(self, step: int, rows: np.ndarray) -> Arrays:
        """Arrays [B, ...] of these rows, which are all or some of the step's planned ones.

        Raises: FgkdError for a damaged shard.
        """
        while step not in self._chunk.rows:
            self._chunk = self._gather()
        planned, at = self._chunk.rows[step], self._chunk.places[step]
        if not np.array_equal(planned, rows):
            order = np.argsort(planned)
            at = at[order[np.searchsorted(planned, rows, sorter=order)]]
        return {name: array[at] for name, array in self._chunk.arrays.items()}

    def _gather(self) -> Chunk:
        """The next planned steps' arrays, as many as fit a chunk and are of one view."""
        needs = [self._planned.popleft()]
        count = len(needs[0].rows)
        while self._planned and self._planned[0].view == needs[0].view and count < self._next:
            needs.append(self._planned.popleft())
            count += len(needs[-1].rows)
        self._next = min(2 * count, self._most)
        rows = np.concatenate([need.rows for need in needs])
        order = np.argsort(self.reader.places_of_rows[0][rows], kind="stable")
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        steps = [need.step for need in needs]
        cuts = np.cumsum([len(need.rows) for need in needs])[:-1]
        self._chunk = Chunk({}, {}, {})  # so that there is one at a time
        return Chunk(
            self.reader.stored(rows[order], needs[0].view, self.names),
            dict(zip(steps, (need.rows for need in needs), strict=True)),
            dict(zip(steps, np.split(places, cuts), strict=True)),
        )

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.shutdown(cancel_futures=True)
