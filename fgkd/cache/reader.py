"""Reading a complete cache: whole views as slabs, and the images where the format holds them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import device, files
from fgkd.cache import manifest
from fgkd.cache.encodings import Codec
from fgkd.cache.writer import BACKENDS, val_codec
from fgkd.data import Dataset, Samples, content
from fgkd.data.boxes import checked
from fgkd.data.samples import Place
from fgkd.errors import FgkdError, quoted
from fgkd.views import orders

HASHERS = 4  # threads
MAX_OPEN = 512  # shards: each holds a file descriptor, of which a process may have 1,024


class Reader:
    """A complete cache. Each shard's sha256 is checked whole when it is first opened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        self.manifest = manifest.load(folder)
        self.identity: dict[str, Any] = self.manifest["identity"]
        self.views: int = self.manifest["views"]
        self.codec = Codec.of(self.identity)
        views, self._num = self.identity["views"], len(self.identity["train"]["keys"])
        self._blocks = orders.blocks(views["seed"], self._num, self.identity["shard_size"])
        if self.identity["format"] not in BACKENDS:
            raise FgkdError(
                f"cache {folder} is of an unknown format, {self.identity['format']!r}",
                manifest.RESTORE,
            )
        self._backend = BACKENDS[self.identity["format"]]
        self._open: dict[str, tuple[Any, np.ndarray]] = {}
        self._whole: set[str] = set()  # shards whose sha256 was checked
        self._hashes: dict[str, str] = {}  # sha256 found ahead of a shard's check

    @property
    def holds_images(self) -> bool:
        """Whether the shards hold the images too, so that no dataset is needed."""
        return bool(self._backend.HOLDS_IMAGES)

    @property
    def bad_keys(self) -> set[str]:
        """Training images that capture could not read; they have no target."""
        return {key for row in self.manifest["shards"] for key in row["bad"]}

    @property
    def num_bytes(self) -> int:
        """Bytes of all training shards."""
        return sum(row["bytes"] for row in self.manifest["shards"])

    def slab(self, view: int, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """One view of the whole training split: the encoding's arrays and `digests`, [N, ...].

        Row i is training sample i. out: the slab of another view, to be written over, so that a
        run holds one. Raises: FgkdError for a missing, damaged or foreign shard.
        """
        out = out or self.empty_slab()
        missing = np.ones(self._num, bool)
        rows = [r for r in self.manifest["shards"] if r["start"] <= view < r["stop"]]
        self._hash_ahead([row["name"] for row in rows])
        for row in rows:
            missing[self.read_into(out, row, view)] = False
        if missing.any():
            raise FgkdError(
                f"cache {self.name} lists no shard with view {view} of {missing.sum()} images",
                f"ls {quoted(self.name)}/shards   # restore manifest.json, or write the cache anew",
            )
        return out

    def _hash_ahead(self, names: list[str]) -> None:
        """Hash the shards not checked yet in a few threads: at first, this is all of a cache."""
        paths = {name: self.folder / name for name in names if name not in self._whole}
        todo = {name: path for name, path in paths.items() if path.is_file()}
        with ThreadPoolExecutor(HASHERS) as pool:
            self._hashes |= dict(zip(todo, pool.map(files.sha256, todo.values()), strict=True))

    def empty_slab(self) -> dict[str, np.ndarray]:
        """Uninitialised arrays for one view of the training split."""
        n = self._num
        shapes = self.codec.arrays().items()
        out = {name: np.empty((n, *shape), dtype) for name, (dtype, shape) in shapes}
        return out | {"digests": np.empty(n, np.uint64)}

    def read_into(self, slab: dict[str, np.ndarray], row: dict[str, Any], view: int) -> np.ndarray:
        """Copy one shard's part of a view to its samples' rows of the slab; returns those rows."""
        shard, rows = self._shard(row)
        for name, array in shard.slab(view - row["start"], list(slab)).items():
            self._check_array(row, name, array, (len(rows), *slab[name].shape[1:]))
            if array.dtype != slab[name].dtype:
                raise self._damaged(row, f"{name} is of type {array.dtype}")
            slab[name][rows] = array
        return rows

    def val_logits(self) -> np.ndarray | None:
        """float32 [N_val, C]: the teacher's clean logits of the val split; None without one."""
        row = self.manifest["val"]
        if row is None:
            return None
        shard, _ = self._shard(row)
        codec = val_codec(self.codec.num_classes)
        arrays = shard.slab(0, list(codec.arrays()))
        shape = (len(self.identity["val"]["keys"]), self.codec.num_classes)
        self._check_array(row, "logits", arrays["logits"], shape)
        return codec.decode(arrays)

    def dataset(self) -> Dataset:
        """The dataset as the shards hold it (WebDataset): train and val, without a test split."""
        described = self.identity["dataset"]
        splits = {"train": self._train_samples()}
        if self.manifest["val"]:
            splits["val"] = self._samples("val", [self.manifest["val"]])
        return Dataset(
            name=described["name"],
            classes=described["classes"],
            domains=described["domains"],
            splits=splits,
            chiral=described["chiral"],
        )

    def slim(self, dataset: Dataset) -> None:
        """Keep of the identity's columns what training needs: the keys, held once, and the hashes.

        To be called when the dataset is known to be the cache's; 100 bytes an image less.
        """
        for split in {"train", "val"} & set(dataset.splits):
            hashes = self.identity[split]["hashes"]
            packed = np.array([one.encode() for one in hashes], f"S{content.HASH_HEX}")
            self.identity[split] = {"keys": dataset.splits[split].keys, "hashes": packed}
        device.give_memory_back()

    def _train_samples(self) -> Samples:
        return self._samples("train", self.manifest["shards"])

    def _samples(self, split: str, shards: list[dict[str, Any]]) -> Samples:
        column = self.identity[split]
        row_of = {key: i for i, key in enumerate(column["keys"])}
        places: list[Place] = [("", 0, 0)] * len(row_of)
        for row in shards:
            if row["start"] == 0:
                shard, _ = self._shard(row)
                for i, key in enumerate(shard.sample_keys()):
                    places[row_of[key]] = (str(shard.path), *shard.image_place(i))
        return self._columns(split, [path for path, _, _ in places], list(places))

    def _columns(
        self, split: str, where: list[str], places: list[Place | None] | None = None
    ) -> Samples:
        column = self.identity[split]
        boxes = checked(column["keys"], column["boxes"]) if "boxes" in column else None
        return Samples(
            column["keys"],
            np.array(column["labels"], np.int64),
            np.array(column["domains"], np.int64),
            [f"{path}:{key}" for path, key in zip(where, column["keys"], strict=True)],
            places=places,
            boxes=boxes,
        )

    def check(self, row: dict[str, Any]) -> None:
        """Raise FgkdError unless a shard of the manifest is whole, ours, and of the right shape."""
        shard, _ = self._shard(row)
        codec = self.codec if row["block"] >= 0 else val_codec(self.codec.num_classes)
        for name, (_, shape) in codec.arrays().items():
            for index in range(row["stop"] - row["start"]):
                array = shard.slab(index, [name])[name]
                self._check_array(row, name, array, (row["samples"], *shape))

    def _shard(self, row: dict[str, Any]) -> tuple[Any, np.ndarray]:
        name = row["name"]
        if name not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))[0].close()  # the one opened first
            self._open[name] = self._checked(row, self._local(name))
        return self._open[name]

    def _local(self, name: str) -> Path:
        return self.folder / name

    def drop(self, name: str) -> None:
        """Close a shard that is not needed for now."""
        if name in self._open:
            self._open.pop(name)[0].close()

    def places(self, row: dict[str, Any]) -> dict[int, Place]:
        """Training row -> (file, offset, size) of its image, for a shard that holds images."""
        shard, rows = self._shard(row)
        path = str(shard.path)
        return {int(r): (path, *shard.image_place(i)) for i, r in enumerate(rows)}

    def _checked(self, row: dict[str, Any], path: Path) -> tuple[Any, np.ndarray]:
        if not path.is_file():
            raise self._damaged(row, "it is missing")
        if (size := path.stat().st_size) != row["bytes"]:
            raise self._damaged(row, f"it has {size} bytes, not {row['bytes']}")
        if row["name"] not in self._whole:
            found = self._hashes.pop(row["name"], None) or files.sha256(path)
            if found != row["sha256"]:
                raise self._damaged(row, "its sha256 is not the manifest's")
        self._whole.add(row["name"])
        shard = self._backend.Reader(path)
        if shard.header.get("identity_sha256") != self.manifest["identity_sha256"]:
            raise self._damaged(row, "it is of another cache's identity")
        if row["block"] < 0:
            if shard.sample_keys() != self.identity["val"]["keys"]:
                raise self._damaged(row, "its samples are not the validation images")
            return shard, np.zeros(0, np.int64)
        if row["block"] >= len(self._blocks):
            raise self._damaged(row, f"there is no block {row['block']}")
        rows, known = self._blocks[row["block"]], self.identity["train"]["keys"]
        if shard.sample_keys() != [known[i] for i in rows]:
            raise self._damaged(row, f"its samples are not those of block {row['block']}")
        return shard, rows

    def _check_array(
        self, row: dict[str, Any], name: str, array: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        if array.shape != shape or array.dtype.hasobject:
            what = f"{name} is {array.dtype} of shape {array.shape}, expected {shape}"
            raise self._damaged(row, what)

    def _damaged(self, row: dict[str, Any], why: str) -> FgkdError:
        path, folder = self.folder / row["name"], quoted(self.folder)
        return FgkdError(
            f"shard {path} is damaged: {why}",
            f"rm -f {quoted(path)} && fgkd cache-logits -c {folder}/args.yaml --output {folder}"
            "   # rewrites it alone",
        )

    def close(self) -> None:
        """Close the open shards."""
        for shard, _ in self._open.values():
            shard.close()
        self._open.clear()
