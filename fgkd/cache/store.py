"""The cache folder: a Writer that can be killed at any moment, and a Reader by epoch slab."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import fsio, plan
from ..errors import FgkdError
from ..schema import fingerprint
from ..targets import Codec
from . import hdf5, manifest, stats, wds
from .manifest import Shard, ShardJob

BACKENDS: dict[str, Any] = {"hdf5": hdf5, "webdataset": wds}
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "h5py")


def library_versions() -> dict[str, str]:
    """Versions that stand beside the identity: drift is a warning while digests match."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def val_codec(num_classes: int) -> Codec:
    """How clean validation logits are stored: few, so exactly."""
    return Codec("dense32", num_classes)


@dataclass(frozen=True)
class Captured:
    """One shard's answers. logits: float32 [V, S, C]; digests: uint64 [V, S].

    partners (rows), lams and boxes: how views were mixed, [V, S(, 4)], or None. bad: keys of images
    that could not be read; their targets are zeros.
    """

    logits_VSC: np.ndarray
    digests_VS: np.ndarray
    partners_VS: np.ndarray | None = None
    lams_VS: np.ndarray | None = None
    boxes_VS4: np.ndarray | None = None
    bad: list[str] = field(default_factory=list)

    def mixing(self) -> dict[str, np.ndarray]:
        """The arrays that are stored where views were mixed."""
        if self.partners_VS is None or self.lams_VS is None or self.boxes_VS4 is None:
            return {}
        return {"partners": self.partners_VS, "lams": self.lams_VS, "boxes": self.boxes_VS4}


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
        self.identity_sha256 = fingerprint(identity)
        self.backend = BACKENDS[identity["format"]]
        self.codec = Codec.of(identity)
        self.block_rows = plan.blocks(
            identity["views"]["seed"], len(identity["train"]["keys"]), identity["shard_size"]
        )
        self._journal = folder / journal
        self._check_identity()

    def _check_identity(self) -> None:
        path = self.folder / "identity.json"
        if path.exists():
            manifest.refuse(
                f"{self.folder} holds a cache of another identity",
                manifest.explain_mismatch(fsio.read_json(path, "cache identity"), self.identity),
                "give another --output, or --overwrite to move the old cache aside",
            )
        elif any(self.folder.glob("shards/*")):
            raise FgkdError(f"{self.folder} holds shards but no identity.json", "--overwrite")

    def begin(self) -> None:
        """Make the folder this identity's, before the first shard."""
        if not (self.folder / "identity.json").exists():
            fsio.write_json(self.folder / "identity.json", self.identity)

    def published(self) -> list[dict[str, Any]]:
        """Journal rows of every writer whose shard is on disk in full."""
        journals = sorted(self.folder.glob("shards*.jsonl"))
        rows = {row["name"]: row for path in journals for row in fsio.read_lines(path)}
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

    def publish(self, job: ShardJob, captured: Captured) -> None:
        """Encode and write one shard of training targets."""
        rows = self.block_rows[job.block]
        column = self.identity["train"]
        labels = np.array(column["labels"], np.int64)
        own = np.broadcast_to(labels[rows], captured.digests_VS.shape)
        partners = captured.partners_VS
        both = [own] if partners is None else [own, labels[partners]]
        arrays = self.codec.encode(captured.logits_VSC, np.stack(both, axis=-1))
        good = np.array([column["keys"][i] not in captured.bad for i in rows], bool)
        found = stats.of_shard(
            captured.logits_VSC if good.all() else captured.logits_VSC[:, good],
            labels[rows[good]],
            np.array(column["domains"], np.int64)[rows[good]],
            [column["keys"][i] for i in rows[good]],
            self.codec,
            arrays if good.all() else {name: array[:, good] for name, array in arrays.items()},
            None if partners is None else labels[partners][:, good],
        )
        arrays |= {"digests": captured.digests_VS, **captured.mixing()}
        self._write(f"shards/{job.name}", job, "train", rows, arrays, captured.bad, found)

    def publish_val(self, logits_NC: np.ndarray, bad: list[str]) -> None:
        """Write the validation images' clean teacher logits [N, C], as one float32 view."""
        job = ShardJob(-1, 0, 1, self.backend.SUFFIX)
        codec = val_codec(self.codec.num_classes)
        arrays = codec.encode(logits_NC[None], np.full((1, len(logits_NC), 1), -1))
        rows = np.arange(len(logits_NC))
        self._write(f"val/clean{job.suffix}", job, "val", rows, arrays, bad, {})

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
        with fsio.replacing(path) as partial:
            self.backend.write(partial, shard)
        row = {"name": name, "block": job.block, "start": job.start, "stop": job.stop}
        row |= {"samples": len(rows), "bytes": path.stat().st_size, "sha256": fsio.sha256(path)}
        fsio.append_line(self._journal, row | {"bad": sorted(bad), "stats": found})

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
        for partial in self.folder.glob(f"*/*{fsio.PARTIAL}"):
            partial.unlink(missing_ok=True)  # of writers that were killed
        fsio.write_json(self.folder / "manifest.json", value, indent=None)
        return value
