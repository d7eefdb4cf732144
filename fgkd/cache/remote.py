"""A cache behind a URL: shards are downloaded ahead of their use, checked, and deleted after it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fgkd import files
from fgkd.cache import samples_file
from fgkd.cache.reader import Reader
from fgkd.cache.samples import SampleTables
from fgkd.data import Samples
from fgkd.data.samples import Place
from fgkd.download import download, require_fsspec

DOWNLOADS = "fgkd-download-"  # how the name of a temporary folder begins


def remove_orphans() -> None:
    """Delete the download folders of processes that were killed: they hold full shards."""
    for folder in Path(tempfile.gettempdir()).glob(f"{DOWNLOADS}*-*"):
        owner = folder.name.removeprefix(DOWNLOADS).split("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, owner: int) -> None:
    """Delete a download folder, unless this is a process that was forked from its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


class RemoteReader(Reader):
    """A Reader that downloads shards into a temporary folder, each once until it is dropped.

    A copy, such as that of a worker process, downloads into the same folder.
    """

    def __init__(self, url: str) -> None:
        url = url.rstrip("/")
        require_fsspec(url)
        remove_orphans()
        folder = Path(tempfile.mkdtemp(prefix=f"{DOWNLOADS}{os.getpid()}-"))
        self._cleanup: Any = weakref.finalize(self, _remove, folder, os.getpid())
        download(f"{url}/manifest.json", folder / "manifest.json")
        super().__init__(folder, url)
        self.fetched: list[str] = []  # names in the order of their download
        self._start()

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(1)  # one at a time, in the order of their use
        self._coming: dict[str, Future[Path]] = {}

    def __getstate__(self) -> dict[str, object]:
        gone = {"_pool": None, "_coming": None, "_cleanup": None}
        return super().__getstate__() | gone

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def _load_samples(self) -> SampleTables:
        if self.manifest.embedded is None:
            name = samples_file.name(self.identity)
            download(f"{self.url}/{name}", self.folder / name)
        return super()._load_samples()

    def want(self, names: list[str]) -> None:
        """Begin to download these shards, in order, unless they are here or on their way."""
        for name in names:
            if name not in self._coming:
                self._coming[name] = self._pool.submit(self._fetch, name)

    def _fetch(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        with open(self.folder / "lock", "wb") as lock:  # other processes may need it too
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not path.exists():
                    with files.replacing(path) as partial:
                        download(f"{self.url}/{name}", partial)
                    self.fetched.append(name)
            finally:  # not by closing it: a process that was forked meanwhile holds it open
                fcntl.flock(lock, fcntl.LOCK_UN)
        return path

    def _local(self, name: str) -> Path:
        self.want([name])
        return self._coming[name].result()

    def drop(self, name: str) -> None:
        """Close a shard and delete its local copy."""
        super().drop(name)
        self.checked_names.discard(name)
        self._coming.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop downloading, and delete what was downloaded."""
        super().close()
        self._pool.shutdown(cancel_futures=True)
        if self._cleanup:  # a copy leaves the folder to the original
            self._cleanup()

    def _train_samples(self, fetch: bool) -> Samples:
        if fetch:
            return super()._train_samples(fetch)
        return self._samples_at("train", [self.url] * len(self.samples["train"]))


def open_cache(where: files.PathLike) -> Reader:
    """The complete cache in a folder or behind a URL (http://, s3://, ... as fsspec opens them).

    The result has the attributes `classes`, `views` (their number), `identity`, `samples`, `codec`
    and `teacher_top1`; `targets(rows, view)`, `arrays_of_view(view)` and `val_logits()` give the
    teacher's logits. Raises: IncompleteCache, DamagedCache, FormatVersionMismatch, MissingFile or,
    for a URL, DownloadError.
    """
    place = files.text_of(where)
    return RemoteReader(place) if files.is_url(place) else Reader(files.local_path(place))


class Stream:
    """Shard-by-shard reading for one run: shards are open while steps use them.

    `need` opens a step's shards, `announce` begins to download the next ones, and `done` drops
    those whose last step is over: about two buffers of shards are held at a time.
    """

    def __init__(self, reader: Reader, block_rows: list[np.ndarray]) -> None:
        self.reader, self.block_rows = reader, block_rows
        self.block_of = np.empty(sum(map(len, block_rows)), np.int64)
        for block, rows in enumerate(block_rows):
            self.block_of[rows] = block
        self._held: dict[tuple[int, int], str] = {}  # (epoch, block) -> shard
        self._places: dict[int, Place] = {}

    def announce(self, epoch: int, view: int, coming: Iterable[int], limit: int) -> None:
        """Begin to download blocks in the order of their use; at most `limit` with those held."""
        if not isinstance(self.reader, RemoteReader):
            return
        ahead: dict[int, None] = {}
        for block in coming:
            if len(self._held) + len(ahead) >= limit:
                break
            if (epoch, block) not in self._held:
                ahead[block] = None
        self.reader.want([self.reader.shard_of(block, view).name for block in ahead])

    def need(self, epoch: int, view: int, blocks: list[int]) -> None:
        """Wait until these blocks' shards are open, in local files."""
        for block in blocks:
            if (epoch, block) not in self._held:
                row = self.reader.shard_of(block, view)
                self._held[epoch, block] = self.reader.open_block(block, view)
                if self.reader.holds_images:
                    self._places |= self.reader.places(row)

    def places(self, rows: np.ndarray) -> dict[int, Place] | None:
        """Where the images of these rows lie; None where the shards hold no images."""
        if not self.reader.holds_images:
            return None
        return {row: self._places[row] for row in rows.tolist()}

    def done(self, epoch: int, blocks: list[int]) -> None:
        """Drop blocks that no later step of the epoch needs."""
        for block in blocks:
            name = self._held.pop((epoch, block))
            if name not in self._held.values():
                self.reader.drop(name)
