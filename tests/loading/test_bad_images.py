"""Unreadable training images, quarantined at capture: what they take with them, and what not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.failures import Fails, exit_code
from helpers.runs import STUDENT, assert_same, fgkd, saved

from fgkd.cache import reader
from fgkd.cache.reader import Reader
from fgkd.data import open_dataset

MIX = ("--mixup", 0.8, "--cutmix", 1.0)
EXACT = ("--encoding", "dense32", "--dtype", "float64", "--shard-size", 20, "--workers", 0)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images to damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def bad_key(data: Path) -> str:
    """A training image, now unreadable in its place."""
    key = open_dataset([f"folder:{data}"], 0.1).splits["train"].keys[5]
    (data / key).write_bytes(b"not an image")
    return key


def train(output: Path, *more: object) -> Path:
    given = ("--batch-size", 16, "--epochs", 2, "--drop-path", 0.2, "--workers", 0)
    fgkd("train-student", *STUDENT, "--output", output, *given, *more)
    return output


@pytest.mark.parametrize("name", ["hdf5", "webdataset"])
def test_beside_one_a_view_stays_unmixed(
    name: str, tiny_teacher: Path, data: Path, tmp_path: Path
) -> None:
    """Its partners are not lost with it, and the cache and the live teacher agree on that."""
    key, cache = bad_key(data), tmp_path / "cache"
    given = ("--data", f"folder:{data}", "--skip-bad-images", *MIX)
    command = ("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2, *EXACT)
    fgkd(*command, *given, "--format", name)
    assert Reader(cache).unreadable_keys == {key}
    fgkd("inspect", cache, "--verify", "--samples", 97, "--teacher", tiny_teacher)
    offline = train(tmp_path / "offline", "--cache", cache)
    live = ("--teacher", tiny_teacher, "--views", 2, "--dtype", "float64", "--shard-size", 20)
    assert_same(saved(offline), saved(train(tmp_path / "online", *live, *given)))


def test_tars_hold_what_there_is_of_one(
    tiny_teacher: Path, data: Path, tmp_path: Path, fails: Fails
) -> None:
    """A file that cannot even be opened stops a capture of tars, unless it is to be left out."""
    key, cache = bad_key(data), tmp_path / "cache"
    (data / key).unlink()
    (data / key).symlink_to(tmp_path / "nowhere.png")
    command = ("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2, *EXACT)
    command = (*command, "--data", f"folder:{data}", "--format", "webdataset")
    assert "cannot read" in fails(*command)
    assert exit_code(*command, "--skip-bad-images") == 0
    assert Reader(cache).unreadable_keys == {key}
    train(tmp_path / "student", "--cache", cache)


def test_a_cache_of_more_shards_than_may_be_open(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard holds a descriptor: those opened first are closed, and read again when needed."""
    whole = Reader(tiny_cache)
    expected = [whole.arrays_of_view(view) for view in (0, 1)]
    assert len(whole.manifest.shards) > 1
    monkeypatch.setattr(reader, "MAX_OPEN", 1)
    few = Reader(tiny_cache)
    for view in (0, 1):
        found = few.arrays_of_view(view)
        assert len(few._open) == 1
        for name, array in expected[view].items():
            np.testing.assert_array_equal(found[name], array)
