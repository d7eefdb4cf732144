"""Keys and paths of many samples in little memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

import numpy as np

from fgkd import rng

CHUNK = 1 << 16  # texts that are decoded at a time
HASHED = 1 << 12  # texts that are hashed at a time, with 40 bytes for each of theirs
HASHERS = 4  # threads
ODD = "surrogateescape"  # file names may be no UTF-8


class Keys(Sequence[str]):
    """Texts held as UTF-8 bytes: like a list of strings that are decoded when accessed.

    A list of ten million strings takes a gigabyte, again in each worker process: counting the uses
    of a string writes to its memory, which is then no longer shared.

    data: uint8, all keys one after another. offsets: int64 or uint32 [N + 1], where each begins and
    ends.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data, self.offsets = data, offsets

    @staticmethod
    def of(keys: Iterable[str]) -> Keys:
        """The same texts, packed."""
        if isinstance(keys, Keys):
            return keys
        data, lengths, rest = bytearray(), [np.zeros(1, np.int64)], iter(keys)
        while some := [key.encode(errors=ODD) for key in itertools.islice(rest, CHUNK)]:
            data += b"".join(some)
            lengths.append(np.array([len(one) for one in some], np.int64))
        offsets = np.cumsum(np.concatenate(lengths))
        return Keys(np.frombuffer(bytes(data), np.uint8), offsets).narrow()

    def narrow(self) -> Keys:
        """The same with offsets of half the size, where they fit."""
        if len(self.data) >= 1 << 32:
            return self
        return Keys(self.data, self.offsets.astype(np.uint32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        row = int(at) + len(self) * (at < 0)
        if not 0 <= row < len(self):
            raise IndexError(at)
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode(errors=ODD)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            ends = self.offsets[start : start + CHUNK + 1].tolist()
            text, base = self.data[ends[0] : ends[-1]].tobytes(), ends[0]
            for i in range(len(ends) - 1):
                yield text[ends[i] - base : ends[i + 1] - base].decode(errors=ODD)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            same = np.array_equal(self.offsets, other.offsets)
            return bool(same and np.array_equal(self.data, other.data))
        return list(self) == other

    def __repr__(self) -> str:
        return f"Keys({len(self)})"

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """UTF-8 bytes [B] of the keys at these rows, padded with zeros to one length."""
        begins, ends = self.offsets[rows], self.offsets[rows + 1]
        width = int((ends - begins).max(initial=1))
        out = np.zeros((len(rows), width), np.uint8)
        at_once = max(1, CHUNK // width)
        for i in range(0, len(rows), at_once):
            place = begins[i : i + at_once, None] + np.arange(width)
            text = self.data[np.minimum(place, len(self.data) - 1)]
            out[i : i + at_once] = np.where(place < ends[i : i + at_once, None], text, 0)
        return out.view(f"S{width}")[:, 0]

    def repeated(self) -> str | None:
        """A key that occurs twice, if there is one."""
        hashes = np.sort(hashed := self._hashes())
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        seen: set[str] = set()
        for row in np.flatnonzero(np.isin(hashed, twice)).tolist() if len(twice) else ():
            if (key := self[row]) in seen:
                return key
            seen.add(key)
        return None

    def _hashes(self) -> np.ndarray:
        """uint64 [N], equal for equal keys: a sum of bytes, each times a number of its place."""
        lengths, out = np.diff(self.offsets), np.zeros(len(self), np.uint64)
        longest = int(lengths.max(initial=0))
        weights = rng.stream("keys").raw(longest)

        def fill(start: int) -> None:
            begins = self.offsets[start : start + HASHED + 1]
            place = np.arange(begins[0], begins[-1]) - np.repeat(
                begins[:-1], lengths[start : start + HASHED]
            )
            terms = self.data[begins[0] : begins[-1]] * weights[place]
            out[start : start + HASHED] = np.add.reduceat(terms, begins[:-1] - begins[0])

        with ThreadPoolExecutor(HASHERS) as pool:
            list(pool.map(fill, range(0, len(self), HASHED)))
        return out
