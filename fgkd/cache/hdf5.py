"""The HDF5 shard: `keys[S]`, `labels[S]` and `[V, S, ...]` arrays, view-major and uncompressed.

Shape legend: V views and S samples of a shard.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgkd.cache.shards import Shard, ShardHeader, damaged, map_file, unreadable

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

    def of(self, data: np.ndarray) -> np.ndarray:
        """The array in a file's bytes, not copied. Raises: ValueError if the file is too short."""
        if self.offset + math.prod(self.shape) * self.dtype.itemsize > len(data):
            raise ValueError("the file is truncated")
        return np.ndarray(self.shape, self.dtype, data.data, self.offset)

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
    """One open shard, memory-mapped.

    The h5py library only tells where each array lies and is then closed: an open h5py file costs
    0.6 MiB. The arrays are read-only, and those of the file itself: nothing is copied.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            num_bytes = path.stat().st_size
            with h5py.File(path, "r", locking=False) as file:
                if h5py.h5a.open(file.id, b"header").get_storage_size() > MAX_HEADER:
                    raise ValueError("its header is too long")
                self.header = ShardHeader.from_json(json.loads(file.attrs["header"]))
                places = {name: place(file, name, num_bytes) for name in file}
            mapped = map_file(path, num_bytes)
            self._arrays = {name: found.of(mapped) for name, found in places.items()}
            self._offsets = {name: found.offset for name, found in places.items()}
            if len(self.labels) != len(self.sample_keys()):
                raise ValueError("its columns are not of one length")
        except Exception as error:  # h5py raises many kinds for a damaged file
            raise unreadable(path, error, "it cannot be read: ") from None

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise ValueError(f"{name} is missing")
        return self._arrays[name]

    @property
    def labels(self) -> np.ndarray:
        """int64 [S], in shard order."""
        return self._array("labels")

    def key_bytes(self) -> np.ndarray:
        """UTF-8 bytes [S] of the block's sample keys, in shard order."""
        return self._array("keys")

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return [key.decode() for key in self._array("keys").tolist()]

    def arrays_of_view(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`."""
        try:
            return {name: self._view(name, index) for name in names}
        except Exception as error:
            raise unreadable(self.path, error) from None

    def check(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Raise DamagedShard unless the arrays of these names are of these types and shapes."""
        for name, (dtype, shape) in shapes.items():
            found = self._arrays.get(name)
            if found is None:
                raise damaged(self.path, f"{name} is missing")
            if found.dtype != dtype or found.shape != shape:
                said = f"{name} is of type {found.dtype} and of shape {found.shape}"
                raise damaged(self.path, f"{said}, expected {dtype} and {shape}")

    def rows_into(self, out: dict[str, np.ndarray], index: int, places: np.ndarray) -> None:
        """Fill arrays [B, ...] with those of the samples at these places, of a view.

        What is asked for must have been found right by `check`.
        """
        for name, array in out.items():
            # By bytes, since an array that is not aligned would be copied first; and not with mode
            # "raise", which writes to a copy of `out`.
            _bytes(self._arrays[name][index]).take(places, axis=0, out=_bytes(array), mode="clip")

    def read_ahead(self, index: int) -> None:
        """Ask the system to read a view into the page cache."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            for name, array in self._arrays.items():
                if array.ndim > 1:
                    start = self._offsets[name] + index * array[0].nbytes
                    os.posix_fadvise(file.fileno(), start, array[0].nbytes, os.POSIX_FADV_WILLNEED)

    def _view(self, name: str, index: int) -> np.ndarray:
        array = self._array(name)
        if not 0 <= index < array.shape[0]:
            raise ValueError(f"{name} of shape {array.shape} has no view {index}")
        view: np.ndarray = array[index]
        return view

    def close(self) -> None:
        """Release the file, which stays mapped as long as an array of it is used."""
        self._arrays = {}


def _bytes(array: np.ndarray) -> np.ndarray:
    """A contiguous array as uint8 [S, bytes of a row]."""
    return np.ndarray((len(array), array.itemsize * math.prod(array.shape[1:])), np.uint8, array)
