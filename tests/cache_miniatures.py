"""Miniature caches of made-up logits, whole or half written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from fgkd.cache import encodings
from fgkd.cache.manifest import ShardJob
from fgkd.cache.writer import Writer

NUM_TRAIN, NUM_VAL, NUM_CLASSES, SHARD_SIZE = 23, 5, 6, 8  # blocks of 8, 8 and 7
IDENTITY: dict[str, Any] = {
    "format_version": 2,
    "format": "hdf5",
    "encoding": {"name": "dense", "top_k": 0, "temperatures": []},
    "shard_size": SHARD_SIZE,
    "dtype": "float32",
    "teachers": [{"architecture": "convnext", "weights_sha256": "aa", "img_size": 32}],
    "ensemble": None,
    "views": {
        "recipe": {"crop_scale": [0.5, 1.0], "hflip": 0.5, "mixup": 0.0, "cutmix": 0.0},
        "seed": 4,
        "img_size": 32,
    },
    "dataset": {
        "name": "made",
        "classes": [f"class {i}" for i in range(NUM_CLASSES)],
        "domains": ["made"],
        "chiral": False,
        "val_fraction": 0.1,
    },
    "train": {
        "keys": [f"train/é {i}.jpg" for i in range(NUM_TRAIN)],
        "labels": [i % NUM_CLASSES - (i == 3) * 4 for i in range(NUM_TRAIN)],  # sample 3: -1
        "domains": [0] * NUM_TRAIN,
        "sizes": [100 + i for i in range(NUM_TRAIN)],
        "hashes": [f"{i:032x}" for i in range(NUM_TRAIN)],
    },
    "val": {
        "keys": [f"val/{i}.jpg" for i in range(NUM_VAL)],
        "labels": [0] * NUM_VAL,
        "domains": [0] * NUM_VAL,
        "sizes": [7] * NUM_VAL,
        "hashes": [f"{i:032x}" for i in range(NUM_VAL)],
    },
}
NO_VAL: dict[str, list[Any]] = {name: [] for name in IDENTITY["val"]}


def encoding_of(name: str) -> dict[str, Any]:
    """The identity's entry for an encoding, with a top k where there is one."""
    described: dict[str, Any] = encodings.describe(name, 2, (1.0, 2.0), NUM_CLASSES)
    return described


def make_identity(**changes: Any) -> dict[str, Any]:
    """The identity with leaves changed: `views__seed=5` changes `["views"]["seed"]`."""
    identity = copy.deepcopy(IDENTITY)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place: Any = identity
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(leaf) if isinstance(place, list) else leaf] = value
    return identity


def logits_of(row: int, view: int) -> np.ndarray:
    """float32 [C]: what the made-up teacher says of a view of a sample."""
    return np.random.default_rng([row, view]).normal(0, 3, NUM_CLASSES).astype(np.float32)


def digest_of(row: int, view: int) -> int:
    return int(np.random.default_rng([row, view, 1]).integers(1, 2**63)) * 2 + 1


def image_of(split: str, row: int) -> bytes:
    """What stands for a sample's image file."""
    return f"{split} image {row}".encode()


def open_writer(folder: Path, views: int, **changes: Any) -> Writer:
    """A writer that has begun a cache."""
    writer = Writer(folder, make_identity(**changes), views, image_of)
    writer.begin()
    return writer


def publish(writer: Writer, job: ShardJob, bad: list[str] | None = None) -> None:
    """Write one shard of the made-up teacher."""
    rows, views = writer.block_rows[job.block], range(job.start, job.stop)
    logits = np.array([[logits_of(row, view) for view in views] for row in rows])
    digests = np.array([[digest_of(row, view) for view in views] for row in rows], np.uint64)
    captured = writer.captured(job)
    captured.put(np.arange(len(rows)), views, logits, digests)
    captured.bad |= set(bad or [])
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
    """What must be equal in two caches: shards and manifest."""
    paths = [*folder.glob("shards/*"), *folder.glob("val/*"), folder / "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
