"""Images that two splits share, or that train holds under two labels, by their files' bytes.

Most files are only asked for their size. Those that share one with a file that would matter give
256 bytes of their middle, and those that share these too are hashed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

from ..errors import FgkdError
from .base import Dataset, Samples, read_place

MIDDLE = 256  # bytes; in the middle of an image file its pixels are, not words on it
NAMED = 3  # examples in a warning
THREADS = 8  # a network disk answers several at once
Row = tuple[str, int]  # split, place in it


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
    rows = [(split, i) for split, samples in dataset.splits.items() for i in range(len(samples))]
    groups = [rows]
    for look in (Samples.size, _middle, _digest):
        groups = [part for part in _split(dataset, groups, look) if _matters(dataset, part)]
    return groups


def _split(
    dataset: Dataset, groups: list[list[Row]], look: Callable[[Samples, int], Hashable]
) -> list[list[Row]]:
    """Each group as parts that look the same."""

    def seen(row: Row) -> Hashable:
        try:
            return look(dataset.splits[row[0]], row[1])
        except FgkdError:
            return None  # reported when the image is used

    flat = [(number, row) for number, group in enumerate(groups) for row in group]
    looks: list[Hashable] = [None] * len(flat)
    with ThreadPoolExecutor(THREADS) as pool:  # each its share: a future a file would cost more
        shares = [flat[first::THREADS] for first in range(THREADS)]
        answers = pool.map(lambda share: [seen(row) for _, row in share], shares)
        for first, answer in enumerate(answers):
            looks[first::THREADS] = answer
    parts: dict[Hashable, list[Row]] = {}
    for (number, row), what in zip(flat, looks, strict=True):
        if what not in (None, -1):
            parts.setdefault((number, what), []).append(row)
    return list(parts.values())


def _middle(samples: Samples, i: int) -> bytes:
    size = samples.size(i)
    path, offset, _ = (samples.places and samples.places[i]) or (samples.paths[i], 0, size)
    length = min(size, MIDDLE)
    return read_place((path, offset + (size - length) // 2, length))


def _digest(samples: Samples, i: int) -> bytes:
    return hashlib.blake2b(samples.read(i), digest_size=16).digest()


def _matters(dataset: Dataset, rows: list[Row]) -> bool:
    return len({split for split, _ in rows}) > 1 or len(_labels(dataset, rows)) > 1


def _labels(dataset: Dataset, rows: list[Row]) -> dict[str, Row]:
    """Class names that train gives to these rows, each with the first row that has it."""
    found: dict[str, Row] = {}
    for split, i in rows:
        if split == "train" and (label := int(dataset.splits[split].labels[i])) >= 0:
            found.setdefault(dataset.classes[label], (split, i))
    return found


def _key(dataset: Dataset, row: Row) -> str:
    return dataset.splits[row[0]].keys[row[1]]
