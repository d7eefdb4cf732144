"""Images added to a dataset extend its cache by blocks; nothing that is there is touched."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import write_image
from helpers.failures import Fails, exit_code
from helpers.runs import STUDENT, assert_same_run, fgkd, rows, tree

import fgkd as library
from fgkd.cache.writer import Captured
from fgkd.errors import DataMismatch, UnusedOption
from fgkd.views import orders

ADDED = 23
MIXED = ("--mixup", 0.8, "--cutmix", 1.0)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_data, tmp_path / "data")
    return tmp_path / "data"


def add_images(data: Path, count: int = ADDED, first: int = 0) -> list[Path]:
    """New images in the class folders, whose names sort among the others."""
    folders = sorted((data / "train").iterdir())
    paths = [folders[i % len(folders)] / f"0{first + i}_new.png" for i in range(count)]
    for i, path in enumerate(paths):
        write_image(path, i % len(folders), 500 + first + i)
    return paths


def capture(teacher: Path, data: Path, output: Path, *more: object) -> tuple[object, ...]:
    """In float64 stored as float32, where batches make no difference."""
    exact = ("--encoding", "dense32", "--dtype", "float64", "--shard-size", 20, "--workers", 0)
    source = ("--teacher", teacher, "--data", f"folder:{data}", "--views", 2)
    return ("cache-logits", *source, *exact, *more, "--output", output)


def targets(cache: Path) -> dict[str, np.ndarray]:
    """Logits of both views by key."""
    reader = library.open_cache(cache)
    views = [reader.targets(np.arange(len(reader.samples["train"])), view) for view in range(2)]
    return {
        key: np.stack([v[i] for v in views]) for i, key in enumerate(reader.samples["train"].keys)
    }


def test_blocks_of_added_images_follow_the_others() -> None:
    before = orders.blocks(3, 45, 20)
    after = orders.blocks(3, 45 + 30 + 7, 20, (30, 7))
    assert [b.tolist() for b in after[: len(before)]] == [b.tolist() for b in before]
    assert [len(b) for b in after] == [20, 20, 5, 20, 10, 7]
    assert sorted(np.concatenate(after[3:5])) == list(range(45, 75))
    assert sorted(after[5]) == list(range(75, 82))


@pytest.mark.parametrize("views", [(), MIXED], ids=["plain", "mixed"])
def test_a_cache_is_extended_and_what_it_had_is_untouched(
    views: tuple[object, ...], data: Path, tiny_teacher: Path, tmp_path: Path, fails: Fails
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache, *views))
    before, old = tree(cache), targets(cache)
    paths = add_images(data)
    said = fails(*capture(tiny_teacher, data, cache, *views))
    assert isinstance(said.error, DataMismatch)
    assert "--extend" in said.remedy
    fgkd(*capture(tiny_teacher, data, cache, *views, "--extend"))
    after, new = tree(cache), targets(cache)
    kept = [name for name in before if name.startswith(("shards/", "val/", "samples"))]
    assert all(after[name] == before[name] for name in kept)
    assert len(new) == len(old) + ADDED
    assert all(np.array_equal(new[key], old[key]) for key in old)
    if not views:  # an unmixed view is that of a cache which had the image from the beginning
        fgkd(*capture(tiny_teacher, data, tmp_path / "whole"))
        whole = targets(tmp_path / "whole")
        for path in paths:
            key = path.relative_to(data).as_posix()
            assert np.array_equal(new[key], whole[key])
    fgkd("inspect", cache, "--verify", "--teacher", tiny_teacher, "--samples", 500)
    assert len(library.CachedViews(cache)) == 97 + ADDED
    # The same command does nothing; more views are added to all images.
    fgkd(*capture(tiny_teacher, data, cache, *views))
    assert tree(cache)["manifest.json"] == after["manifest.json"]
    fgkd(*capture(tiny_teacher, data, cache, *views, "--views", 3))
    assert library.open_cache(cache).views == 3
    fgkd("inspect", cache, "--verify", "--samples", 500)


def test_it_is_extended_again_and_trains_as_its_live_teacher_does(
    data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache))
    for first in (0, 100):
        add_images(data, 10, first)
        fgkd(*capture(tiny_teacher, data, cache, "--extend"))
    assert library.open_cache(cache).identity.added == (10, 10)
    short = ("--epochs", 2, "--batch-size", 16, "--workers", 0)
    fgkd("train-student", "--cache", cache, *STUDENT, *short, "--output", tmp_path / "s")
    assert rows(tmp_path / "s")[0]["step"] == -(-117 // 16)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(cache, tmp_path / "elsewhere" / "cache")
    moved = ("train-student", "--cache", tmp_path / "elsewhere" / "cache", *STUDENT, *short)
    fgkd(*moved, "--output", tmp_path / "t")
    assert_same_run(tmp_path / "s", tmp_path / "t")
    views = library.CachedViews(tmp_path / "elsewhere" / "cache")
    assert len({item["key"] for item in (views[i] for i in range(len(views)))}) == 117


def test_a_val_split_that_was_carved_stays_what_it_was(
    data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Carved again it would be another, and have images that were trained on."""
    shutil.rmtree(data / "val")
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache, "--val-fraction", 0.2))
    val = list(library.open_cache(cache).samples["val"].keys)
    added = {path.relative_to(data).as_posix() for path in add_images(data)}
    fgkd(*capture(tiny_teacher, data, cache, "--val-fraction", 0.2, "--extend"))
    reader = library.open_cache(cache)
    assert list(reader.samples["val"].keys) == val
    assert added <= set(reader.samples["train"].keys)
    short = ("--epochs", 1, "--workers", 0)
    fgkd("train-student", "--cache", cache, *STUDENT, *short, "--output", tmp_path / "s")
    (score,) = library.evaluate([tmp_path / "s"], split="val", workers=0)
    assert score.metrics.num_images == len(val)
    assert score.metrics.top1_pct == pytest.approx(rows(tmp_path / "s")[0]["val_top1_pct"])


