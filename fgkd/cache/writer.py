"""Writing a cache: shards are published one by one, and a writer may be killed at any moment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fgkd import comparison, files
from fgkd.cache import encodings, hdf5, samples, samples_file, shards, stats, wds
from fgkd.cache.encodings import Codec
from fgkd.cache.identity import FORMAT_VERSION, Identity
from fgkd.cache.manifest import Manifest, check_version
from fgkd.cache.samples import SPLITS, SampleTables
from fgkd.cache.shards import Shard, ShardHeader, ShardJob, ShardRow
from fgkd.errors import DamagedCache, Difference, FgkdError, OutputExists
from fgkd.views import orders

BACKENDS: dict[str, ModuleType] = {"hdf5": hdf5, "webdataset": wds}
MIXING: encodings.Shapes = {
    "partners": ("int64", ()),
    "lams": ("float32", ()),
    "boxes": ("int16", (4,)),
}
BEGUN = ".begun.npz"  # the suffix of what is kept of a shard that is not full yet
SEEN_WITHIN_S, POLL_S = 90.0, 0.2  # when another rank's shard is seen here; NFS remembers a minute
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "h5py")


def library_versions() -> dict[str, str]:
    """Installed versions, stored in the manifest: other ones are fine while digests match."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def val_codec(num_classes: int) -> Codec:
    """How clean validation logits are stored: there are few of them, so as float32."""
    return Codec("dense32", num_classes)


def stored_arrays(codec: Codec) -> encodings.Shapes:
    """Every array of a training shard: the encoding's, the digests, and how views were mixed."""
    mixing = MIXING if codec.num_labels == 2 else {}
    return {**codec.arrays(), "digests": ("uint64", ()), **mixing}


class Captured:
    """One shard's targets while the teacher computes them; each is encoded when it comes.

    arrays: what is stored, [V, S, ...]. done_VS: which (view, sample) pairs are there. unreadable:
    keys of images that could not be read; their targets are zeros.
    """

    def __init__(self, job: ShardJob, rows_S: np.ndarray, labels: np.ndarray, codec: Codec) -> None:
        self.job, self.rows_S, self.labels, self.codec = job, rows_S, labels, codec
        shape = (job.stop - job.start, len(rows_S))
        shapes = stored_arrays(codec).items()
        self.arrays = {name: np.zeros((*shape, *more), kind) for name, (kind, more) in shapes}
        self.targets_VS = np.zeros(shape, stats.TARGET)
        self.unreadable: set[str] = set()
        self.done_VS = np.zeros(shape, bool)

    @property
    def left(self) -> int:
        """How many (sample, view) pairs are missing."""
        return int(self.done_VS.size - np.count_nonzero(self.done_VS))

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
        Raises: UnstorableLogits.
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

    def mark(self, at_S: np.ndarray, views: Sequence[int], unreadable: Iterable[str]) -> None:
        """Count these views of the samples at these places as done, readable or not."""
        self.done_VS[np.ix_(np.array(views) - self.job.start, at_S)] = True
        self.unreadable |= set(unreadable)


