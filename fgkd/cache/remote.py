"""A cache behind a URL: whole shards are fetched ahead into a spool, checked, and dropped."""

from __future__ import annotations

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

from fgkd.cache.reader import Reader
from fgkd.data import Samples
from fgkd.data.samples import Place
from fgkd.errors import FgkdError

SPOOL = "fgkd-spool-"


def remove_orphans() -> None:
    """Delete the spools of processes that were killed, which hold whole shards."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SPOOL}*-*"):
        owner = folder.name.removeprefix(SPOOL).split("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def is_url(where: str) -> bool:
    """Whether a --cache is a URL that fsspec opens, and not a folder."""
    return "://" in where


def download(url: str, path: Path) -> None:
    """Copy what is behind a URL to a file. Raises: FgkdError with the reason when it cannot."""
    from fsspec.core import url_to_fs

    try:
        system, place = url_to_fs(url)
        system.get_file(place, str(path))
    except Exception as error:  # each file system has its own
        found = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        reason = found.splitlines()[0] if found else type(error).__name__
        raise FgkdError(f"cannot fetch {url}: {reason}", f"curl -I {url}") from None


class RemoteReader(Reader):
    """A Reader whose shards are fetched into a temporary folder, each at most once while wanted."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        remove_orphans()
        spool = Path(tempfile.mkdtemp(prefix=f"{SPOOL}{os.getpid()}-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, spool, True)
        download(f"{self.url}/manifest.json", spool / "manifest.json")
        super().__init__(spool)
        self.name = self.url
        self._pool = ThreadPoolExecutor(1)  # one at a time, in the order wanted
        self._coming: dict[str, Future[Path]] = {}
        self.fetched: list[str] = []  # names in the order fetched

    def want(self, names: list[str]) -> None:
        """Begin to fetch these shards, in order, unless they are here or on the way."""
        for name in names:
            if name not in self._coming:
                self._coming[name] = self._pool.submit(self._fetch, name)

    def _fetch(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        download(f"{self.url}/{name}", path)
        self.fetched.append(name)
        return path

    def _local(self, name: str) -> Path:
        self.want([name])
        return self._coming[name].result()

    def drop(self, name: str) -> None:
        """Close a shard and delete its local copy."""
        super().drop(name)
        self._whole.discard(name)
        self._coming.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop fetching, and delete what was fetched."""
        super().close()
        self._pool.shutdown(cancel_futures=True)
        self._cleanup()

    def _train_samples(self) -> Samples:
        """Columns alone: the training images arrive with their requests."""
        return self._columns("train", [self.url] * len(self.identity["train"]["keys"]))

    def _damaged(self, row: dict[str, Any], why: str) -> FgkdError:
        return FgkdError(
            f"shard {self.url}/{row['name']} is damaged: {why}",
            "upload the shard again; `fgkd inspect CACHE --verify` checks the original",
        )


def open_cache(where: str) -> Reader:
    """The cache in a folder or behind a URL."""
    return RemoteReader(where) if is_url(where) else Reader(Path(where))


class Stream:
    """Shard-by-shard reading for one run: whole blocks in memory, in the order of use.

    `need` makes a step's blocks ready, `announce` begins to fetch the next, and `done` lets go of
    those whose last step has been answered: about two buffers of shards are held at a time.
    """

    def __init__(self, reader: Reader, block_rows: list[np.ndarray]) -> None:
        self.reader, self.block_rows = reader, block_rows
        self.block_of = np.empty(sum(map(len, block_rows)), np.int64)
        for block, rows in enumerate(block_rows):
            self.block_of[rows] = block
        self._slabs: dict[int, dict[str, np.ndarray]] = {}
        self._held: dict[tuple[int, int], str] = {}  # (epoch, block) -> shard
        self._places: dict[int, Place] = {}

    def _row(self, block: int, view: int) -> dict[str, Any]:
        rows = self.reader.manifest["shards"]
        found = [r for r in rows if r["block"] == block and r["start"] <= view < r["stop"]]
        if not found:
            raise FgkdError(
                f"cache {self.reader.name} lists no shard with view {view} of block {block}",
                "restore manifest.json, or write the cache anew",
            )
        return dict(found[0])

    def announce(self, epoch: int, view: int, coming: Iterable[int], limit: int) -> None:
        """Begin to fetch blocks in the order of their use, up to `limit` with those held."""
        if not isinstance(self.reader, RemoteReader):
            return
        ahead: dict[int, None] = {}
        for block in coming:
            if len(self._held) + len(ahead) >= limit:
                break
            if (epoch, block) not in self._held:
                ahead[block] = None
        self.reader.want([self._row(block, view)["name"] for block in ahead])

    def need(self, epoch: int, view: int, blocks: list[int]) -> None:
        """Have these blocks' targets in the epoch's slab, and their images in local files."""
        if epoch not in self._slabs:
            self._slabs[epoch] = self.reader.empty_slab()
        slab = self._slabs[epoch]
        for block in blocks:
            if (epoch, block) not in self._held:
                row = self._row(block, view)
                self.reader.read_into(slab, row, view)
                self._held[epoch, block] = row["name"]
                if self.reader.holds_images:
                    self._places |= self.reader.places(row)

    def places(self, rows: np.ndarray) -> dict[int, Place] | None:
        """Where a worker finds the images of these rows; None where they are not in the shards."""
        if not self.reader.holds_images:
            return None
        return {row: self._places[row] for row in rows.tolist()}

    def slab(self, epoch: int) -> dict[str, np.ndarray]:
        """The epoch's targets, filled for the blocks that were needed so far."""
        for old in [e for e in self._slabs if e < epoch]:
            del self._slabs[old]
        return self._slabs[epoch]

    def done(self, epoch: int, blocks: list[int]) -> None:
        """Let go of blocks that no later step of the epoch needs."""
        for block in blocks:
            name = self._held.pop((epoch, block))
            if name not in self._held.values():
                self.reader.drop(name)
