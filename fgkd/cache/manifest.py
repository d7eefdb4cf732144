"""manifest.json: the identity of a complete cache and the table of its shards.

It is written last, so its presence means that the cache is complete. It holds no times, hosts or
absolute paths, so equal inputs give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgkd import files
from fgkd.cache import lock, samples_file, version2
from fgkd.cache.identity import FORMAT_VERSION, Identity
from fgkd.cache.samples import SampleTables
from fgkd.cache.shards import MAX_VIEWS, ShardRow
from fgkd.errors import (
    DamagedCache,
    FgkdError,
    FormatVersionMismatch,
    IncompleteCache,
    UnreadableFile,
    WrongKind,
)
from fgkd.views import orders

NAME = "manifest.json"
TEMPLATE = {
    **{"identity": {}, "identity_sha256": str, "views": int, "libraries": {}},
    **{"shards": [{}], "val": Any},
}


@dataclass(frozen=True)
class Manifest:
    """A complete cache's table of contents.

    views: how many each training image has. libraries: versions of the packages that wrote it.
    val: the shard of clean validation logits. embedded: the samples of a version 2 cache, whose
    manifest holds them.
    """

    identity: Identity
    identity_sha256: str
    views: int
    libraries: dict[str, str]
    shards: tuple[ShardRow, ...]
    val: ShardRow | None
    embedded: SampleTables | None = None

    def pieces(self) -> Iterator[str]:
        """The text of the file, a piece at a time: indented JSON with a line for each shard."""
        head = {
            "identity_sha256": self.identity_sha256,
            "views": self.views,
            "libraries": self.libraries,
            "identity": self.identity.to_json(),
            "val": self.val.to_json() if self.val else None,
        }
        yield json.dumps(head, indent=1, ensure_ascii=False)[:-2]
        yield ',\n "shards": ['
        for i, row in enumerate(self.shards):
            yield ",\n  " if i else "\n  "
            yield json.dumps(row.to_json(), ensure_ascii=False)
        yield "\n ]\n}\n"

    def save(self, folder: Path) -> None:
        """Write the manifest of a cache."""
        files.write_pieces(folder / NAME, self.pieces())


def load(folder: Path, where: str = "") -> Manifest:
    """Read manifest.json. where: the URL of a remote cache, of which the folder is a copy.

    Raises: IncompleteCache, MissingFile, WrongKind for a run, DamagedCache, FormatVersionMismatch.
    """
    path, what, cache = folder / NAME, samples_file.located(folder, where, NAME), where or folder
    begun = [folder / "identity.json", *folder.glob("shards*.jsonl")]
    if (folder / "run.json").is_file() and not any(one.exists() for one in begun):
        raise _is_run(folder)
    if not path.exists() and any(one.exists() for one in begun):
        raise _incomplete(folder, cache)
    try:
        value = files.read_json(path, "cache manifest")
        return _parsed(value, cache)
    except UnreadableFile as error:
        raise DamagedCache(
            f"cache manifest {what} is damaged: {error.reason}", cache=cache, path=what
        ) from None
    except ValueError as error:
        message = f"cache manifest {what} is damaged: {error}"
        raise DamagedCache(message, cache=cache, path=what) from None


def _is_run(folder: Path) -> WrongKind:
    """The error for a run folder, with the cache that the run learned from if it had one."""
    cache = None
    with contextlib.suppress(FgkdError, KeyError, TypeError, AttributeError):
        cache = files.read_json(folder / "run.json", "run description")["parents"].get("cache")
    return WrongKind(f"{folder} is a run, not a cache", path=folder, found="run", cache=cache)


def _incomplete(folder: Path, cache: Any) -> IncompleteCache:
    """The error for a cache without a manifest: what is there, and who is writing it."""
    journals = [row for path in folder.glob("shards*.jsonl") for row in files.read_lines(path)]
    there = {row.get("name") for row in journals if row.get("block", -1) >= 0}
    total = None
    with contextlib.suppress(FgkdError, ValueError):
        identity = Identity.from_json(files.read_json(folder / "identity.json", "cache identity"))
        num_images = len(samples_file.read(folder / samples_file.name(identity))["train"])
        blocks = orders.blocks(identity.views.seed, num_images, identity.shard_size, identity.added)
        total = max(len(there), len(blocks))
    counts = f"{len(there)} of {total} shards are" if total else f"{len(there)} shards are"
    writer = lock.writer_of(folder)
    message = f"cache {cache} is incomplete: {counts} written, and no manifest.json"
    message += f"; {writer} is writing it" if writer else ""
    return IncompleteCache(message, cache=cache, written=len(there), total=total, writer=writer)


def load_samples(folder: Path, held: Manifest, where: str = "") -> SampleTables:
    """The samples of a cache. Raises: DamagedCache."""
    if held.embedded is not None:
        return held.embedded
    return samples_file.load(folder, held.identity, where)


def _parsed(value: Any, cache: Any) -> Manifest:
    """The manifest that is written as `value`. Raises: ValueError, FormatVersionMismatch."""
    if not files.matches(value, TEMPLATE):
        raise ValueError("it is not a manifest")
    described, embedded = value["identity"], None
    check_version(described, cache, readable=(FORMAT_VERSION, version2.VERSION))
    if files.fingerprint(described) != value["identity_sha256"]:
        raise ValueError("its identity does not hash to identity_sha256")
    try:
        if described["format_version"] == version2.VERSION:
            identity = version2.identity_of(described)
            embedded = version2.samples_of(described)
            for table in embedded.values():
                table.check(len(identity.dataset.classes), len(identity.dataset.domains))
        else:
            identity = Identity.from_json(described)
    except ValueError as error:
        raise ValueError(f"its identity is not one: {error}") from None
    found = Manifest(
        identity,
        value["identity_sha256"],
        value["views"],
        {str(name): str(version) for name, version in value["libraries"].items()},
        tuple(map(ShardRow.from_json, value["shards"])),
        None if value["val"] is None else ShardRow.from_json(value["val"]),
        embedded,
    )
    _check(found)
    return found


def check_version(described: Any, cache: Any, readable: tuple[int, ...]) -> None:
    """Raise FormatVersionMismatch unless the JSON of an identity is of one of these versions."""
    old = described.get("format_version") if isinstance(described, dict) else None
    if type(old) is not int or old not in readable:
        message = f"cache {cache}: format_version: {old} -> {FORMAT_VERSION}"
        raise FormatVersionMismatch(message, cache=cache, old=old, new=FORMAT_VERSION)


def _check(held: Manifest) -> None:
    """Raise ValueError if a part refers to a class, domain or view that is not there."""
    classes, domains = len(held.identity.dataset.classes), len(held.identity.dataset.domains)
    if not 0 <= held.views <= MAX_VIEWS:
        raise ValueError(f"it has {held.views} views")
    if held.val is not None and held.val.block != -1:
        raise ValueError(f"{held.val.name} is not of validation images")
    for row in held.shards:
        if row.block < 0:
            raise ValueError(f"{row.name} is of block {row.block}")
        if row.stop > held.views:
            raise ValueError(f"{row.name} has view {row.stop - 1} of {held.views}")
        if row.stats is None:
            continue
        if len(row.stats.domains) > domains:
            raise ValueError(f"the statistics of {row.name} are of more than {domains} domains")
        named = [x for one in row.stats.suspects for x in (one.label, one.answer)]
        if named and not 0 <= min(named) <= max(named) < classes:
            raise ValueError(f"the statistics of {row.name} name a class that is not there")
