"""What a cache is of (its identity), which shards it has, and why another input does not match.

The manifest is written last: its presence means that the cache is complete. It carries no times,
hosts or paths, so equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import fsio
from ..errors import FgkdError, WrongDataError, quoted

FORMAT_VERSION = 2
HASH_HEX = 32
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


def content_hash(data: bytes) -> str:
    """The hash by which a cache knows an image file: blake2b-128 of its bytes, hex."""
    return hashlib.blake2b(data, digest_size=HASH_HEX // 2).hexdigest()


def check_content(key: str, then: str | bytes, data: bytes) -> None:
    """Raise WrongDataError when an image's bytes are not those a cache was made of."""
    then, now = then.decode() if isinstance(then, bytes) else then, content_hash(data)
    if now != then:
        raise WrongDataError(
            f"the cache is of other data: content of {key}: {then} -> {now}",
            "point --data at the images the cache was made of",
        )


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
        return len(data), content_hash(data)

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


def explain_mismatch(old: Any, new: Any, field: str = "") -> list[str]:
    """`field: old -> new` for every leaf that differs between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        nested = (
            explain_mismatch(old.get(k), new.get(k), f"{field}.{k}" if field else k) for k in keys
        )
        return [line for lines in nested for line in lines]
    if isinstance(old, list) and isinstance(new, list) and old != new:
        at = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        if len(old) != len(new):
            first = at[0] if at else min(len(old), len(new))
            a, b = (str(x[first]) if first < len(x) else "none" for x in (old, new))
            return [f"{field}: {len(old)} entries -> {len(new)}, from [{first}] on: {a} -> {b}"]
        if isinstance(old[at[0]], dict):
            return explain_mismatch(old[at[0]], new[at[0]], f"{field}[{at[0]}]")
        more = f" ({len(at)} entries differ)" if len(at) > 1 else ""
        return [f"{field}[{at[0]}]: {old[at[0]]} -> {new[at[0]]}{more}"]
    return [] if old == new else [f"{field}: {old} -> {new}"]


def check_samples(stored: dict[str, Any], samples: Any, split: str) -> None:
    """Compare a split now on disk with the one the cache was made of: keys, labels and sizes.

    Content hashes are compared later, as each file is first read. Raises: FgkdError old -> new.
    """
    now = {"keys": list(samples.keys), "labels": samples.labels.tolist()}
    if "boxes" in stored:
        now["boxes"] = [] if samples.boxes is None else samples.boxes.tolist()
    wrong = explain_mismatch({k: stored[k] for k in now}, now, split)
    if not wrong:
        sizes = [samples.size(i) for i in range(len(samples))]
        at = [i for i, (a, b) in enumerate(zip(stored["sizes"], sizes, strict=True)) if a != b]
        wrong = [
            f"{split} size of {samples.keys[i]}: {stored['sizes'][i]} -> {sizes[i]}" for i in at
        ]
    refuse("the cache is of other data", wrong, "point --data at the images the cache was made of")


def check_dataset(identity: dict[str, Any], dataset: Any, cache: str) -> None:
    """Compare a dataset now on disk with a cache's identity. Raises: FgkdError old -> new."""
    described = describe_dataset(dataset, identity["dataset"]["val_fraction"])
    wrong = explain_mismatch(identity["dataset"], described, "dataset")
    for split in ("train", "val"):
        if identity[split]["keys"] and split not in dataset.splits:
            wrong.append(f"{split} split: {len(identity[split]['keys'])} images -> none")
    hint = "point --data at the images the cache was made of"
    refuse(f"cache {cache} is of other data", wrong, hint)
    for split in ("train", "val"):
        if split in dataset.splits:
            check_samples(identity[split], dataset.splits[split], split)


def refuse(what: str, differences: list[str], hint: str) -> None:
    """Raise FgkdError listing the first differences, if there are any."""
    if differences:
        more = f"\n  ... and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise FgkdError(f"{what}:\n  " + "\n  ".join(differences[:5]) + more, hint)


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
    manifest = fsio.read_json(path, "cache manifest")
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
    if fsio.fingerprint(manifest["identity"]) != manifest["identity_sha256"]:
        raise FgkdError(
            f"cache manifest {path} is damaged: its identity does not hash to identity_sha256",
            RESTORE,
        )
    if not _is_identity(manifest["identity"]):
        raise FgkdError(f"cache manifest {path} is damaged: its identity is not one", RESTORE)
    return manifest


def _is_manifest(value: Any) -> bool:
    """Whether it has all parts, and every shard's name is of a file inside the cache's folder."""
    if not has(value, MANIFEST):
        return False
    rows = [*value["shards"], *([] if value["val"] is None else [value["val"]])]
    return 0 <= value["views"] <= MAX_VIEWS and all(
        has(row, SHARD)
        and re.fullmatch(r"(shards|val)/\w[\w.-]*", row["name"])
        and 0 <= row["start"] < row["stop"] <= MAX_VIEWS
        for row in rows
    )


def _is_identity(value: Any) -> bool:
    """Whether an identity of this version has all parts, each of its type and in its range."""
    if not has(value, IDENTITY) or not 0 < value["views"]["img_size"] <= MAX_SIZE:
        return False
    store = value["views"].get("image_store") or {"short_side": MAX_SIZE}
    limits = {
        "labels": (-1, value["dataset"]["classes"]),
        "domains": (0, value["dataset"]["domains"]),
    }
    for column in (value["train"], value["val"]):
        length = len(set(column["keys"]))
        boxes = column.get("boxes", [[0, 0, 0, 0]] * length)
        if not has(boxes, [[float]]) or [len(box) for box in boxes] != [4] * length:
            return False
        if any(len(column[name]) != length for name in COLUMNS):
            return False
        for name, (low, names) in limits.items():
            if not low <= min(column[name], default=0) <= max(column[name], default=0) < len(names):
                return not length
    return value["shard_size"] > 0 and has(store, {"short_side": int}) and store["short_side"] > 0


def has(value: Any, parts: Any) -> bool:
    """Whether a JSON value has the parts of a template: dicts, lists of one kind, types."""
    if isinstance(parts, dict):
        return isinstance(value, dict) and all(
            name in value and has(value[name], part) for name, part in parts.items()
        )
    if isinstance(parts, list):
        if not isinstance(value, list):
            return False
        if isinstance(parts[0], type):  # long columns, so no loop in Python
            return set(map(type, value)) <= ({int, float} if parts[0] is float else {parts[0]})
        return all(has(item, parts[0]) for item in value)
    return parts is Any or has([value], [parts])


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
