"""Datasets in memory: the samples of each split as columns, and class names."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fgkd.data.keys import Keys
from fgkd.errors import NoTrainSplit, UnreadableFile

Place = tuple[str, int, int]  # (file, offset, size) of an encoded image inside a larger file
BoxReader = Callable[[list[str]], np.ndarray]  # keys -> boxes; must pickle


def read_place(place: Place) -> bytes:
    """The bytes at a place. Raises: UnreadableFile when it is gone or too short."""
    path, offset, size = place
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) != size:
        raise UnreadableFile(f"{path} is truncated", path=path, reason="truncated")
    return data


def _unreadable(path: str, error: OSError) -> UnreadableFile:
    reason = str(error.strerror)
    return UnreadableFile(f"cannot read {path}: {reason}", path=path, reason=reason)


@dataclass(frozen=True, repr=False)
class Samples:
    """One split as columns; row i of each column is sample i. Images stay encoded on disk.

    keys: POSIX paths relative to the dataset root, unique; labels: int64 [N], 0-based (-1: none);
    domains: int64 [N], indices into `Dataset.domains`; paths: absolute image paths, also for
    errors; places: where images inside larger files lie (None: the whole file at its path);
    box_reader: how to read bounding boxes; None: there are none; boxes: float64 [N, 4] as x, y,
    width, height in source pixels, once `with_boxes` has read them.
    """

    keys: Sequence[str]
    labels: np.ndarray
    domains: np.ndarray
    paths: Sequence[str]
    places: list[Place | None] | None = None
    box_reader: BoxReader | None = None
    boxes: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("keys", "paths"):
            if not isinstance(texts := getattr(self, name), Keys):
                object.__setattr__(self, name, Keys.of(texts))

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Samples({self.count('images')})"

    def count(self, noun: str) -> str:
        """`5,114 train`: the images with a label, and how many have none."""
        unlabelled = int((self.labels < 0).sum())
        found = f"{len(self) - unlabelled:,} {noun}"
        return f"{found} (and {unlabelled:,} without a label)" if unlabelled else found

    def read(self, i: int) -> bytes:
        """The encoded image bytes of sample i. Raises: UnreadableFile."""
        if place := self.places and self.places[i]:
            return read_place(place)
        try:
            return Path(self.paths[i]).read_bytes()
        except OSError as error:
            raise _unreadable(self.paths[i], error) from None

    def size(self, i: int) -> int:
        """The number of encoded bytes of sample i, without reading them; -1: it is not there."""
        if place := self.places and self.places[i]:
            return place[2]
        try:
            return os.stat(self.paths[i]).st_size
        except OSError:
            return -1

    @functools.cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the keys and labels, in their order."""
        found, keys = hashlib.sha256(), Keys.of(self.keys)
        for array in (keys.data, keys.offsets.astype(np.int64), self.labels):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def take(self, rows: np.ndarray) -> Samples:
        """The samples at `rows`, in that order."""
        return replace(
            self,
            keys=[self.keys[i] for i in rows],
            labels=self.labels[rows],
            domains=self.domains[rows],
            paths=[self.paths[i] for i in rows],
            places=self.places and [self.places[i] for i in rows],
            boxes=None if self.boxes is None else self.boxes[rows],
        )


@dataclass(frozen=True, repr=False)
class Dataset:
    """A named dataset: class names (label i is classes[i]), domains, and its splits.

    chiral: left and right are classes, so no view may flip. notes: lines for the banner and report.
    specs: where it was opened from, with absolute paths; () for one that was made otherwise.
    val_fraction: the share of training images that became the val split of a member without one.
    has_val: every member had a val split.
    """

    name: str
    classes: list[str]
    domains: list[str]
    splits: dict[str, Samples]
    chiral: bool = False
    notes: list[str] = field(default_factory=list)
    specs: tuple[str, ...] = ()
    val_fraction: float = 0.0
    has_val: bool = False

    def __str__(self) -> str:
        """`icons: 85 classes; 5,114 train, 715 val, 1,433 test images`."""
        counts = ", ".join(samples.count(name) for name, samples in self.splits.items())
        return f"{self.name}: {len(self.classes)} classes; {counts} images"

    def __repr__(self) -> str:
        return f"Dataset({self})"

    @property
    def train(self) -> Samples:
        """The train split. Raises: NoTrainSplit."""
        if "train" not in self.splits:
            there = ", ".join(self.splits)
            message = f"dataset {self.name} has no train split; it has {there}"
            raise NoTrainSplit(message, path=self.specs[0] if self.specs else self.name)
        return self.splits["train"]
