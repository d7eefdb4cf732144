"""The cache folder: a Writer that can be killed at any moment, and a Reader by epoch slab."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import comparison, files
from fgkd.cache import hdf5, manifest, stats, wds
from fgkd.cache.encodings import Codec
from fgkd.cache.manifest import Shard, ShardJob
from fgkd.errors import FgkdError
from fgkd.views import orders

BACKENDS: dict[str, Any] = {"hdf5": hdf5, "webdataset": wds}
MIXING = {"partners": ("int64", ()), "lams": ("float32", ()), "boxes": ("int16", (4,))}
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "h5py")


def library_versions() -> dict[str, str]:
    """Versions that stand beside the identity: drift is a warning while digests match."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def val_codec(num_classes: int) -> Codec:
    """How clean validation logits are stored: few, so exactly."""
    return Codec("dense32", num_classes)


class Captured:
    """One shard's targets as they come in, encoded at once: no shard is held in float32.

    arrays: what is stored, [V, S, ...]. left: how many (sample, view) are missing. bad: keys of
    images that could not be read; their targets are zeros.
    """

    def __init__(self, job: ShardJob, rows_S: np.ndarray, labels: np.ndarray, codec: Codec) -> None:
        self.job, self.rows_S, self.labels, self.codec = job, rows_S, labels, codec
        shape = (job.stop - job.start, len(rows_S))
        arrays = {**codec.arrays(), "digests": ("uint64", ())}
        if codec.num_labels == 2:
            arrays |= MIXING
        self.arrays = {n: np.zeros((*shape, *more), kind) for n, (kind, more) in arrays.items()}
        self.targets_VS = np.zeros(shape, stats.TARGET)
        self.bad: set[str] = set()
        self.left = math.prod(shape)

    def put(
        self,
        at_B: np.ndarray,
        views_V: Sequence[int],
        logits_BVC: np.ndarray,
        digests_BV: np.ndarray,
        partners_BV: np.ndarray | None = None,
        lams_BV: np.ndarray | None = None,
        boxes_BV4: np.ndarray | None = None,
    ) -> None:
        """Encode float32 logits of views of the samples at these places of the shard.

        partners (rows of the split), lams, boxes: how views were mixed, if they were.
        Raises: FgkdError for logits that cannot be stored.
        """
        label_BV = np.broadcast_to(self.labels[self.rows_S[at_B], None], digests_BV.shape)
        both = [label_BV] if partners_BV is None else [label_BV, self.labels[partners_BV]]
        arrays = self.codec.encode(logits_BVC, np.stack(both, -1))
        place = np.ix_(np.array(views_V) - self.job.start, at_B)
        found = stats.of_targets(logits_BVC, label_BV, self.codec, arrays)
        self.targets_VS[place] = found.T
        arrays["digests"] = digests_BV
        if partners_BV is not None and lams_BV is not None and boxes_BV4 is not None:
            arrays |= {"partners": partners_BV, "lams": lams_BV, "boxes": boxes_BV4}
        for name, array in arrays.items():
            self.arrays[name][place] = array.swapaxes(0, 1)


