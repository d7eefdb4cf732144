"""The HDF5 shard: `keys[S]`, `labels[S]` and `[V, S, ...]` arrays, view-major and uncompressed."""

from __future__ import annotations

import io
import json
import math
import weakref
from pathlib import Path

import h5py
import numpy as np

from fgkd.cache.manifest import Shard
from fgkd.errors import FgkdError, quoted

SUFFIX = ".h5"
HOLDS_IMAGES = False
MAX_HEADER = 1 << 20  # bytes


def write(path: Path, shard: Shard) -> None:
    """Write a whole shard; equal content gives equal bytes (HDF5 tracks no times)."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["header"] = json.dumps(shard.header, sort_keys=True)
        columns = {
            "keys": np.array([key.encode() for key in shard.keys]),
            "labels": shard.labels.astype(np.int64),
            **shard.arrays,
        }
        for name, array in columns.items():
            file.create_dataset(name, data=array, track_times=False)


class Reader:
    """One open shard. HDF5 says where each array lies and is closed: held open, it costs 0.6 MiB.

    The arrays are then read as plain bytes: no lock is taken, and many students can read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._num_bytes = path.stat().st_size
            with h5py.File(path, "r", locking=False) as file:
                if h5py.h5a.open(file.id, b"header").get_storage_size() > MAX_HEADER:
                    raise ValueError("its header is too long")
                self.header: dict[str, object] = dict(json.loads(file.attrs["header"]))
                self._places = {name: self._place(file, name) for name in file}
            # Until `close`; with next to no buffer, for a cache may have thousands of shards. (With
            # none at all, what is over 2 GiB would come in parts.)
            self._file = io.BufferedReader(io.FileIO(path), 512)
            weakref.finalize(self, self._file.close)
            if len(self.labels) != len(self.sample_keys()):
                raise ValueError("its columns are not of one length")
        except Exception as error:  # h5py raises many kinds for a damaged file
            raise FgkdError(f"shard {path} cannot be read: {error}", f"rm {quoted(path)}") from None

    def _place(self, file: h5py.File, name: str) -> tuple[np.dtype, tuple[int, ...], int]:
        """(type, shape, offset) of an array that lies in this very file as it is.

        Raises: ValueError for a link, a filter, or a size that is a lie.
        """
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        found = file[name]
        if not isinstance(found, h5py.Dataset) or found.dtype.hasobject:
            raise ValueError(f"{name} is not an array of numbers")
        how = found.id.get_create_plist()
        num_bytes = math.prod(found.shape) * found.dtype.itemsize
        if (
            how.get_layout() != h5py.h5d.CONTIGUOUS
            or how.get_external_count()
            or not num_bytes == found.id.get_storage_size() <= self._num_bytes
        ):
            raise ValueError(f"{name} is not stored whole in this file")
        return found.dtype, found.shape, found.id.get_offset() or 0  # None: it is empty

    def _read(self, name: str, index: int | None = None) -> np.ndarray:
        """A whole array, or its part `[index]`."""
        if name not in self._places:
            raise ValueError(f"{name} is missing")
        dtype, shape, offset = self._places[name]
        if index is not None:
            if not 0 <= index < shape[0]:
                raise ValueError(f"{name} of shape {shape} has no view {index}")
            shape = shape[1:]
        out = np.empty(shape, dtype)
        self._file.seek(offset + (index or 0) * out.nbytes)
        if out.nbytes and self._file.readinto(out.data) != out.nbytes:
            raise ValueError(f"{name} is truncated")
        return out

    @property
    def labels(self) -> np.ndarray:
        """int64 [S], in shard order."""
        return self._read("labels")

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return [key.decode() for key in self._read("keys").tolist()]

    def slab(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`: one contiguous read each."""
        try:
            return {name: self._read(name, index) for name in names}
        except Exception as error:
            raise FgkdError(f"shard {self.path}: {error}", f"rm {quoted(self.path)}") from None

    def close(self) -> None:
        self._file.close()
