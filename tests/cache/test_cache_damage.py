"""A cache that is damaged, hostile or another one is refused before anything of it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.caches import open_writer, tree, write_cache
from helpers.errors import expected

from fgkd import files
from fgkd.cache import manifest
from fgkd.cache.reader import Reader
from fgkd.errors import (
    DamagedCache,
    DamagedShard,
    FgkdError,
    FormatVersionMismatch,
    IncompleteCache,
    MissingFile,
)
from fgkd.files import fingerprint
from stages.remedies import remedy

SHARD = "shards/shard-00001-v000-003.h5"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache")


def read_everything(folder: Path) -> None:
    reader = Reader(folder)
    for view in range(reader.views):
        reader.arrays_of_view(view)
    reader.val_logits()


def error_of(folder: Path) -> FgkdError:
    with pytest.raises(FgkdError) as caught:
        read_everything(folder)
    return caught.value


def vouch(folder: Path, name: str = SHARD) -> None:
    """Make the manifest vouch for whatever the shard holds now, as no accident would."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    for row in [*value["shards"], value["val"]]:
        if row["name"] == name:
            row["bytes"] = (folder / name).stat().st_size
            row["sha256"] = files.sha256(folder / name)
    files.write_json(path, value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---- files ---------------------------------------------------------------------------------


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "it is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "it is missing"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes, not"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, not"),
    "one bit": (flip, "its sha256 is not the manifest's"),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes"),
}


