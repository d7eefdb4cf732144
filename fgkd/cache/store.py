"""The cache folder: a Writer that can be killed at any moment, and a Reader by epoch slab."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import fsio, plan, targets
from ..config import fingerprint
from ..errors import FgkdError
from . import hdf5, manifest
from .manifest import Shard, ShardJob

BACKENDS = {"hdf5": hdf5}
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "numpy", "h5py")
VAL_ENCODING = "dense32"


def library_versions() -> dict[str, str]:
    """Versions that stand beside the identity: drift is a warning while digests match."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


class Writer:
    """Publishes shards one by one: partial file, fsync, rename, journal line.

    What is journalled and on disk is done; `jobs()` is what is left. Raises: FgkdError when the
    folder holds a cache of another identity.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], views: int) -> None:
        self.folder = folder
        self.identity = identity
        self.identity_sha256 = fingerprint(identity)
        self.views = views
        self.backend = BACKENDS[identity["format"]]
        train = identity["train"]
        self.block_rows = plan.blocks(
            identity["views"]["seed"], len(train["keys"]), identity["shard_size"]
        )
        self._journal = folder / "shards.jsonl"
        self._check_identity()
        for partial in folder.glob(f"*/*{fsio.PARTIAL}"):
            partial.unlink()

    def _check_identity(self) -> None:
        path = self.folder / "identity.json"
        if path.exists():
            manifest.refuse(
                f"{self.folder} holds a cache of another identity",
                manifest.explain_mismatch(fsio.read_json(path, "cache identity"), self.identity),
                "give another --output, or --overwrite to move the old cache aside",
            )
        elif self.folder.exists() and any(self.folder.glob("shards/*")):
            raise FgkdError(f"{self.folder} holds shards but no identity.json", "--overwrite")
        else:
            fsio.write_json(path, self.identity)

    def _published(self) -> list[dict[str, Any]]:
        rows = {row["name"]: row for row in fsio.read_lines(self._journal)}
        return [row for row in rows.values() if self._on_disk(row)]

    def _on_disk(self, row: dict[str, Any]) -> bool:
        path = self.folder / row["name"]
        return path.is_file() and path.stat().st_size == row["bytes"]

    def jobs(self) -> list[ShardJob]:
        """The shards still to write so that every block has all the views."""
        rows = [row for row in self._published() if row["block"] >= 0]
        gaps = manifest.missing(rows, len(self.block_rows), self.views)
        return [ShardJob(block, start, stop, self.backend.SUFFIX) for block, start, stop in gaps]

    def needs_val(self) -> bool:
        """Whether the validation images' clean logits are still to be written."""
        done = {row["block"] for row in self._published()}
        return bool(self.identity["val"]["keys"]) and -1 not in done

    def publish(
        self, job: ShardJob, logits_VSC: np.ndarray, digests_VS: np.ndarray, bad: list[str]
    ) -> None:
        """Write one shard of teacher logits (float32) and pixel digests (uint64).

        bad: keys of images that could not be read; their targets are zeros.
        """
        arrays = targets.encode(self.identity["encoding"]["name"], logits_VSC)
        rows = self.block_rows[job.block]
        self._write(
            f"shards/{job.name}", job, "train", rows, {**arrays, "digests": digests_VS}, bad
        )

    def publish_val(self, logits_NC: np.ndarray, bad: list[str]) -> None:
        """Write the validation images' clean teacher logits, as one float32 view."""
        job = ShardJob(-1, 0, 1, self.backend.SUFFIX)
        arrays = targets.encode(VAL_ENCODING, logits_NC[None])
        rows = np.arange(len(logits_NC))
        self._write(f"val/clean{job.suffix}", job, "val", rows, arrays, bad)

    def _write(
        self,
        name: str,
        job: ShardJob,
        split: str,
        rows: np.ndarray,
        arrays: dict[str, np.ndarray],
        bad: list[str],
    ) -> None:
        column = self.identity[split]
        header = {
            "format_version": manifest.FORMAT_VERSION,
            "identity_sha256": self.identity_sha256,
            "block": job.block,
            "start": job.start,
            "stop": job.stop,
        }
        keys = [column["keys"][i] for i in rows]
        labels = np.array([column["labels"][i] for i in rows], np.int64)
        path = self.folder / name
        with fsio.replacing(path) as partial:
            self.backend.write(partial, Shard(header, keys, labels, arrays))
        row = {"name": name, "block": job.block, "start": job.start, "stop": job.stop}
        row |= {"samples": len(rows), "bytes": path.stat().st_size, "sha256": fsio.sha256(path)}
        fsio.append_line(self._journal, row | {"bad": sorted(bad)})

    def finish(self) -> dict[str, Any]:
        """Write the manifest, which declares the cache complete; every shard must be published."""
        assert not self.jobs(), "finish() before every shard was published"
        rows = sorted(self._published(), key=lambda row: (row["block"], row["start"]))
        value = {
            "identity_sha256": self.identity_sha256,
            "views": self.views,
            "libraries": library_versions(),
            "shards": [row for row in rows if row["block"] >= 0],
            "val": next((row for row in rows if row["block"] < 0), None),
            "identity": self.identity,
        }
        fsio.write_json(self.folder / "manifest.json", value, indent=None)
        return value


