"""The HDF5 shard: `keys[S]`, `labels[S]` and `[V, S, ...]` arrays, view-major and uncompressed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np

from ..errors import FgkdError, quoted
from .manifest import Shard

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
    """One open shard: read-only and unlocked (network disks, many students at once)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._num_bytes = path.stat().st_size
            self._file = h5py.File(path, "r", locking=False)
            if h5py.h5a.open(self._file.id, b"header").get_storage_size() > MAX_HEADER:
                raise ValueError("its header is too long")
            self.header: dict[str, object] = dict(json.loads(self._file.attrs["header"]))
            self.labels: np.ndarray = self._whole("labels")[:]
            self._keys = [key.decode() for key in self._whole("keys")[:]]
        except Exception as error:  # h5py raises many kinds for a damaged file
            raise FgkdError(f"shard {path} cannot be read: {error}", f"rm {quoted(path)}") from None

    def _whole(self, name: str) -> h5py.Dataset:
        """An array that lies in this very file as it is: no link, filter or size that is a lie."""
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link or missing")
        found = self._file[name]
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
        return found

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return self._keys

    def slab(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`: one contiguous read each."""
        try:
            return {name: self._whole(name)[index] for name in names}
        except Exception as error:
            raise FgkdError(f"shard {self.path}: {error}", f"rm {quoted(self.path)}") from None

    def close(self) -> None:
        self._file.close()