@pytest.mark.parametrize("name", [SHARD, "val/clean.h5"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named(kind: str, name: str, cache: Path) -> None:
    damage, why = DAMAGE[kind]
    damage(cache / name)
    error = error_of(cache)
    assert isinstance(error, DamagedShard)
    assert (error.path, error.cache) == (cache / name, cache)
    assert why in error.reason
    assert f"rm -f {cache / name} && fgkd cache-logits" in remedy(error)


@pytest.mark.parametrize("name", [SHARD, "val/clean.h5"])
def test_the_remedy_rewrites_the_shard_alone(name: str, cache: Path) -> None:
    before = tree(cache)
    flip(cache / name)
    error_of(cache)
    times = {path: path.stat().st_mtime_ns for path in cache.glob("*/*") if path != cache / name}
    (cache / name).unlink()
    write_cache(cache)
    assert tree(cache) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_other_shards_can_be_read_when_one_is_damaged(cache: Path) -> None:
    write_cache(cache, views=5)
    (cache / "shards/shard-00000-v003-005.h5").unlink()
    reader = Reader(cache)
    assert len(reader.arrays_of_view(2)["logits"]) == 23
    with pytest.raises(DamagedShard, match="v003-005"):
        reader.arrays_of_view(3)


# ---- shards that the manifest vouches for --------------------------------------------------


def test_garbage(cache: Path) -> None:
    (cache / SHARD).write_bytes(b"garbage " * 500)
    vouch(cache)
    error = error_of(cache)
    assert isinstance(error, DamagedShard)
    assert error.path == cache / SHARD
    assert error.reason.startswith("it cannot be read: ")


def test_a_truncated_file_that_is_vouched_for(cache: Path) -> None:
    data = (cache / SHARD).read_bytes()
    (cache / SHARD).write_bytes(data[: len(data) // 2])
    vouch(cache)
    assert str(cache / SHARD) in error_of(cache).message


def test_a_shard_of_another_cache(cache: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", dtype="bfloat16")
    (cache / SHARD).write_bytes((other / SHARD).read_bytes())
    assert "its sha256 is not the manifest's" in error_of(cache).message
    vouch(cache)
    assert "another cache's identity" in error_of(cache).message


def replace(name: str, array: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=array)

    return change


CHANGES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "no logits": (lambda file: file.__delitem__("logits"), "logits"),
    "no digests": (lambda file: file.__delitem__("digests"), "digests"),
    "no keys": (lambda file: file.__delitem__("keys"), "keys"),
    "no labels": (lambda file: file.__delitem__("labels"), "labels"),
    "no header": (lambda file: file.attrs.__delitem__("header"), "header"),
    "odd header": (lambda file: file.attrs.__setitem__("header", "[1]"), "identity|cannot be read"),
    "header not JSON": (lambda file: file.attrs.__setitem__("header", "{"), "cannot be read"),
    "fewer classes": (replace("logits", np.zeros((3, 8, 5), np.float16)), "shape"),
    "fewer views": (replace("logits", np.zeros((2, 8, 6), np.float16)), "logits|index|range"),
    "fewer samples": (replace("logits", np.zeros((3, 7, 6), np.float16)), "shape"),
    "float64": (replace("logits", np.zeros((3, 8, 6))), "type float64"),
    "signed digests": (replace("digests", np.zeros((3, 8), np.int64)), "type int64"),
    "a scalar": (replace("logits", np.float16(1)), "logits|shard"),
    "a group": (lambda file: (file.__delitem__("logits"), file.create_group("logits")), "shard"),
    "other keys": (replace("keys", np.array([b"../../x"] * 8)), "not those of block 1"),
    "numbers as keys": (replace("keys", np.arange(8)), "cannot be read"),
    "keys not UTF-8": (replace("keys", np.array([b"\xff"] * 8)), "cannot be read"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_hostile_shard(kind: str, cache: Path) -> None:
    change, message = CHANGES[kind]
    with h5py.File(cache / SHARD, "a") as file:
        change(file)
    vouch(cache)
    error = error_of(cache)
    assert str(cache / SHARD) in error.message
    assert re.search(message, error.message)


# ---- manifests -----------------------------------------------------------------------------


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    change(value)
    files.write_json(folder / "manifest.json", value)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.h5",
        "shards/../../outside.h5",
        "/etc/passwd",
        "shards/a/../../../outside.h5",
        "shards/..",
        "",
        None,
    ],
)
@pytest.mark.parametrize("place", ["shards", "val"])
def test_names_that_leave_the_folder_are_refused(place: str, name: Any, cache: Path) -> None:
    outside = cache.parent / "outside.h5"
    outside.write_bytes((cache / (SHARD if place == "shards" else "val/clean.h5")).read_bytes())

    def change(value: dict[str, Any]) -> None:
        row = value["shards"][1] if place == "shards" else value["val"]
        row["name"] = name

    edit_manifest(cache, change)
    with expected(DamagedCache, path=cache / "manifest.json"):
        Reader(cache)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"identity": 1}', "\0\0", '{"identity": {}, "views": 1}']
)
def test_a_damaged_manifest(text: str, cache: Path) -> None:
    (cache / "manifest.json").write_text(text)
    with pytest.raises(DamagedCache, match=re.escape(str(cache / "manifest.json"))):
        Reader(cache)


@pytest.mark.parametrize("block", [0, 9])
def test_a_shard_listed_as_another_block(block: int, cache: Path) -> None:
    """Its own block is missing; and the one it is said to be of is not its own."""
    edit_manifest(cache, lambda value: value["shards"][1].__setitem__("block", block))
    error = error_of(cache)
    assert isinstance(error, DamagedCache)
    assert "no shard with view 0 of block 1" in error.message
    reader = Reader(cache)
    with pytest.raises(DamagedShard, match=f"not those of block {block}|no block {block}"):
        reader.check(reader.manifest.shards[1])


@pytest.mark.parametrize("part", ["identity", "shards"])
def test_a_manifest_with_a_part_of_another_type(part: str, cache: Path) -> None:
    edit_manifest(cache, lambda value: value.__setitem__(part, "text"))
    with pytest.raises(DamagedCache):
        Reader(cache)


def test_a_changed_identity_does_not_hash(cache: Path) -> None:
    edit_manifest(cache, lambda value: value["identity"]["views"].__setitem__("seed", 9))
    with expected(DamagedCache, path=cache / "manifest.json"):
        Reader(cache)


def test_another_format_version(cache: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["identity"]["format_version"] = 1
        value["identity_sha256"] = fingerprint(value["identity"])

    edit_manifest(cache, change)
    with pytest.raises(FormatVersionMismatch) as caught:
        Reader(cache)
    assert (caught.value.old, caught.value.new) == (1, 3)
    assert remedy(caught.value).endswith("--overwrite   # writes a new one")


def test_a_manifest_that_lists_too_few_shards(cache: Path) -> None:
    edit_manifest(cache, lambda value: value["shards"].pop(1))
    assert "no shard with view 0 of block 1" in error_of(cache).message
    with pytest.raises(DamagedCache, match="no shard with view 0 of block 1"):
        Reader(cache).arrays_of_view(0)


def test_no_cache_and_an_incomplete_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        Reader(tmp_path)
    writer = open_writer(tmp_path, 1)
    files.append_line(tmp_path / "shards.jsonl", {"name": "x"})
    assert writer.folder == tmp_path
    with pytest.raises(IncompleteCache) as caught:
        manifest.load(tmp_path)
    assert caught.value.cache == tmp_path