class Reader:
    """A complete cache. Each shard's sha256 is checked whole when it is first opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest.load(folder)
        self.identity: dict[str, Any] = self.manifest["identity"]
        self.views: int = self.manifest["views"]
        self.encoding: str = self.identity["encoding"]["name"]
        self.num_classes = len(self.identity["dataset"]["classes"])
        self._row_of = {key: i for i, key in enumerate(self.identity["train"]["keys"])}
        self._backend = BACKENDS[self.identity["format"]]
        self._open: dict[str, tuple[Any, np.ndarray]] = {}

    @property
    def bad_keys(self) -> set[str]:
        """Training images that capture could not read; they have no target."""
        return {key for row in self.manifest["shards"] for key in row["bad"]}

    @property
    def num_bytes(self) -> int:
        """Bytes of all training shards."""
        return sum(row["bytes"] for row in self.manifest["shards"])

    def slab(self, view: int) -> dict[str, np.ndarray]:
        """One view of the whole training split: the encoding's arrays and `digests`, [N, ...].

        Row i is training sample i. Raises: FgkdError for a missing, damaged or foreign shard.
        """
        shapes = targets.ENCODINGS[self.encoding].arrays(self.num_classes)
        n = len(self._row_of)
        out = {name: np.empty((n, *shape), dtype) for name, (dtype, shape) in shapes.items()}
        out["digests"] = np.empty(n, np.uint64)
        missing = np.ones(n, bool)
        for row in self.manifest["shards"]:
            if row["start"] <= view < row["stop"]:
                shard, rows = self._shard(row)
                for name, array in shard.slab(view - row["start"], list(out)).items():
                    if array.shape != (len(rows), *out[name].shape[1:]):
                        raise self._damaged(row, f"{name} has shape {array.shape}")
                    if array.dtype != out[name].dtype:
                        raise self._damaged(row, f"{name} is of type {array.dtype}")
                    out[name][rows] = array
                missing[rows] = False
        if missing.any():
            raise FgkdError(
                f"cache {self.folder} lists no shard with view {view} of {missing.sum()} images",
                f"ls {self.folder}/shards   # restore manifest.json, or write the cache anew",
            )
        return out

    def val_logits(self) -> np.ndarray | None:
        """float32 [N_val, C]: the teacher's clean logits of the val split; None without one."""
        row = self.manifest["val"]
        if row is None:
            return None
        shard, _ = self._shard(row)
        names = list(targets.ENCODINGS[VAL_ENCODING].arrays(self.num_classes))
        return targets.decode(VAL_ENCODING, shard.slab(0, names))

    def _shard(self, row: dict[str, Any]) -> tuple[Any, np.ndarray]:
        name = row["name"]
        if name not in self._open:
            path = self.folder / name
            if not path.is_file():
                raise self._damaged(row, "it is missing")
            if (size := path.stat().st_size) != row["bytes"]:
                raise self._damaged(row, f"it has {size} bytes, not {row['bytes']}")
            if fsio.sha256(path) != row["sha256"]:
                raise self._damaged(row, "its sha256 is not the manifest's")
            shard = self._backend.Reader(path)
            if shard.header.get("identity_sha256") != self.manifest["identity_sha256"]:
                raise self._damaged(row, "it is of another cache's identity")
            rows = []
            if row["block"] >= 0:
                rows = [self._row_of.get(key, -1) for key in shard.sample_keys()]
            if -1 in rows:
                raise self._damaged(row, "it has samples that the cache does not know")
            self._open[name] = shard, np.array(rows, np.int64)
        return self._open[name]

    def _damaged(self, row: dict[str, Any], why: str) -> FgkdError:
        path = self.folder / row["name"]
        return FgkdError(
            f"shard {path} is damaged: {why}",
            f"rm -f {path} && fgkd cache-logits -c {self.folder}/args.yaml --output {self.folder}"
            "   # rewrites it alone",
        )

    def close(self) -> None:
        """Close the open shards."""
        for shard, _ in self._open.values():
            shard.close()
        self._open.clear()