class Writer:
    """Publishes the shards of a cache: partial file, fsync, rename, journal line.

    A shard that is in a journal and on disk is done; `jobs()` is what is left. Several writers may
    share the folder, each with blocks and a journal of its own. read(split, row): an encoded image.
    Raises: DataMismatch when the folder holds a cache of another identity, and
    FormatVersionMismatch when it is of another format version.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        tables: SampleTables,
        views: int,
        read: Callable[[str, int], bytes],
        journal: str = "shards.jsonl",
    ) -> None:
        self.folder, self.identity, self.samples = folder, identity, tables
        self.views, self.read = views, read
        self.identity_sha256 = identity.sha256
        self.backend = BACKENDS[identity.format]
        self.codec = Codec.of(
            identity.encoding, len(identity.dataset.classes), identity.views.recipe.mixes
        )
        self.block_rows = orders.blocks(
            identity.views.seed, len(tables["train"]), identity.shard_size, identity.added
        )
        self._journal = folder / journal
        self.written: list[ShardRow] = []  # by this process
        self._elsewhere: list[ShardRow] = []  # by other ranks
        self._check_identity()

    def _check_identity(self) -> None:
        path = self.folder / "identity.json"
        if path.exists():
            old = files.read_json(path, "cache identity")
            check_version(old, self.folder, readable=(FORMAT_VERSION,))
            what = f"{self.folder} holds a cache of another identity"
            if files.fingerprint(old) in self.identity.earlier:
                return  # images are being added to it
            comparison.refuse(what, self._differences(old), "cache", self.folder)
        elif any(self.folder.glob("shards/*")):
            raise OutputExists(
                f"{self.folder} holds shards but no identity.json",
                path=self.folder,
                renamed=files.free_name(self.folder),
            )

    def _differences(self, old: dict[str, Any]) -> list[Difference]:
        """Field by field, down to the sample, how the folder's identity differs from this one."""
        found = comparison.differences(old, self.identity.to_json())
        if all(one.field != "samples_sha256" for one in found):
            return found
        with contextlib.suppress(DamagedCache, ValueError):  # then the two hashes must do
            before = samples_file.load(self.folder, Identity.from_json(old))
            rows = [
                one
                for split in SPLITS
                for one in samples.differences(before[split], self.samples[split], split)
            ]
            if rows:
                return [one for one in found if one.field != "samples_sha256"] + rows
        return found

    def begin(self) -> None:
        """Write samples.h5 and then identity.json, which make the folder this identity's.

        A samples.h5 that is missing or damaged is written again. Raises: ValueError if the tables
        are not those of the identity.
        """
        path = self.folder / samples_file.name(self.identity)
        if not samples_file.holds(path, self.identity.samples_sha256):
            if samples_file.fingerprint(self.samples) != self.identity.samples_sha256:
                raise ValueError("the samples are not those of the identity")
            samples_file.write(path, self.samples)
        path, value = self.folder / "identity.json", self.identity.to_json()
        if not path.exists() or files.read_json(path, "cache identity") != value:
            files.write_json(path, value)

    def published(self) -> list[ShardRow]:
        """Journal rows of every writer whose shard is on disk in full."""
        rows: dict[str, ShardRow] = {}
        for path in sorted(self.folder.glob("shards*.jsonl")):
            for value in files.read_lines(path):
                with contextlib.suppress(ValueError):  # a damaged line: the shard is written again
                    row = ShardRow.from_json(value)
                    rows[row.name] = row
        rows |= {row.name: row for row in self._elsewhere}
        return [row for row in rows.values() if self._on_disk(row)]

    def _on_disk(self, row: ShardRow) -> bool:
        path = self.folder / row.name
        return path.is_file() and path.stat().st_size == row.num_bytes

    def wait_for(self, rows: Sequence[ShardRow]) -> None:
        """Wait until shards that other ranks have written are to be seen here, journal or not.

        On a file system over a network that can take a minute; a shard that is not there after
        `SEEN_WITHIN_S` counts as not written.
        """
        self._elsewhere = list(rows)
        until = time.monotonic() + SEEN_WITHIN_S
        while not all(map(self._on_disk, rows)) and time.monotonic() < until:
            for folder in {(self.folder / row.name).parent for row in rows}:
                with contextlib.suppress(OSError):
                    os.listdir(folder)  # asks the server, where a path's absence may be remembered
            time.sleep(POLL_S)

    def jobs(self) -> list[ShardJob]:
        """The shards still to write so that every block has all the views."""
        spans = [(row.block, row.start, row.stop) for row in self.published() if row.block >= 0]
        gaps = shards.missing(spans, len(self.block_rows), self.views)
        return [ShardJob(block, start, stop, self.backend.SUFFIX) for block, start, stop in gaps]

    def needs_val(self) -> bool:
        """Whether the validation images' clean logits are still to be written."""
        done = {row.block for row in self.published()}
        return len(self.samples["val"]) > 0 and -1 not in done

    def is_complete(self) -> bool:
        """Whether every shard is there and the manifest says so."""
        has_manifest = (self.folder / "manifest.json").exists()
        return has_manifest and not self.jobs() and not self.needs_val()

    def captured(self, job: ShardJob) -> Captured:
        """An empty shard to collect the teacher's logits in."""
        labels = self.samples["train"].labels
        return Captured(job, self.block_rows[job.block], labels, self.codec)

    def _begun_path(self, job: ShardJob) -> Path:
        return self.folder / "shards" / f"{job.name}{BEGUN}"

    def save_begun(self, captured: Captured) -> None:
        """Keep what is there of a shard, for a capture that continues. Raises: WriteError."""
        held = {f"array_{name}": array for name, array in captured.arrays.items()}
        held |= {"targets": captured.targets_VS, "done": captured.done_VS}
        held["identity"] = np.array(self.identity_sha256)
        held["unreadable"] = np.array(sorted(captured.unreadable), str)
        path = self._begun_path(captured.job)
        # As np.savez does it, which in NumPy 2.0 leaves the archive open when the disk is full.
        with files.replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
            for name, array in held.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def begun(self, job: ShardJob) -> Captured | None:
        """The part of a shard that an interrupted capture kept; None if there is none to use."""
        path = self._begun_path(job)
        if not path.exists():
            return None
        found = self.captured(job)
        try:
            with open(path, "rb") as file, np.load(file) as held:
                if str(held["identity"]) != self.identity_sha256:
                    raise ValueError("of another cache")
                into = {f"array_{name}": array for name, array in found.arrays.items()}
                into |= {"targets": found.targets_VS, "done": found.done_VS}
                for name, array in into.items():
                    if held[name].dtype != array.dtype or held[name].shape != array.shape:
                        raise ValueError(f"{name} differs")
                    array[...] = held[name]
                found.unreadable = set(held["unreadable"].tolist())
        except Exception:  # a damaged file: its work is done again
            path.unlink(missing_ok=True)
            return None
        return found

    def publish(self, captured: Captured) -> None:
        """Write one shard of training targets."""
        table, rows = self.samples["train"], captured.rows_S
        readable: Any = np.array([table.keys[i] not in captured.unreadable for i in rows], bool)
        readable = slice(None) if readable.all() else readable  # a slice copies nothing
        partners_VS = captured.arrays.get("partners")
        found = stats.of_shard(
            captured.targets_VS[:, readable],
            table.labels[rows[readable]],
            table.domains[rows[readable]],
            [table.keys[i] for i in rows[readable]],
            None if partners_VS is None else table.labels[partners_VS][:, readable],
        )
        job, unreadable = captured.job, sorted(captured.unreadable)
        self._write(f"shards/{job.name}", job, "train", rows, captured.arrays, unreadable, found)
        self._begun_path(job).unlink(missing_ok=True)

    def publish_val(self, logits_NC: np.ndarray, unreadable: list[str]) -> None:
        """Write the validation images' clean teacher logits [N, C], as one float32 view."""
        job = ShardJob(-1, 0, 1, self.backend.SUFFIX)
        codec = val_codec(self.codec.num_classes)
        arrays = codec.encode(logits_NC[None], np.full((1, len(logits_NC), 1), -1))
        rows = np.arange(len(logits_NC))
        self._write(f"val/clean{job.suffix}", job, "val", rows, arrays, sorted(unreadable), None)

    def _write(
        self,
        name: str,
        job: ShardJob,
        split: str,
        rows: np.ndarray,
        arrays: dict[str, np.ndarray],
        unreadable: list[str],
        found: shards.ShardStats | None,
    ) -> None:
        table = self.samples[split]
        shard = Shard(
            header=ShardHeader(self.identity_sha256, job.block, job.start, job.stop),
            keys=[table.keys[i] for i in rows],
            labels=table.labels[rows],
            rows=rows,
            classes=self.identity.dataset.classes,
            arrays=arrays,
            read=lambda i: self._image(split, int(rows[i]), unreadable),
            boxes=None if table.boxes is None else table.boxes[rows],
        )
        path = self.folder / name
        with files.replacing(path) as partial:
            self.backend.write(partial, shard)
        row = ShardRow(
            name=name,
            block=job.block,
            start=job.start,
            stop=job.stop,
            samples=len(rows),
            num_bytes=path.stat().st_size,
            sha256=files.sha256(path),
            unreadable=tuple(unreadable),
            stats=found,
        )
        files.append_line(self._journal, row.to_json())
        self.written.append(row)

    def _image(self, split: str, row: int, unreadable: list[str]) -> bytes:
        """The encoded image; of an unreadable one the bytes that there are, perhaps none."""
        try:
            return self.read(split, row)
        except FgkdError:
            if self.samples[split].keys[row] not in unreadable:
                raise
            return b""

    def finish(self) -> Manifest | None:
        """Write the manifest, which declares the cache complete; None while shards are missing."""
        if self.jobs() or self.needs_val():
            return None
        rows = sorted(self.published(), key=lambda row: (row.block, row.start))
        training = tuple(row for row in rows if row.block >= 0)
        held = Manifest(
            identity=self.identity,
            identity_sha256=self.identity_sha256,
            views=max([row.stop for row in training], default=self.views),
            libraries=library_versions(),
            shards=training,
            val=next((row for row in rows if row.block < 0), None),
        )
        for pattern in (f"*/*{files.PARTIAL}", f"*/*{BEGUN}"):
            for partial in self.folder.glob(pattern):
                partial.unlink(missing_ok=True)  # of writers that were killed
        held.save(self.folder)
        return held
