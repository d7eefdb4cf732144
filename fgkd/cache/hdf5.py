"""The HDF5 shard: `keys[S]`, `labels[S]` and `[V, S, ...]` arrays, view-major and uncompressed.

Shape legend: V views and S samples of a shard.
"""

from __future__ import annotations

import io
import json
import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgkd.cache.shards import Shard, ShardHeader, unreadable

SUFFIX = ".h5"
HOLDS_IMAGES = False
LIBVER = ("v110", "v110")  # fixed, so that equal content gives equal bytes
MAX_HEADER = 1 << 20  # bytes


def write(path: Path, shard: Shard) -> None:
    """Write a shard; equal content gives equal bytes (HDF5 is told to store no times)."""
    with _File(path) as sink:
        _fill(sink, shard)


class _File(io.FileIO):
    """A file that HDF5 writes to, whose errors are raised when it is closed.

    With a file of its own the HDF5 library crashes the process at exit after a write that failed,
    as on a full disk. So from the first failure on, writes only seem to succeed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while len(rest) and not self.error:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return count

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def __exit__(self, *exc: object) -> None:
        self.close()
        if self.error:
            raise self.error


def _fill(sink: _File, shard: Shard) -> None:
    with h5py.File(sink, "w", libver=LIBVER) as file:
        file.attrs["header"] = json.dumps(shard.header.to_json(), sort_keys=True)
        columns = {
            "keys": np.array([key.encode() for key in shard.keys]),
            "labels": shard.labels.astype(np.int64),
            **shard.arrays,
        }
        for name, array in columns.items():
            file.create_dataset(name, data=array, track_times=False)


@dataclass(frozen=True)
class Place:
    """Where an array lies in its file: its type, its shape and its offset in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, path: Path) -> np.ndarray:
        """The array. Raises: ValueError if the file is too short."""
        found = np.fromfile(path, self.dtype, math.prod(self.shape), offset=self.offset)
        if found.size != math.prod(self.shape):
            raise ValueError("the file is truncated")
        return found.reshape(self.shape)


def place(group: h5py.Group, name: str, num_bytes: int) -> Place:
    """Where an array lies, which must be in this very file of `num_bytes`, contiguous and raw.

    Raises: ValueError for a link, a filter, objects, external storage or a size that is too large.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    found = group[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.hasobject:
        raise ValueError(f"{name} is not an array of numbers")
    how = found.id.get_create_plist()
    size = math.prod(found.shape) * found.dtype.itemsize
    if (
        how.get_layout() != h5py.h5d.CONTIGUOUS
        or how.get_external_count()
        or not size == found.id.get_storage_size() <= num_bytes
    ):
        raise ValueError(f"{name} is not stored as plain bytes in this file")
    return Place(found.dtype, found.shape, found.id.get_offset() or 0)  # None: it is empty


class Reader:
    """One open shard.

    The h5py library only tells where each array lies and is then closed: an open h5py file costs
    0.6 MiB. Arrays are read as plain bytes, without a lock, so that many threads can read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            num_bytes = path.stat().st_size
            with h5py.File(path, "r", locking=False) as file:
                if h5py.h5a.open(file.id, b"header").get_storage_size() > MAX_HEADER:
                    raise ValueError("its header is too long")
                self.header = ShardHeader.from_json(json.loads(file.attrs["header"]))
                self._places = {name: place(file, name, num_bytes) for name in file}
            self._file = io.FileIO(path)
            weakref.finalize(self, self._file.close)
            if len(self.labels) != len(self.sample_keys()):
                raise ValueError("its columns are not of one length")
        except Exception as error:  # h5py raises many kinds for a damaged file
            raise unreadable(path, error, "it cannot be read: ") from None

    def _read(self, name: str, index: int | None = None) -> np.ndarray:
        """A full array, or its part `[index]`."""
        if name not in self._places:
            raise ValueError(f"{name} is missing")
        found = self._places[name]
        shape = found.shape
        if index is not None:
            if not 0 <= index < shape[0]:
                raise ValueError(f"{name} of shape {shape} has no view {index}")
            shape = shape[1:]
        out = np.empty(shape, found.dtype)
        self._read_into(out, found.offset + (index or 0) * out.nbytes, name)
        return out

    def _read_into(self, out: np.ndarray, offset: int, name: str) -> None:
        """Fill an array from `offset` on: without the file's position, which forks share."""
        data = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(data):  # the system reads 2 GiB at most
            count = os.preadv(self._file.fileno(), [data], offset)
            if not count:
                raise ValueError(f"{name} is truncated")
            data, offset = data[count:], offset + count

    @property
    def labels(self) -> np.ndarray:
        """int64 [S], in shard order."""
        return self._read("labels")

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return [key.decode() for key in self._read("keys").tolist()]

    def arrays_of_view(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`: one contiguous read each."""
        try:
            return {name: self._read(name, index) for name in names}
        except Exception as error:
            raise unreadable(self.path, error) from None

    def rows(self, index: int, places: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [B, ...] of the shard's view number `index`: of the samples at these places."""
        try:
            return {name: self._read_rows(name, index, places) for name in names}
        except Exception as error:
            raise unreadable(self.path, error) from None

    def _read_rows(self, name: str, index: int, places: np.ndarray) -> np.ndarray:
        if name not in self._places:
            raise ValueError(f"{name} is missing")
        found = self._places[name]
        num_views, num_samples, *shape = found.shape
        if not (0 <= index < num_views and 0 <= places.min() <= places.max() < num_samples):
            raise ValueError(f"{name} of shape {found.shape} has no such rows of view {index}")
        out = np.empty((len(places), *shape), found.dtype)
        for i, place in enumerate(places.tolist()):
            at = index * num_samples + place
            self._read_into(out[i : i + 1], found.offset + at * out[i : i + 1].nbytes, name)
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()
