"""Duplicate images: shared by two splits, or in train under two labels, by their files' bytes.

Most files are only asked for their size. Those that share one with a file that would matter give
256 bytes of their middle, and those that share these too are hashed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from fgkd import distributed
from fgkd.data.samples import Dataset, Samples, read_place
from fgkd.errors import FgkdError

MIDDLE = 256  # bytes; in the middle of an image file its pixels are, not words on it
NAMED = 3  # examples in a warning
THREADS = 8  # a network disk answers several at once
UNREAD = -1  # which no hash is
Row = tuple[str, int]  # split, place in it


def with_warnings(dataset: Dataset) -> Dataset:
    """The dataset with notes on images that its splits share; rank 0 alone looks."""
    if distributed.rank():
        return dataset
    return replace(dataset, notes=[*dataset.notes, *warnings(dataset)])


def warnings(dataset: Dataset) -> list[str]:
    """A line for each two splits that share images, and one for labels that disagree in train."""
    groups = find(dataset)
    lines = []
    for first, second in itertools.combinations(dataset.splits, 2):
        pairs = []
        for group in groups:
            of_first = [row for row in group if row[0] == first]
            pairs += [(row, of_first[0]) for row in group if of_first and row[0] == second]
        if pairs:
            named = ", ".join(f"{_key(dataset, a)} = {_key(dataset, b)}" for a, b in pairs[:NAMED])
            lines.append(
                f"warning: {len(pairs)} of {second}'s images are in {first} too, byte for byte: "
                + named
                + (", ..." if len(pairs) > NAMED else "")
            )
    mislabelled = [group for group in groups if len(_labels(dataset, group)) > 1]
    if mislabelled:
        named = "; ".join(
            " = ".join(f"{_key(dataset, row)} ({label})" for label, row in rows.items())
            for rows in (_labels(dataset, group) for group in mislabelled[:NAMED])
        )
        more = "; ..." if len(mislabelled) > NAMED else ""
        count = len(mislabelled)
        lines.append(
            f"warning: {count} of train's images are there under two labels: {named}{more}"
        )
    return lines


def find(dataset: Dataset) -> list[list[Row]]:
    """Groups of images of equal bytes that span two splits, or two labels of train.

    Files that cannot be read are in no group.
    """
    rows = _Rows(dataset)
    left, group = np.arange(len(rows.split)), np.zeros(len(rows.split), np.int64)
    for look in (Samples.size, _middle, _digest):
        code = rows.looks(left, look)
        left, group, code = (column[code != UNREAD] for column in (left, group, code))
        _, code = np.unique(code, return_inverse=True)
        _, group = np.unique(group * len(code) + code, return_inverse=True)
        matters = _varies(rows.split[left], group) | _varies(rows.label[left], group)
        left, group = left[matters], group[matters]
    found: dict[int, list[Row]] = {}
    for row, number in zip(left.tolist(), group.tolist(), strict=True):
        found.setdefault(number, []).append(rows.row(row))
    return list(found.values())


class _Rows:
    """Every image of a dataset as columns: its split, place and, in train, label (-1: none)."""

    def __init__(self, dataset: Dataset) -> None:
        self.names, self.samples = list(dataset.splits), list(dataset.splits.values())
        lengths = [len(samples) for samples in self.samples]
        self.split = np.repeat(np.arange(len(lengths)), lengths)
        self.place = np.concatenate([np.arange(length) for length in lengths])
        same = {name: i for i, name in enumerate(dataset.classes)}  # classes of one name are one
        first = np.array([same[name] for name in dataset.classes] + [-1])
        of_split = [
            first[np.maximum(samples.labels, -1)] if name == "train" else np.full(len(samples), -1)
            for name, samples in dataset.splits.items()
        ]
        self.label = np.concatenate(of_split)

    def row(self, i: int) -> Row:
        return self.names[self.split[i]], int(self.place[i])

    def looks(self, rows: np.ndarray, look: Callable[[Samples, int], Hashable]) -> np.ndarray:
        """int64 hashes of what `look` says of these rows; UNREAD where it cannot."""

        def seen(split: int, place: int) -> int:
            try:
                found = look(self.samples[split], place)
            except FgkdError:
                return UNREAD  # reported when the image is used
            return UNREAD if found == -1 else hash(found)

        out = np.empty(len(rows), np.int64)
        at = self.split[rows].tolist(), self.place[rows].tolist()
        with ThreadPoolExecutor(THREADS) as pool:  # each its share: a future a file would cost more
            shares = [[column[first::THREADS] for column in at] for first in range(THREADS)]
            answers = pool.map(lambda share: list(map(seen, *share)), shares)
            for first, answer in enumerate(answers):
                out[first::THREADS] = answer
        return out


def _varies(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which rows are of a group in which this value, where there is one (>= 0), is not the same."""
    largest = np.full(group.max(initial=-1) + 1, -1)
    np.maximum.at(largest, group, value)
    differs = np.zeros(len(largest), bool)
    np.logical_or.at(differs, group, (value >= 0) & (value != largest[group]))
    return differs[group]


def _middle(samples: Samples, i: int) -> bytes:
    size = samples.size(i)
    path, offset, _ = (samples.places and samples.places[i]) or (samples.paths[i], 0, size)
    length = min(size, MIDDLE)
    return read_place((path, offset + (size - length) // 2, length))


def _digest(samples: Samples, i: int) -> bytes:
    return hashlib.blake2b(samples.read(i), digest_size=16).digest()


def _labels(dataset: Dataset, rows: list[Row]) -> dict[str, Row]:
    """Class names that train gives to these rows, each with the first row that has it."""
    found: dict[str, Row] = {}
    for split, i in rows:
        if split == "train" and (label := int(dataset.splits[split].labels[i])) >= 0:
            found.setdefault(dataset.classes[label], (split, i))
    return found


def _key(dataset: Dataset, row: Row) -> str:
    return dataset.splits[row[0]].keys[row[1]]
