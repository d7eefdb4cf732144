"""The samples of a cache as columns: what they are made from, checked against and compared with.

Row i of every column is sample i of a split. Shape legend: N samples of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fgkd import comparison
from fgkd.cache.identity import DatasetIdentity, Identity
from fgkd.data import Dataset, Keys, Samples, boxes, content
from fgkd.errors import Difference, FgkdError

SPLITS = ("train", "val")
HASH_TYPE = np.dtype(f"S{content.HASH_HEX}")
CHUNK = 1 << 16  # keys that are decoded or hashed at a time
READERS = 4  # threads
MAX_KEY = 1 << 16  # bytes


@dataclass(frozen=True, eq=False)
class SampleTable:
    """One split as columns.

    keys: paths relative to the dataset's root, each once. labels, domains, sizes: int [N], class
    (-1: none), domain, and bytes of the image file (-1: unreadable); int64 but in a narrow table.
    hashes: bytes [N], its hex content hash (b"": unreadable). boxes: float64 [N, 4] as x, y, width,
    height in source pixels, where views are cropped inside bounding boxes.
    """

    keys: Keys
    labels: np.ndarray
    domains: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    boxes: np.ndarray | None = None

    @staticmethod
    def empty() -> SampleTable:
        """The table of a split that the dataset does not have."""
        none = np.zeros(0, np.int64)
        return SampleTable(Keys.of([]), none, none, none, np.zeros(0, HASH_TYPE))

    def __len__(self) -> int:
        return len(self.keys)

    def head(self, count: int) -> SampleTable:
        """The first samples."""
        offsets = self.keys.offsets[: count + 1]
        keys = Keys(self.keys.data[: offsets[-1]], offsets)
        boxes = None if self.boxes is None else self.boxes[:count]
        labels, domains, sizes = (c[:count] for c in (self.labels, self.domains, self.sizes))
        return SampleTable(keys, labels, domains, sizes, self.hashes[:count], boxes)

    def narrow(self) -> SampleTable:
        """The same table with its numbers in the smallest type that holds them."""
        labels, domains, sizes = map(_narrow, (self.labels, self.domains, self.sizes))
        keys = self.keys.narrow()
        return replace(self, keys=keys, labels=labels, domains=domains, sizes=sizes)

    def columns(self) -> dict[str, Keys | np.ndarray]:
        """The columns by name, in order; boxes only if there are any."""
        names = ("keys", "labels", "domains", "sizes", "hashes")
        found = {name: getattr(self, name) for name in names}
        return found if self.boxes is None else found | {"boxes": self.boxes}

    def check(self, num_classes: int, num_domains: int) -> None:
        """Raise ValueError unless the columns fit together and every value is in its range."""
        for name, column in self.columns().items():
            if len(column) != len(self):
                raise ValueError(f"{len(column)} {name} of {len(self)} samples")
        for name, low, end in (("labels", -1, num_classes), ("domains", 0, num_domains)):
            column = getattr(self, name)
            if len(column) and not low <= column.min() <= column.max() < end:
                raise ValueError(f"{name} are not from {low} to {end - 1}")
        self._check_keys()
        if (np.ascontiguousarray(self.hashes).view(np.uint8) > 127).any():
            raise ValueError("hashes are not text")
        if self.boxes is not None:
            if self.boxes.shape != (len(self), 4):
                raise ValueError(f"boxes are of shape {self.boxes.shape}")
            try:
                boxes.checked(self.keys, self.boxes)
            except FgkdError as error:
                raise ValueError(error.message) from None

    def _check_keys(self) -> None:
        offsets, data = self.keys.offsets, self.keys.data
        rises = bool((offsets[1:] > offsets[:-1]).all())
        if offsets[0] != 0 or offsets[-1] != len(data) or not rises:
            raise ValueError("key_offsets do not rise from 0 to the end of keys")
        if np.diff(offsets).max(initial=0) > MAX_KEY:
            raise ValueError(f"a key is longer than {MAX_KEY} bytes")
        for start in range(0, len(self), CHUNK):  # raises UnicodeDecodeError, a ValueError
            data[offsets[start] : offsets[min(start + CHUNK, len(self))]].tobytes().decode()
        if ((data[offsets[:-1]] & 0xC0) == 0x80).any():
            raise ValueError("a key begins inside a character")
        if (key := self.keys.repeated()) is not None:
            raise ValueError(f"the key {key!r} occurs twice")


def _narrow(numbers: np.ndarray) -> np.ndarray:
    low, high = numbers.min(initial=-1), numbers.max(initial=0)
    return numbers.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))


SampleTables = Mapping[str, SampleTable]  # "train" and "val"


def describe(samples: Samples, progress: Callable[[int], None] = lambda done: None) -> SampleTable:
    """The table of a dataset's split; reads and hashes every image file.

    progress: called with the number of files read so far. An unreadable file gets size -1 and an
    empty hash; capture later reports it or leaves it out.
    """

    def one(i: int) -> tuple[int, str]:
        try:
            data = samples.read(i)
        except FgkdError:
            return -1, ""
        return len(data), content.content_hash(data)

    sizes, hashes = np.zeros(len(samples), np.int64), np.zeros(len(samples), HASH_TYPE)
    runs = np.array_split(np.arange(len(samples)), max(1, len(samples) // 64))
    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        for run in pool.map(lambda run: list(map(one, run)), runs):
            for size, digest in run:
                sizes[done], hashes[done] = size, digest
                done += 1
            progress(done)
    labels, domains = (np.asarray(x, np.int64) for x in (samples.labels, samples.domains))
    return SampleTable(Keys.of(samples.keys), labels, domains, sizes, hashes, samples.boxes)


def describe_splits(
    dataset: Dataset, counter: Callable[[int], Callable[[int], None]] = lambda total: _ignore
) -> SampleTables:
    """The tables of a dataset's train and val split; an empty one for a split it does not have.

    counter: from a split's number of images, gives the `progress` of `describe`.
    """
    tables = dict.fromkeys(SPLITS, SampleTable.empty())
    for name, samples in dataset.splits.items():
        if name in tables:
            tables[name] = describe(samples, counter(len(samples)))
    return tables


def _ignore(done: int) -> None:
    """Report nothing."""


# Comparison


def differences(old: SampleTable, new: SampleTable, split: str) -> list[Difference]:
    """The columns in which two tables differ, each with its first entry that does."""
    before, after = old.columns(), new.columns()
    found = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            counts = [f"{len(x)} entries" if x is not None else "none" for x in (a, b)]
            found.append(Difference(f"{split}.{name}", *counts))
        elif a is not b:
            found += _column_differences(a, b, f"{split}.{name}")
    return found


def _column_differences(old: Any, new: Any, field: str) -> list[Difference]:
    same = old == new if isinstance(old, Keys) else np.array_equal(old, new)
    return [] if same else comparison.differences(_plain(old), _plain(new), field)


def _plain(column: Any) -> list[Any]:
    """A column as a list of Python values."""
    values = list(column) if isinstance(column, Keys) else column.tolist()
    return [one.decode() if isinstance(one, bytes) else one for one in values]


def check_samples(stored: SampleTable, samples: Samples, split: str) -> None:
    """Compare a split now on disk with the one that a cache was made of: keys, labels and sizes.

    Content hashes are compared later, when each file is first read. Raises: DataMismatch.
    """
    boxes_N4 = None
    if stored.boxes is not None:
        boxes_N4 = np.zeros((0, 4)) if samples.boxes is None else samples.boxes
    labels = np.asarray(samples.labels, np.int64)
    known = (stored.domains, stored.sizes, stored.hashes)
    now = SampleTable(Keys.of(samples.keys), labels, *known, boxes_N4)
    wrong = differences(stored, now, split)
    if not wrong:
        sizes = np.array([samples.size(i) for i in range(len(samples))], np.int64)
        wrong = [
            Difference(f"{split} size of {samples.keys[i]}", int(stored.sizes[i]), int(sizes[i]))
            for i in np.flatnonzero(stored.sizes != sizes).tolist()
        ]
    comparison.refuse("the cache is of other data", wrong, "data")


def check_dataset(identity: Identity, tables: SampleTables, dataset: Dataset, cache: str) -> None:
    """Compare a dataset now on disk with the one that a cache was made of. Raises: DataMismatch."""
    now = DatasetIdentity.of(dataset, identity.dataset.val_fraction)
    wrong = comparison.differences(identity.dataset.to_json(), now.to_json(), "dataset")
    for split in SPLITS:
        if len(tables[split]) and split not in dataset.splits:
            wrong.append(Difference(f"{split} split", f"{len(tables[split])} images", "none"))
    comparison.refuse(f"cache {cache} is of other data", wrong, "data")
    for split in SPLITS:
        if split in dataset.splits:
            check_samples(tables[split], dataset.splits[split], split)