class Writer:
    """Publishes shards one by one: partial file, fsync, rename, journal line.

    What is journalled and on disk is done; `jobs()` is what is left. Several writers may share the
    folder, each with blocks and a journal of its own. `read(split, row)` gives an encoded image.
    Raises: FgkdError when the folder holds a cache of another identity.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        views: int,
        read: Callable[[str, int], bytes],
        journal: str = "shards.jsonl",
    ) -> None:
        self.folder, self.identity, self.views, self.read = folder, identity, views, read
        self.identity_sha256 = files.fingerprint(identity)
        self.backend = BACKENDS[identity["format"]]
        self.codec = Codec.of(identity)
        self.block_rows = orders.blocks(
            identity["views"]["seed"], len(identity["train"]["keys"]), identity["shard_size"]
        )
        self._labels = np.array(identity["train"]["labels"], np.int64)
        self._journal = folder / journal
        self._check_identity()

    def _check_identity(self) -> None:
        path = self.folder / "identity.json"
        if path.exists():
            comparison.refuse(
                f"{self.folder} holds a cache of another identity",
                comparison.differences(files.read_json(path, "cache identity"), self.identity),
                "cache",
                self.folder,
            )
        elif any(self.folder.glob("shards/*")):
            raise FgkdError(f"{self.folder} holds shards but no identity.json", "--overwrite")

    def begin(self) -> None:
        """Make the folder this identity's, before the first shard."""
        if not (self.folder / "identity.json").exists():
            files.write_json(self.folder / "identity.json", self.identity, indent=None)

    def published(self) -> list[dict[str, Any]]:
        """Journal rows of every writer whose shard is on disk in full."""
        journals = sorted(self.folder.glob("shards*.jsonl"))
        rows = {row["name"]: row for path in journals for row in files.read_lines(path)}
        return [row for row in rows.values() if self._on_disk(row)]

    def _on_disk(self, row: dict[str, Any]) -> bool:
        path = self.folder / row["name"]
        return path.is_file() and path.stat().st_size == row["bytes"]

    def jobs(self) -> list[ShardJob]:
        """The shards still to write so that every block has all the views."""
        rows = [row for row in self.published() if row["block"] >= 0]
        gaps = manifest.missing(rows, len(self.block_rows), self.views)
        return [ShardJob(block, start, stop, self.backend.SUFFIX) for block, start, stop in gaps]

    def needs_val(self) -> bool:
        """Whether the validation images' clean logits are still to be written."""
        done = {row["block"] for row in self.published()}
        return bool(self.identity["val"]["keys"]) and -1 not in done

    def is_complete(self) -> bool:
        """Whether every shard is there and the manifest says so."""
        has_manifest = (self.folder / "manifest.json").exists()
        return has_manifest and not self.jobs() and not self.needs_val()

    def captured(self, job: ShardJob) -> Captured:
        """An empty shard, for the answers to be put into."""
        return Captured(job, self.block_rows[job.block], self._labels, self.codec)

    def publish(self, captured: Captured) -> None:
        """Write one shard of training targets."""
        rows, column = captured.rows_S, self.identity["train"]
        good: Any = np.array([column["keys"][i] not in captured.bad for i in rows], bool)
        good = slice(None) if good.all() else good  # which copies nothing
        partners_VS = captured.arrays.get("partners")
        found = stats.of_shard(
            captured.targets_VS[:, good],
            self._labels[rows[good]],
            np.array([column["domains"][i] for i in rows[good]], np.int64),
            [column["keys"][i] for i in rows[good]],
            None if partners_VS is None else self._labels[partners_VS][:, good],
        )
        job, bad = captured.job, sorted(captured.bad)
        self._write(f"shards/{job.name}", job, "train", rows, captured.arrays, bad, found)

    def publish_val(self, logits_NC: np.ndarray, bad: list[str]) -> None:
        """Write the validation images' clean teacher logits [N, C], as one float32 view."""
        job = ShardJob(-1, 0, 1, self.backend.SUFFIX)
        codec = val_codec(self.codec.num_classes)
        arrays = codec.encode(logits_NC[None], np.full((1, len(logits_NC), 1), -1))
        rows = np.arange(len(logits_NC))
        self._write(f"val/clean{job.suffix}", job, "val", rows, arrays, sorted(bad), {})

    def _write(
        self,
        name: str,
        job: ShardJob,
        split: str,
        rows: np.ndarray,
        arrays: dict[str, np.ndarray],
        bad: list[str],
        found: dict[str, Any],
    ) -> None:
        column = self.identity[split]
        header = {
            "format_version": manifest.FORMAT_VERSION,
            "identity_sha256": self.identity_sha256,
            "block": job.block,
            "start": job.start,
            "stop": job.stop,
        }
        shard = Shard(
            header=header,
            keys=[column["keys"][i] for i in rows],
            labels=np.array([column["labels"][i] for i in rows], np.int64),
            rows=rows,
            classes=self.identity["dataset"]["classes"],
            arrays=arrays,
            read=lambda i: self._image(split, int(rows[i]), bad),
            boxes=[column["boxes"][i] for i in rows] if "boxes" in column else None,
        )
        path = self.folder / name
        with files.replacing(path) as partial:
            self.backend.write(partial, shard)
        row = {"name": name, "block": job.block, "start": job.start, "stop": job.stop}
        row |= {"samples": len(rows), "bytes": path.stat().st_size, "sha256": files.sha256(path)}
        files.append_line(self._journal, row | {"bad": bad, "stats": found})

    def _image(self, split: str, row: int, bad: list[str]) -> bytes:
        """The encoded image; of a quarantined one what there is, which may be nothing."""
        try:
            return self.read(split, row)
        except FgkdError:
            if self.identity[split]["keys"][row] not in bad:
                raise
            return b""

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest, which declares the cache complete; None while shards are missing."""
        if self.jobs() or self.needs_val():
            return None
        rows = sorted(self.published(), key=lambda row: (row["block"], row["start"]))
        value = {
            "identity_sha256": self.identity_sha256,
            "views": max([row["stop"] for row in rows if row["block"] >= 0], default=self.views),
            "libraries": library_versions(),
            "shards": [row for row in rows if row["block"] >= 0],
            "val": next((row for row in rows if row["block"] < 0), None),
            "identity": self.identity,
        }
        for partial in self.folder.glob(f"*/*{files.PARTIAL}"):
            partial.unlink(missing_ok=True)  # of writers that were killed
        files.write_json(self.folder / "manifest.json", value, indent=None)
        return value
