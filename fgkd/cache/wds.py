"""The WebDataset shard: a tar of images and targets that any WebDataset pipeline can read.

Its members are named by the sample's row in the training split (keys may hold dots):
`00000042.jpg` (the original bytes), `.cls`, `.json`, and one `.NAME.npy` of shape [V, ...] for each
target array. The first member is `__header__` (JSON), which WebDataset readers skip. Times are
zero, so equal content gives equal bytes. Tars are read as streams of bytes and never extracted.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from fgkd.cache.shards import Shard, ShardHeader, damaged, map_file, unreadable

SUFFIX = ".tar"
HEADER = "__header__"
HOLDS_IMAGES = True
BLOCK = 512  # bytes of a tar header, and what members are padded to


def write(path: Path, shard: Shard) -> None:
    """Write a shard; equal content gives equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode 0644
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        columns = {"keys": shard.keys, "labels": shard.labels.tolist(), "rows": shard.rows.tolist()}
        add(
            HEADER,
            json.dumps({"header": shard.header.to_json(), **columns}, sort_keys=True).encode(),
        )
        for i, (row, key) in enumerate(zip(shard.rows.tolist(), shard.keys, strict=True)):
            label = int(shard.labels[i])
            class_name = shard.classes[label] if label >= 0 else None
            facts = {"key": key, "label": label, "class_name": class_name}
            if shard.boxes is not None:
                facts["box"] = shard.boxes[i].tolist()
            suffix = PurePosixPath(key).suffix.lower() or ".jpg"
            data = shard.read(i)
            add(f"{row:08d}{suffix}", data)
            add(f"{row:08d}.cls", str(label).encode())
            add(f"{row:08d}.json", json.dumps(facts, ensure_ascii=False).encode())
            for name, array in shard.arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, np.ascontiguousarray(array[:, i]), allow_pickle=False)
                add(f"{row:08d}.{name}.npy", buffer.getvalue())


def _members(data: memoryview) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of a USTAR file's members, which must be plain files, each once.

    Stricter than tarfile, which follows links, sparse maps and sizes that point backwards.
    """
    found: dict[str, tuple[int, int]] = {}
    at = 0
    while any(block := bytes(data[at : at + BLOCK])):
        name, size = block[:100].rstrip(b"\0").decode(), block[124:136]
        total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
        if len(block) != BLOCK or block[148:156] != b"%06o\0 " % total:
            raise ValueError(f"the member at byte {at} has a damaged header")
        if block[156:157] != b"0" or any(block[345:500]) or not re.fullmatch(rb"[0-7]{11}\0", size):
            raise ValueError(f"{name} is not a plain file")
        if name in found:
            raise ValueError(f"{name} is there twice")
        start, num_bytes = at + BLOCK, int(size[:-1], 8)
        at = start + -(-num_bytes // BLOCK) * BLOCK
        found[name] = start, num_bytes
        if at > len(data):
            raise ValueError("it is truncated")
    return found


class Reader:
    """One open tar, memory-mapped; members are read at the offsets found when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._map = map_file(path, path.stat().st_size).data
            self._members = _members(self._map)
            facts = json.loads(self._bytes(*self._members[HEADER]))
            self.header = ShardHeader.from_json(facts["header"])
            self.labels = np.array(facts["labels"], np.int64)
            self._keys: list[str] = list(map(str, facts["keys"]))
            self._names = [f"{row:08d}" for row in facts["rows"]]
            if not len(self._keys) == len(self._names) == self.labels.size:
                raise ValueError("its columns are not of one length")
        except Exception as error:  # of a file that may be anything
            raise unreadable(path, error, "it cannot be read: ") from None

    def _bytes(self, offset: int, size: int) -> bytes:
        return bytes(self._map[offset : offset + size])

    def key_bytes(self) -> np.ndarray:
        """UTF-8 bytes [S] of the block's sample keys, in shard order."""
        return np.array([key.encode() for key in self._keys])

    def sample_keys(self) -> list[str]:
        """The block's sample keys, in shard order."""
        return self._keys

    def image_place(self, i: int) -> tuple[int, int]:
        """(offset, size) in the tar of sample i's encoded image."""
        name = self._names[i] + (PurePosixPath(self._keys[i]).suffix.lower() or ".jpg")
        if name not in self._members:
            raise damaged(self.path, f"it has no member {name}")
        return self._members[name]

    def arrays_of_view(self, index: int, names: list[str]) -> dict[str, np.ndarray]:
        """Arrays [S, ...] of the shard's view number `index`."""
        try:
            return {name: self._column(index, name, self._names) for name in names}
        except Exception as error:
            raise unreadable(self.path, error) from None

    def check(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Raise DamagedShard unless the arrays of these names are of these types and shapes.

        Of the first sample: `_column` compares the others with the first that is read.
        """
        for name, (dtype, (num_views, _, *shape)) in shapes.items():
            try:
                found = self._column(num_views - 1, name, self._names[:1])
                if found.dtype != dtype or found.shape != (1, *shape):
                    raise ValueError(f"{name}.npy is of type {found.dtype} and of another shape")
            except Exception as error:
                raise unreadable(self.path, error) from None

    def read_ahead(self, index: int) -> None:
        """Nothing: the views of a tar lie among its images."""

    def rows_into(self, out: dict[str, np.ndarray], index: int, places: np.ndarray) -> None:
        """Fill arrays [B, ...] with those of the samples at these places, of a view."""
        try:
            samples = [self._names[place] for place in places.tolist()]
            for name, array in out.items():
                found = self._column(index, name, samples)
                if found.dtype != array.dtype or found.shape != array.shape:
                    raise ValueError(f"{name}.npy is {found.dtype} of shape {found.shape[1:]}")
                array[:] = found
        except Exception as error:
            raise unreadable(self.path, error) from None

    def _column(self, index: int, name: str, samples: list[str]) -> np.ndarray:
        """An array [B, ...] of one view of these samples, whose members must be alike."""
        places = [self._members[f"{sample}.{name}.npy"] for sample in samples]
        first = io.BytesIO(self._bytes(*places[0]))
        version = np.lib.format.read_magic(first)
        if version != (1, 0):
            raise ValueError(f"{name}.npy is of format {version}, not (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(first)
        if fortran or dtype.hasobject or not 0 <= index < shape[0]:
            raise ValueError(f"{name}.npy of shape {shape}, dtype {dtype} has no view {index}")
        skip, count = first.tell(), math.prod(shape[1:])
        if skip + shape[0] * count * dtype.itemsize != places[0][1] or min(shape) < 0:
            raise ValueError(f"{name}.npy of shape {shape}, dtype {dtype} is of another length")
        header = self._map[places[0][0] : places[0][0] + skip]
        out = np.empty((len(places), *shape[1:]), dtype)
        for i, (offset, size) in enumerate(places):
            if size != places[0][1] or self._map[offset : offset + skip] != header:
                raise ValueError(f"{samples[i]}.{name}.npy differs in shape or type")
            start = offset + skip + index * count * dtype.itemsize
            out[i] = np.frombuffer(self._map, dtype, count, start).reshape(shape[1:])
        return out

    def close(self) -> None:
        """Release the file, which stays mapped as long as an array of it is used."""
        self._map = memoryview(b"")
