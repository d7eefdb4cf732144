"""What every dataset gives: columns of samples per split, and class names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import FgkdError

Place = tuple[str, int, int]  # (file, offset, size) of an encoded image inside a larger file


def read_place(place: Place) -> bytes:
    """The bytes at a place. Raises: FgkdError when the file is gone or too short."""
    path, offset, size = place
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise FgkdError(f"cannot read {path}: {error.strerror}", f"ls -l '{path}'") from None
    if len(data) != size:
        raise FgkdError(f"{path} is truncated", f"ls -l '{path}'")
    return data


@dataclass(frozen=True)
class Samples:
    """One split as columns; row i of each column is sample i. Images stay encoded on disk.

    keys: POSIX paths relative to the dataset root, unique; labels: int64 [N], 0-based (-1: none);
    domains: int64 [N], indices into `Dataset.domains`; paths: absolute image paths;
    boxes: float64 [N, 4] as x, y, width, height in source pixels, or None.
    """

    keys: list[str]
    labels: np.ndarray
    domains: np.ndarray
    paths: list[str]
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> bytes:
        """The encoded image bytes of sample i."""
        try:
            return Path(self.paths[i]).read_bytes()
        except OSError as error:
            raise FgkdError(
                f"cannot read image {self.paths[i]}: {error.strerror}", f"ls -l '{self.paths[i]}'"
            ) from None

    def take(self, rows: np.ndarray) -> Samples:
        """The samples at `rows`, in that order."""
        boxes = None if self.boxes is None else self.boxes[rows]
        return Samples(
            [self.keys[i] for i in rows],
            self.labels[rows],
            self.domains[rows],
            [self.paths[i] for i in rows],
            boxes,
        )


@dataclass(frozen=True)
class Dataset:
    """A named dataset: class names (label i is classes[i]), domains, and its splits.

    chiral: left and right are classes, so no view may flip. notes: lines for the banner and report.
    """

    name: str
    classes: list[str]
    domains: list[str]
    splits: dict[str, Samples]
    chiral: bool = False
    notes: list[str] = field(default_factory=list)
