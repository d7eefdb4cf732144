"""A cache behind a URL: whole shards are fetched ahead into a spool, checked, and dropped."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Samples
from ..data.base import Place
from ..errors import FgkdError
from .reader import Reader


def is_url(where: str) -> bool:
    """Whether a --cache is a URL that fsspec opens, and not a folder."""
    return "://" in where


def read_url(url: str) -> bytes:
    """The content behind a URL. Raises: FgkdError with the reason when it cannot be had."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FgkdError(f"cannot fetch {url}: {reason}", f"curl -I {url}") from None


class RemoteReader(Reader):
    """A Reader whose shards are fetched into a temporary folder, each at most once while wanted."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        spool = Path(tempfile.mkdtemp(prefix="fgkd-spool-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, spool, True)
        (spool / "manifest.json").write_bytes(read_url(f"{self.url}/manifest.json"))
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
        path.write_bytes(read_url(f"{self.url}/{name}"))
        self.fetched.append(name)
        return path

    def _local(self, name: str) -> Path:
        self.want([name])
        return self._coming[name].result()

    def drop(self, name: str) -> None:
        """Close a shard and delete its local copy."""
        super().drop(name)
        self._coming.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def _train_samples(self) -> Samples:
        """Columns alone: the training images arrive with their requests."""
        column = self.identity["train"]
        return Samples(
            column["keys"],
            np.array(column["labels"], np.int64),
            np.array(column["domains"], np.int64),
            [f"{self.url}:{key}" for key in column["keys"]],
        )

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

    `need` makes a step's blocks ready and begins to fetch the next; `done` lets go of blocks whose
    steps have been answered, so that about two groups of shards are held at a time.
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

    def announce(self, blocks: list[int], view: int) -> None:
        """Begin to fetch blocks that will be needed soon."""
        if isinstance(self.reader, RemoteReader):
            self.reader.want([self._row(block, view)["name"] for block in blocks])

    def need(self, epoch: int, view: int, blocks: list[int]) -> None:
        """Have these blocks' targets in the epoch's slab, and their images in local files."""
        slab = self._slabs.setdefault(epoch, self.reader.empty_slab())
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

    def done(self, epoch: int, keep: set[int]) -> None:
        """Let go of this and earlier epochs' blocks but those to keep."""
        later = {name for (e, block), name in self._held.items() if e > epoch or block in keep}
        for held, name in list(self._held.items()):
            if held[0] < epoch or (held[0] == epoch and held[1] not in keep):
                del self._held[held]
                if name not in later:
                    self.reader.drop(name)
