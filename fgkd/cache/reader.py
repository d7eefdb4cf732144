"""Reading a complete cache: its identity, its samples, and the targets of each view.

Shape legend: N training samples, B some of them, C classes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import MutableSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import files
from fgkd.cache import manifest, samples_file, stats
from fgkd.cache.encodings import Arrays, Codec
from fgkd.cache.identity import FORMAT_VERSION, Identity
from fgkd.cache.samples import SampleTables, check_dataset
from fgkd.cache.shards import ShardRow
from fgkd.cache.writer import BACKENDS, stored_arrays, val_codec
from fgkd.data import Dataset, Keys, Samples
from fgkd.data.samples import Place
from fgkd.errors import DamagedCache, DamagedShard
from fgkd.views import orders

HASHERS = 4  # threads
MAX_OPEN = 30_000  # shards: each is mapped, of which Linux gives a process 65,530 by default


class Reader:
    """A complete cache; get one with `open_cache`.

    name: its folder or URL. identity: what it was made of. samples: the tables of its "train" and
    "val" samples; row i of a view is training sample i. views: how many each image has. codec: how
    its logits are stored. The sha256 of each shard is checked when it is first opened.

    Raises: DamagedCache, IncompleteCache, FormatVersionMismatch, MissingFile.
    """

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder, self.url, self.name = folder, url, url or str(folder)
        self.manifest = manifest.load(folder, url)
        self.identity: Identity = self.manifest.identity
        self.views: int = self.manifest.views
        self.samples: SampleTables = self._load_samples()
        identity, self._num = self.identity, len(self.samples["train"])
        try:
            mixes = identity.views.recipe.mixes
            self.codec = Codec.of(identity.encoding, len(self.classes), mixes)
        except ValueError as error:
            raise self._damaged_manifest(str(error)) from None
        if identity.format not in BACKENDS:
            raise self._damaged_manifest(f"unknown shard format {identity.format!r}")
        self._blocks = orders.blocks(
            identity.views.seed, self._num, identity.shard_size, identity.added
        )
        self._open: dict[str, tuple[Any, np.ndarray]] = {}
        self.checked_names: MutableSet[str] = set()  # shards whose sha256 was checked
        self._hashes: dict[str, str] = {}  # sha256 that was computed before a shard is checked

    def __fspath__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        what = f"{self._num:,} images x {self.views} views, {len(self.classes)} classes"
        return f"{type(self).__name__}({self.name!r}: {what}, {self.codec.name} logits)"

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}, "_hashes": {}}  # a copy opens shards for itself

    def _load_samples(self) -> SampleTables:
        tables = manifest.load_samples(self.folder, self.manifest, self.url)
        return {split: table.narrow() for split, table in tables.items()}

    @property
    def _backend(self) -> Any:
        return BACKENDS[self.identity.format]

    @property
    def classes(self) -> list[str]:
        """Class names; label i is classes[i]."""
        return list(self.identity.dataset.classes)

    @functools.cached_property
    def summary(self) -> stats.Summary:
        """The teacher's statistics on all training views."""
        return stats.summarize(self.manifest.shards, self.identity.dataset.domains, self.views)

    @property
    def teacher_top1(self) -> float | None:
        """The teacher's top-1 accuracy on the training views, in percent; None without labels."""
        labelled = any(one.images for one in self.summary.domains.values())
        return self.summary.top1_pct if labelled else None

    @property
    def holds_images(self) -> bool:
        """Whether the shards hold the images too, so that no dataset is needed."""
        return bool(self._backend.HOLDS_IMAGES)

    @property
    def unreadable_keys(self) -> set[str]:
        """Training images that could not be read when the cache was written: without targets."""
        return {key for row in self.manifest.shards for key in row.unreadable}

    @property
    def num_bytes(self) -> int:
        """Bytes of all training shards."""
        return sum(row.num_bytes for row in self.manifest.shards)

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise DataMismatch unless a dataset is the one that the cache was made of."""
        check_dataset(self.identity, self.samples, dataset, self.name)

    # Targets

    def targets(self, rows: np.ndarray, view: int, temperature: float | None = None) -> np.ndarray:
        """float32 [B, C]: the teacher's logits of a view of these training samples.

        softmax(targets / temperature) is the stored target; only the `topk` encoding needs the
        temperature (see `Codec.decode`). An unreadable image has zeros.
        """
        return self.decode(self.stored(rows, view, list(self.codec.arrays())), temperature)

    def stored(self, rows: np.ndarray, view: int, names: list[str]) -> Arrays:
        """Arrays [B, ...] as they are stored, such as `digests`, of a view of training samples.

        Only these rows are read; with a copy less if they are in the order of their blocks.
        Raises: IndexError; TypeError for rows that are not integers; DamagedShard, DamagedCache.
        """
        rows = np.asarray(rows)
        if len(rows) and rows.dtype.kind not in "iu":
            raise TypeError(f"rows are integers, not {rows.dtype}")
        rows = rows.astype(np.int64, copy=False)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._num:
            raise IndexError(f"rows are from 0 to {self._num - 1}")
        if not 0 <= view < self.views:
            raise IndexError(f"views are from 0 to {self.views - 1}, not {view}")
        shapes = stored_arrays(self.codec)
        by_block = {n: np.empty((len(rows), *shapes[n][1]), shapes[n][0]) for n in names}
        blocks_B, places_B = (of_all[rows] for of_all in self.places_of_rows)
        order = np.argsort(blocks_B, kind="stable")
        is_ordered = bool((blocks_B[1:] >= blocks_B[:-1]).all())
        blocks_B, places_B = blocks_B[order], places_B[order]
        cuts = [0, *(np.flatnonzero(np.diff(blocks_B)) + 1).tolist(), len(rows)]
        parts = [
            (self.shard_of(int(blocks_B[start]), view), start, stop)
            for start, stop in itertools.pairwise(cuts)
            if start < stop
        ]
        self._hash_ahead([row.name for row, _, _ in parts])
        for row, start, stop in parts:
            part = {name: array[start:stop] for name, array in by_block.items()}
            try:
                self._shard(row)[0].rows_into(part, view - row.start, places_B[start:stop])
            except DamagedShard as error:
                raise self._damaged(row, error.reason) from None
        if is_ordered:
            return by_block
        out = {name: np.empty_like(array) for name, array in by_block.items()}
        for name, array in by_block.items():
            out[name][order] = array
        return out

    def decode(self, arrays: Arrays, temperature: float | None = None) -> np.ndarray:
        """float32 logits [..., C] of stored arrays, as of `arrays_of_view`: `Codec.decode`."""
        return self.codec.decode(arrays, temperature)

    def arrays_of_view(self, view: int) -> Arrays:
        """One view of the full training split: the encoding's arrays and `digests`, [N, ...].

        Row i is training sample i. Raises: DamagedShard, DamagedCache.
        """
        return self.stored(np.arange(self._num), view, [*self.codec.arrays(), "digests"])

    def read_ahead(self, view: int) -> None:
        """Ask the system to read a view's arrays of the open shards into the page cache."""
        for row in self.manifest.shards:
            if row.start <= view < row.stop and (found := self._open.get(row.name)):
                found[0].read_ahead(view - row.start)

    def open_block(self, block: int, view: int) -> str:
        """Open and check the shard that has a view of a block; returns its name."""
        row = self.shard_of(block, view)
        self._shard(row)
        return row.name

    def shard_of(self, block: int, view: int) -> ShardRow:
        """The shard that holds a view of a block. Raises: DamagedCache if there is none."""
        for row in self._rows_of_block.get(block, ()):
            if row.start <= view < row.stop:
                return row
        raise self._no_shard(f"view {view} of block {block}")

    @functools.cached_property
    def _rows_of_block(self) -> dict[int, list[ShardRow]]:
        found: dict[int, list[ShardRow]] = {}
        for row in self.manifest.shards:
            found.setdefault(row.block, []).append(row)
        return found

    @functools.cached_property
    def places_of_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 [N] each: the block of a training sample, and its place in the block."""
        block_of, place_of = np.empty(self._num, np.int32), np.empty(self._num, np.int32)
        for block, rows in enumerate(self._blocks):
            block_of[rows], place_of[rows] = block, np.arange(len(rows))
        return block_of, place_of

    def val_logits(self) -> np.ndarray | None:
        """float32 [N_val, C]: the teacher's logits of the validation images, not augmented.

        Row i is validation sample i; None without a val split.
        """
        row = self.manifest.val
        if row is None:
            return None
        codec = val_codec(self.codec.num_classes)
        arrays = self._shard_arrays(row, 0, list(codec.arrays()))
        shape = (len(self.samples["val"]), self.codec.num_classes)
        self._check_array(row, "logits", arrays["logits"], shape)
        return np.array(codec.decode(arrays))  # no longer the file's own pages, which are read-only

    # Images

    def dataset(self, fetch: bool = True) -> Dataset:
        """The dataset as the shards hold it (WebDataset): train and val, without a test split.

        fetch: of a cache behind a URL, download every shard that holds training images; else these
        samples cannot be read.
        """
        described = self.identity.dataset
        splits = {"train": self._train_samples(fetch)}
        if self.manifest.val:
            splits["val"] = self._samples_in("val", [self.manifest.val])
        return Dataset(
            name=described.name,
            classes=self.classes,
            domains=list(described.domains),
            splits=splits,
            chiral=described.chiral,
        )

    def _train_samples(self, fetch: bool) -> Samples:
        return self._samples_in("train", [row for row in self.manifest.shards if row.start == 0])

    def _samples_in(self, split: str, shards: list[ShardRow]) -> Samples:
        places: list[Place | None] = [None] * len(self.samples[split])
        for row in shards:
            for i, place in self.places(row).items():
                places[i] = place
        if None in places:
            raise self._no_shard(f"the images of {places.count(None)} samples")
        return self._samples_at(split, [place[0] for place in places if place], places)

    def _samples_at(
        self, split: str, where: list[str], places: list[Place | None] | None = None
    ) -> Samples:
        table = self.samples[split]
        keys = table.keys
        paths = Keys.of(f"{path}:{key}" for path, key in zip(where, keys, strict=True))
        labels, domains = table.labels.astype(np.int64), table.domains.astype(np.int64)
        return Samples(keys, labels, domains, paths, places=places, boxes=table.boxes)

    def places(self, row: ShardRow) -> dict[int, Place]:
        """Sample's row -> (file, offset, size) of its image, for a shard that holds images."""
        shard, rows = self._shard(row)
        try:
            return {int(r): (str(shard.path), *shard.image_place(i)) for i, r in enumerate(rows)}
        except DamagedShard as error:
            raise self._damaged(row, error.reason) from None

    # Shards

    def check(self, row: ShardRow) -> None:
        """Raise DamagedShard unless a shard is undamaged, of this cache and of the right shape."""
        codec = self.codec if row.block >= 0 else val_codec(self.codec.num_classes)
        for name, (_, shape) in codec.arrays().items():
            for index in range(row.stop - row.start):
                array = self._shard_arrays(row, index, [name])[name]
                self._check_array(row, name, array, (row.samples, *shape))

    def _shard_arrays(self, row: ShardRow, index: int, names: list[str]) -> Arrays:
        try:
            found: Arrays = self._shard(row)[0].arrays_of_view(index, names)
            return found
        except DamagedShard as error:
            raise self._damaged(row, error.reason) from None

    def _hash_ahead(self, names: list[str]) -> None:
        """Hash shards that are not checked yet in a few threads; at first that is all of them."""
        paths = {name: self.folder / name for name in names if name not in self.checked_names}
        todo = {name: path for name, path in paths.items() if path.is_file()}
        if not todo:
            return
        with ThreadPoolExecutor(HASHERS) as pool:
            self._hashes |= dict(zip(todo, pool.map(files.sha256, todo.values()), strict=True))

    def _shard(self, row: ShardRow) -> tuple[Any, np.ndarray]:
        """An open shard, and which rows of the split its samples are."""
        if row.name not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))[0].close()  # the one opened first
            self._open[row.name] = self._checked(row, self._local(row.name))
        return self._open[row.name]

    def _local(self, name: str) -> Path:
        return self.folder / name

    def drop(self, name: str) -> None:
        """Close a shard that is not needed for now."""
        if name in self._open:
            self._open.pop(name)[0].close()

    def _checked(self, row: ShardRow, path: Path) -> tuple[Any, np.ndarray]:
        try:
            return self._opened(row, path)
        except (OSError, MemoryError) as error:
            raise files.read_error(path, error) from error

    def _opened(self, row: ShardRow, path: Path) -> tuple[Any, np.ndarray]:
        if not path.is_file():
            raise self._damaged(row, "it is missing")
        if (size := path.stat().st_size) != row.num_bytes:
            raise self._damaged(row, f"it has {size} bytes, not {row.num_bytes}")
        if row.name not in self.checked_names:
            found = self._hashes.pop(row.name, None) or files.sha256(path)
            if found != row.sha256:
                raise self._damaged(row, "its sha256 is not the manifest's")
        self.checked_names.add(row.name)
        try:
            shard = self._backend.Reader(path)
        except DamagedShard as error:
            raise self._damaged(row, error.reason) from None
        known_as = (self.manifest.identity_sha256, *self.identity.earlier)
        if shard.header.identity_sha256 not in known_as:
            raise self._damaged(row, "it is of another cache's identity")
        keys = shard.key_bytes()
        if row.block < 0:
            rows = np.arange(len(self.samples["val"]))
            if not np.array_equal(keys, self.samples["val"].keys.padded(rows)):
                raise self._damaged(row, "its samples are not the validation images")
            return shard, rows
        if row.block >= len(self._blocks):
            raise self._damaged(row, f"there is no block {row.block}")
        rows, known = self._blocks[row.block], self.samples["train"].keys
        if not np.array_equal(keys, known.padded(rows)):
            raise self._damaged(row, f"its samples are not those of block {row.block}")
        shapes, lead = stored_arrays(self.codec), (row.stop - row.start, len(rows))
        try:
            shard.check({n: (dtype, (*lead, *shape)) for n, (dtype, shape) in shapes.items()})
        except DamagedShard as error:
            raise self._damaged(row, error.reason) from None
        return shard, rows

    def _check_array(
        self, row: ShardRow, name: str, array: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        if array.shape != shape or array.dtype.hasobject:
            what = f"{name} is {array.dtype} of shape {array.shape}, expected {shape}"
            raise self._damaged(row, what)

    def _damaged(self, row: ShardRow, reason: str) -> DamagedShard:
        path = self._where(row.name)
        message = f"shard {path} is damaged: {reason}"
        return DamagedShard(
            message,
            cache=self._cache,
            path=path,
            reason=reason,
            rewritable=self.identity.format_version == FORMAT_VERSION,
        )

    def _no_shard(self, what: str) -> DamagedCache:
        message = f"cache {self.name} lists no shard with {what}"
        return DamagedCache(message, cache=self._cache, path=self._where(manifest.NAME))

    def _damaged_manifest(self, reason: str) -> DamagedCache:
        path = self._where(manifest.NAME)
        message = f"cache manifest {path} is damaged: {reason}"
        return DamagedCache(message, cache=self._cache, path=path)

    @property
    def _cache(self) -> Path | str:
        return self.url or self.folder

    def _where(self, name: str) -> Path | str:
        return samples_file.located(self.folder, self.url, name)

    def close(self) -> None:
        """Close the open shards."""
        for shard, _ in self._open.values():
            shard.close()
        self._open.clear()
