"""samples.h5: a cache's sample tables as plain HDF5 datasets in the groups `train` and `val`.

The layout is in FORMAT.md. The file may come from anyone and is checked as it is read.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgkd import files
from fgkd.cache import hdf5
from fgkd.cache.identity import Identity
from fgkd.cache.samples import HASH_TYPE, SPLITS, SampleTable, SampleTables
from fgkd.data.keys import Keys
from fgkd.errors import DamagedCache

NAME = "samples.h5"


def name(identity: Identity) -> str:
    """The file of an identity's samples; one to which images were added has a file of its own."""
    return f"samples-{len(identity.added)}.h5" if identity.added else NAME


KINDS = {"labels": np.int64, "domains": np.int64, "sizes": np.int64, "hashes": HASH_TYPE}


def _columns(table: SampleTable) -> dict[str, np.ndarray]:
    """The datasets of a split, by name and in their order in the file."""
    keys = {"key_offsets": table.keys.offsets.astype(np.int64), "keys": table.keys.data}
    return keys | {name: np.asarray(c) for name, c in table.columns().items() if name != "keys"}


def encode(tables: SampleTables) -> bytes:
    """The bytes of a samples.h5; of one version of the HDF5 library, equal for equal tables.

    Made in memory, because the HDF5 library crashes when a disk is full.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=hdf5.LIBVER) as file:
        for split in SPLITS:
            group = file.create_group(split)
            for name, column in _columns(tables[split]).items():
                group.create_dataset(name, data=column, track_times=False)
    return buffer.getvalue()


def write(path: Path, tables: SampleTables) -> None:
    """Write a samples.h5. Raises: WriteError."""
    files.write_bytes(path, encode(tables))


def fingerprint(tables: SampleTables) -> str:
    """Hex SHA-256 of the tables' columns, as FORMAT.md defines it.

    Not of a file: its bytes differ between versions of the HDF5 library.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        for name, column in sorted(_columns(tables[split]).items()):
            little = np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
            shape = ",".join(map(str, little.shape))
            digest.update(f"{split}/{name} {little.dtype.str} {shape}\n".encode())
            digest.update(little.view(np.uint8).data if little.size else b"")
    return digest.hexdigest()


def holds(path: Path, sha256: str) -> bool:
    """Whether a file is a samples.h5 of the tables with this fingerprint."""
    try:
        return path.is_file() and fingerprint(read(path)) == sha256
    except ValueError:
        return False


def located(folder: Path, where: str, name: str) -> Path | str:
    """A file of a cache, for errors: its path, or its URL if the folder is a copy of `where`."""
    return f"{where}/{name}" if where else folder / name


def load(folder: Path, identity: Identity, where: str = "") -> SampleTables:
    """The tables of the samples.h5 that an identity names. where: the URL of a remote cache.

    Raises: DamagedCache if the file is missing, another one, or damaged.
    """
    path, what = folder / name(identity), located(folder, where, name(identity))
    cache = where or folder
    if not path.is_file():
        raise DamagedCache(f"sample table {what} is missing", cache=cache, path=what)
    try:
        tables = read(path)
        if fingerprint(tables) != identity.samples_sha256:
            raise ValueError("its columns' sha256 is not the identity's")
        if sum(identity.added) > len(tables["train"]):
            raise ValueError("fewer samples than were added")
        for table in tables.values():
            table.check(len(identity.dataset.classes), len(identity.dataset.domains))
    except ValueError as error:
        message = f"sample table {what} is damaged: {error}"
        raise DamagedCache(message, cache=cache, path=what) from None
    return tables


def read(path: Path) -> SampleTables:
    """The tables of a samples.h5, whose values are not checked yet.

    Raises: ValueError for a file that is not laid out as `write` does it.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            places = {split: _places(file, split, path.stat().st_size) for split in SPLITS}
        return {split: _table(path, places[split]) for split in SPLITS}
    except Exception as error:  # h5py raises many kinds for a damaged file
        raise ValueError(str(error) or type(error).__name__) from None


def _places(file: h5py.File, split: str, num_bytes: int) -> dict[str, hdf5.Place]:
    if not isinstance(file.get(split, getlink=True), h5py.HardLink):
        raise ValueError(f"{split} is missing or a link")
    group = file[split]
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{split} is not a group")
    return {name: hdf5.place(group, name, num_bytes) for name in group}


def _table(path: Path, places: dict[str, hdf5.Place]) -> SampleTable:
    def column(name: str, kind: Any, num_axes: int = 1) -> np.ndarray:
        if name not in places:
            raise ValueError(f"{name} is missing")
        place = places[name]
        if place.dtype != np.dtype(kind) or len(place.shape) != num_axes:
            raise ValueError(f"{name} is {place.dtype} of shape {place.shape}")
        return place.read(path)

    offsets = column("key_offsets", np.int64)
    if not len(offsets):
        raise ValueError("key_offsets is empty")
    return SampleTable(
        Keys(column("keys", np.uint8), offsets),
        **{name: column(name, kind) for name, kind in KINDS.items()},
        boxes=column("boxes", np.float64, 2) if "boxes" in places else None,
    )
