"""Miniature caches of made-up logits, complete or half written."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from fgkd.cache import encodings, samples_file
from fgkd.cache.identity import (
    DatasetIdentity,
    EncodingIdentity,
    Identity,
    TeacherIdentity,
    ViewIdentity,
)
from fgkd.cache.samples import HASH_TYPE, SampleTable, SampleTables
from fgkd.cache.shards import ShardJob
from fgkd.cache.writer import Writer
from fgkd.data.keys import Keys
from fgkd.views.recipes import ViewRecipe

NUM_TRAIN, NUM_VAL, NUM_CLASSES, SHARD_SIZE = 23, 5, 6, 8  # blocks of 8, 8 and 7
NO_VAL = SampleTable.empty()


def table(prefix: str, labels: list[int], sizes: list[int]) -> SampleTable:
    """Samples named by a prefix and their row, in one domain."""
    num = len(labels)
    hashes = np.array([f"{i:032x}" for i in range(num)], HASH_TYPE)
    domains = np.zeros(num, np.int64)
    keys = Keys.of(f"{prefix}{i}.jpg" for i in range(num))
    return SampleTable(keys, np.array(labels), domains, np.array(sizes), hashes)


TABLES: SampleTables = {
    "train": table(
        "train/é ",
        [i % NUM_CLASSES - (i == 3) * 4 for i in range(NUM_TRAIN)],  # sample 3: -1
        [100 + i for i in range(NUM_TRAIN)],
    ),
    "val": table("val/", [0] * NUM_VAL, [7] * NUM_VAL),
}
IDENTITY = Identity(
    format="hdf5",
    encoding=EncodingIdentity("dense"),
    shard_size=SHARD_SIZE,
    dtype="float32",
    teachers=(TeacherIdentity("convnext", "aa", 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),),
    ensemble=None,
    views=ViewIdentity(ViewRecipe(crop_scale=(0.5, 1.0), hflip=0.5), seed=4, img_size=32),
    dataset=DatasetIdentity(
        "made", tuple(f"class {i}" for i in range(NUM_CLASSES)), ("made",), False, 0.1
    ),
    samples_sha256=samples_file.fingerprint(TABLES),
)


def encoding_of(name: str) -> EncodingIdentity:
    """The identity's entry for an encoding, with a top k where there is one."""
    return encodings.describe(name, 2, (1.0, 2.0), NUM_CLASSES)


def replaced(value: Any, path: list[str], new: Any) -> Any:
    """A dataclass, tuple, list or array with the part at a path replaced."""
    name, *rest = path
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        part = replaced(getattr(value, name), rest, new) if rest else new
        return dataclasses.replace(value, **{name: part})
    items = list(value)
    items[int(name)] = replaced(items[int(name)], rest, new) if rest else new
    if isinstance(value, Keys):
        return Keys.of(items)
    return np.array(items, value.dtype) if isinstance(value, np.ndarray) else tuple(items)


def make_tables(**changes: Any) -> SampleTables:
    """The samples with parts changed: `train__labels__2=5` changes the third label."""
    tables = dict(TABLES)
    for path, value in changes.items():
        split, *rest = path.split("__")
        tables[split] = replaced(tables[split], rest, value) if rest else value
    return tables


def make_identity(tables: SampleTables = TABLES, **changes: Any) -> Identity:
    """The identity of these samples with parts changed: `views__seed=5` changes `views.seed`."""
    sha256 = IDENTITY.samples_sha256 if tables is TABLES else samples_file.fingerprint(tables)
    identity = dataclasses.replace(IDENTITY, samples_sha256=sha256)
    for path, value in changes.items():
        identity = replaced(identity, path.split("__"), value)
    return identity


def logits_of(row: int, view: int) -> np.ndarray:
    """float32 [C]: the made-up teacher's logits of a view of a sample."""
    return np.random.default_rng([row, view]).normal(0, 3, NUM_CLASSES).astype(np.float32)


def digest_of(row: int, view: int) -> int:
    return int(np.random.default_rng([row, view, 1]).integers(1, 2**63)) * 2 + 1


def image_of(split: str, row: int) -> bytes:
    """What stands for a sample's image file."""
    return f"{split} image {row}".encode()


def make_writer(folder: Path, views: int = 3, **changes: Any) -> Writer:
    """A writer of a cache whose identity or samples are changed."""
    of_samples = {path for path in changes if path.split("__")[0] in TABLES}
    tables = make_tables(**{path: changes[path] for path in of_samples}) if of_samples else TABLES
    rest = {path: value for path, value in changes.items() if path not in of_samples}
    return Writer(folder, make_identity(tables, **rest), tables, views, image_of)


def open_writer(folder: Path, views: int, **changes: Any) -> Writer:
    """A writer that has begun a cache."""
    writer = make_writer(folder, views, **changes)
    writer.begin()
    return writer


def publish(writer: Writer, job: ShardJob, unreadable: list[str] | None = None) -> None:
    """Write one shard of the made-up teacher."""
    rows, views = writer.block_rows[job.block], range(job.start, job.stop)
    logits = np.array([[logits_of(row, view) for view in views] for row in rows])
    digests = np.array([[digest_of(row, view) for view in views] for row in rows], np.uint64)
    captured = writer.captured(job)
    captured.put(np.arange(len(rows)), views, logits, digests)
    captured.unreadable |= set(unreadable or [])
    writer.publish(captured)


def val_logits() -> np.ndarray:
    return np.stack([logits_of(row, 1000) for row in range(NUM_VAL)])


def write_cache(folder: Path, views: int = 3, order: int = 1, **changes: Any) -> Path:
    """A complete cache; what was written before stays. order -1: its last shard first."""
    writer = open_writer(folder, views, **changes)
    if order < 0 and writer.needs_val():
        writer.publish_val(val_logits(), [])
    for job in writer.jobs()[::order]:
        publish(writer, job)
    if writer.needs_val():
        writer.publish_val(val_logits(), [])
    writer.finish()
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """What must be equal in two caches: shards, samples and manifest."""
    names = [folder / "samples.h5", folder / "manifest.json"]
    paths = itertools.chain(folder.glob("shards/*"), folder.glob("val/*"), names)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