@pytest.mark.parametrize("change", ["removed", "changed", "relabelled", "val"])
def test_removed_and_changed_images_are_refused_by_name(
    change: str, data: Path, tiny_teacher: Path, tmp_path: Path, fails: Fails
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache))
    before = tree(cache)
    add_images(data)
    path = sorted((data / ("val" if change == "val" else "train")).rglob("[0-9][0-9].png"))[3]
    if change in ("removed", "relabelled"):
        other = sorted((data / "train").iterdir())[-1]
        path.unlink() if change == "removed" else shutil.move(path, other / "moved.png")
    else:
        write_image(path, 1, 999)
    said = fails(*capture(tiny_teacher, data, cache, "--extend"))
    assert isinstance(said.error, DataMismatch)
    if change != "changed" and change != "val":
        assert path.relative_to(data).as_posix() in said
    assert {n: d for n, d in tree(cache).items() if "val_list" not in n} == before
    library.open_cache(cache)


def test_another_teacher_extends_nothing(
    data: Path, tiny_teacher: Path, tmp_path: Path, fails: Fails
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache))
    add_images(data)
    said = fails(*capture(tiny_teacher, data, cache, "--extend", "--encoding", "dense"))
    assert isinstance(said.error, DataMismatch)
    assert [one.field for one in said.error.differences] == ["encoding.name"]
    said = fails(*capture(tiny_teacher, data, tmp_path / "none", "--extend"))
    assert isinstance(said.error, UnusedOption)


def test_an_extension_that_is_interrupted_goes_on(
    data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is complete the cache is what it was; then as if nothing had stopped it."""
    caches = [tmp_path / name for name in ("cache", "whole")]
    for cache in caches:
        fgkd(*capture(tiny_teacher, data, cache))
    add_images(data)
    real, calls = Captured.put, iter(range(100))

    def put(self: Captured, *args: Any) -> None:
        real(self, *args)
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGINT)

    extend = ("--extend", "--batch-size", 8)
    with monkeypatch.context() as patch:
        patch.setattr(Captured, "put", put)
        assert exit_code(*capture(tiny_teacher, data, caches[0], *extend)) == 130
    assert len(library.open_cache(caches[0]).samples["train"]) == 97
    for cache in caches:
        fgkd(*capture(tiny_teacher, data, cache, *extend))
    one, other = (
        {n: d for n, d in tree(cache).items() if not n.startswith(("timings", "args"))}
        for cache in caches
    )
    assert one == other


def test_a_webdataset_cache_is_extended_too(data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache, "--format", "webdataset"))
    add_images(data)
    fgkd(*capture(tiny_teacher, data, cache, "--format", "webdataset", "--extend"))
    shutil.rmtree(data)  # the tars hold the images
    assert len(library.CachedViews(cache)) == 97 + ADDED
    fgkd("inspect", cache, "--verify", "--samples", 500)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"format_version": 3}'])
def test_a_damaged_identity_is_explained(
    text: str, data: Path, tiny_teacher: Path, tmp_path: Path, fails: Fails
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_teacher, data, cache))
    (cache / "identity.json").write_text(text)
    for more in ((), ("--extend",)):
        assert str(cache) in fails(*capture(tiny_teacher, data, cache, *more))
