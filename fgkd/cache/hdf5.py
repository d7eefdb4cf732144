"""The HDF5 shard: `keys[S]`, `labels[S]` and `[V, S, ...]` arrays, view-major and uncompressed."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from ..errors import FgkdError
from .manifest import Shard

SUFFIX = ".h5"
HOLDS_IMAGES = False


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
        try:
            self._file = h5py.File(path, "r", locking=False)
            self.header: dict[str, object] = dict(json.loads(self._file.attrs["header"]))
            self.labels: np.ndarray = self._file["labels"][:]
            self._keys = [key.decode() for key in self._file["keys"][:]]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise FgkdError(f"shard {path} cannot be read: {error}", f"rm {path}") from None
        self.path = path

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return self._keys

    def slab(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`: one contiguous read each."""
        try:
            return {name: self._file[name][index] for name in names}
        except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
            raise FgkdError(f"shard {self.path}: {error}", f"rm {self.path}") from None

    def close(self) -> None:
        self._file.close()
