"""What a cache is of (its identity), which shards it has, and why another input does not match.

The manifest is written last: its presence means that the cache is complete. It carries no times,
hosts or paths, so equal inputs give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import comparison, files
from fgkd.data import content
from fgkd.errors import Difference, FgkdError, quoted

FORMAT_VERSION = 2
MAX_SIZE, MAX_VIEWS = 8192, 10**6  # of a view's side in pixels, and of views
RESTORE = "restore manifest.json, or write the cache anew (cache-logits --overwrite)"

# What must be there, and of which type.
COLUMNS = {"keys": [str], "labels": [int], "domains": [int], "sizes": [int], "hashes": [str]}
IDENTITY = {
    "format": str,
    "encoding": {"name": str, "top_k": int, "temperatures": [float]},
    "shard_size": int,
    "dtype": str,
    "teachers": [{"architecture": str, "weights_sha256": str, "img_size": int}],
    "ensemble": Any,
    "views": {"recipe": {"mixup": float, "cutmix": float}, "seed": int, "img_size": int},
    "dataset": {
        "name": str,
        "classes": [str],
        "domains": [str],
        "chiral": bool,
        "val_fraction": float,
    },
    "train": COLUMNS,
    "val": COLUMNS,
}
SHARD = {
    **{"name": str, "block": int, "start": int, "stop": int},
    **{"samples": int, "bytes": int, "sha256": str, "bad": [str]},
}
MANIFEST = {
    **{"identity": {}, "identity_sha256": str, "views": int, "libraries": {}},
    **{"shards": [{}], "val": Any},
}


def describe_samples(
    samples: Any, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Columns keys, labels, domains, sizes (bytes), hashes (boxes) of a split; reads every file.

    An unreadable file gets size -1 and an empty hash: capture then reports or quarantines it.
    """

    def one(i: int) -> tuple[int, str]:
        try:
            data = samples.read(i)
        except FgkdError:
            return -1, ""
        return len(data), content.content_hash(data)

    sizes: list[int] = []
    hashes: list[str] = []
    runs = np.array_split(np.arange(len(samples)), max(1, len(samples) // 64))
    with ThreadPoolExecutor(4) as pool:
        for run in pool.map(lambda run: list(map(one, run)), runs):
            sizes += [size for size, _ in run]
            hashes += [digest for _, digest in run]
            progress(len(sizes))
    boxes = {} if samples.boxes is None else {"boxes": samples.boxes.tolist()}
    columns = {"keys": list(samples.keys), "labels": samples.labels.tolist()}
    columns["domains"] = samples.domains.tolist()
    return boxes | columns | {"sizes": sizes, "hashes": hashes}


def describe_dataset(dataset: Any, val_fraction: float) -> dict[str, Any]:
    """The part of the identity that names the data, without its samples."""
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "domains": list(dataset.domains),
        "chiral": dataset.chiral,
        "val_fraction": val_fraction,
    }


def check_samples(stored: dict[str, Any], samples: Any, split: str) -> None:
    """Compare a split now on disk with the one the cache was made of: keys, labels and sizes.

    Content hashes are compared later, as each file is first read. Raises: FgkdError old -> new.
    """
    now = {"keys": list(samples.keys), "labels": samples.labels.tolist()}
    if "boxes" in stored:
        now["boxes"] = [] if samples.boxes is None else samples.boxes.tolist()
    wrong = comparison.differences({k: stored[k] for k in now}, now, split)
    if not wrong:
        sizes = [samples.size(i) for i in range(len(samples))]
        at = [i for i, (a, b) in enumerate(zip(stored["sizes"], sizes, strict=True)) if a != b]
        wrong = [
            Difference(f"{split} size of {samples.keys[i]}", stored["sizes"][i], sizes[i])
            for i in at
        ]
    comparison.refuse("the cache is of other data", wrong, "data")


def check_dataset(identity: dict[str, Any], dataset: Any, cache: str) -> None:
    """Compare a dataset now on disk with a cache's identity. Raises: FgkdError old -> new."""
    described = describe_dataset(dataset, identity["dataset"]["val_fraction"])
    wrong = comparison.differences(identity["dataset"], described, "dataset")
    for split in ("train", "val"):
        if identity[split]["keys"] and split not in dataset.splits:
            count = len(identity[split]["keys"])
            wrong.append(Difference(f"{split} split", f"{count} images", "none"))
    comparison.refuse(f"cache {cache} is of other data", wrong, "data")
    for split in ("train", "val"):
        if split in dataset.splits:
            check_samples(identity[split], dataset.splits[split], split)


@dataclass(frozen=True)
class ShardJob:
    """One shard of the plan: a block of training rows and a view range [start, stop)."""

    block: int
    start: int
    stop: int
    suffix: str

    @property
    def name(self) -> str:
        """File name inside shards/, e.g. `shard-00000-v000-008.h5`."""
        return f"shard-{self.block:05d}-v{self.start:03d}-{self.stop:03d}{self.suffix}"


@dataclass(frozen=True)
class Shard:
    """A shard's content. arrays: name -> [V, S, ...], the encoding's plus `digests` and mixing.

    rows: int64 [S], places in the split; read(i): the encoded image of sample i of the shard;
    boxes: bounding boxes, where the views crop inside them.
    """

    header: dict[str, Any]
    keys: list[str]
    labels: np.ndarray
    rows: np.ndarray
    classes: list[str]
    arrays: dict[str, np.ndarray]
    read: Callable[[int], bytes]
    boxes: list[list[float]] | None = None


def load(folder: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises: FgkdError for a missing, incomplete or damaged cache, or one of another format version.
    """
    path = folder / "manifest.json"
    if not path.exists() and (folder / "shards.jsonl").exists():
        raise FgkdError(
            f"cache {folder} is incomplete: it has no manifest.json yet",
            f"fgkd cache-logits -c {(to := quoted(folder))}/args.yaml --output {to}   # continues",
        )
    manifest = files.read_json(path, "cache manifest")
    if not _is_manifest(manifest):
        raise FgkdError(
            f"cache manifest {path} is damaged: it is not a manifest", f"head -c 300 {path}"
        )
    version = manifest["identity"].get("format_version")
    if version != FORMAT_VERSION:
        raise FgkdError(
            f"cache {folder}: format_version: {version} -> {FORMAT_VERSION}",
            "write the cache anew with this version of fgkd (cache-logits --overwrite)",
        )
    if files.fingerprint(manifest["identity"]) != manifest["identity_sha256"]:
        raise FgkdError(
            f"cache manifest {path} is damaged: its identity does not hash to identity_sha256",
            RESTORE,
        )
    if not _is_identity(manifest["identity"]):
        raise FgkdError(f"cache manifest {path} is damaged: its identity is not one", RESTORE)
    return manifest


def _is_manifest(value: Any) -> bool:
    """Whether it has all parts, and every shard's name is of a file inside the cache's folder."""
    if not files.matches(value, MANIFEST):
        return False
    rows = [*value["shards"], *([] if value["val"] is None else [value["val"]])]
    return 0 <= value["views"] <= MAX_VIEWS and all(
        files.matches(row, SHARD)
        and re.fullmatch(r"(shards|val)/\w[\w.-]*", row["name"])
        and 0 <= row["start"] < row["stop"] <= MAX_VIEWS
        for row in rows
    )


def _is_identity(value: Any) -> bool:
    """Whether an identity of this version has all parts, each of its type and in its range."""
    if not files.matches(value, IDENTITY) or not 0 < value["views"]["img_size"] <= MAX_SIZE:
        return False
    store = value["views"].get("image_store") or {"short_side": MAX_SIZE}
    limits = {
        "labels": (-1, value["dataset"]["classes"]),
        "domains": (0, value["dataset"]["domains"]),
    }
    for column in (value["train"], value["val"]):
        length = len(set(column["keys"]))
        boxes = column.get("boxes", [[0, 0, 0, 0]] * length)
        if not files.matches(boxes, [[float]]) or [len(box) for box in boxes] != [4] * length:
            return False
        if any(len(column[name]) != length for name in COLUMNS):
            return False
        for name, (low, names) in limits.items():
            if not low <= min(column[name], default=0) <= max(column[name], default=0) < len(names):
                return not length
    return (
        value["shard_size"] > 0
        and files.matches(store, {"short_side": int})
        and store["short_side"] > 0
    )


def missing(rows: Iterable[dict[str, Any]], num_blocks: int, views: int) -> list[tuple[int, ...]]:
    """(block, start, stop) of every gap that the journalled shards leave in views [0, views)."""
    stops, gaps = [0] * num_blocks, []
    for row in sorted(rows, key=lambda row: (row["block"], row["start"])):
        block = row["block"]
        before = min(row["start"], views)
        if stops[block] < before:
            gaps.append((block, stops[block], before))
        stops[block] = max(stops[block], row["stop"])
    gaps += [(block, stop, views) for block, stop in enumerate(stops) if stop < views]
    return sorted(gaps)
