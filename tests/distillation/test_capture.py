"""The cache's files are a function of their inputs: not of kills, workers, batches or growth."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import (
    STUDENT,
    Point,
    count_calls,
    fgkd,
    kill_after,
    kill_at,
    run_children,
    run_ranks,
    tree,
)

from fgkd.distillation.teachers import Teachers

FORMATS = ("hdf5", "webdataset")
NUM_KILLS = 20

KILL_POINTS: list[Point] = [
    ("fgkd.cache.writer.Writer.publish", 1),  # the first shard is computed, nothing written
    ("os.fsync", 1),  # inside a file
    ("os.replace", 2),  # a file is written but not yet in place
    ("fgkd.files.append_line", 2),  # a shard is in place but not in the journal
    ("fgkd.cache.writer.Writer.publish", 3),
    ("fgkd.cache.writer.Writer.publish_val", 1),  # every training shard is there
    ("fgkd.cache.writer.Writer.finish", 1),  # everything but the manifest
    ("os.replace", 1),  # the manifest is written but not yet in place
]


def capture(
    teacher: Path, output: Path, *more: object, views: int = 2, workers: int = 0
) -> tuple[object, ...]:
    """A capture in float64, whose results do not move with the batch; 13 images per shard."""
    return (
        *("cache-logits", "--teacher", teacher, "--output", output, "--views", views),
        *("--shard-size", 13, "--dtype", "float64", "--workers", workers, *more),
    )


def product(cache: Path) -> dict[str, bytes]:
    """The files that must be equal: shards and manifest, and nothing half-written beside them."""
    files = tree(cache)
    assert not [name for name in files if name.endswith(".partial")]
    return {n: b for n, b in files.items() if n.startswith(("shards/", "val/", "manifest"))}


@pytest.fixture(scope="module")
def unbroken_of(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each format, a cache of two views that was written at one go."""
    caches = {name: tmp_path_factory.mktemp("unbroken") / name for name in FORMATS}
    for name, cache in caches.items():
        fgkd(*capture(tiny_teacher, cache, "--format", name))
        assert len(tree(cache / "shards")) == 8  # 97 images: the last block has 6
    return caches


@pytest.fixture(scope="module")
def unbroken(unbroken_of: dict[str, Path]) -> Path:
    """That of HDF5 shards."""
    return unbroken_of["hdf5"]


def test_the_teacher_is_asked_again_before_its_answer_is_waited_for(
    tiny_teacher: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer comes here only when the next has been asked for, as late as a GPU's may."""
    asked: list[threading.Event] = []
    forward = Teachers.forward_async

    def late(self: Teachers, images: Any) -> Callable[[], np.ndarray]:
        number, wait = len(asked), forward(self, images)
        asked.append(threading.Event())
        if number:
            asked[number - 1].set()

        def answer() -> np.ndarray:
            assert number == 29 or asked[number].wait(30), "the teacher was kept waiting"
            return wait()

        return answer

    monkeypatch.setattr(Teachers, "forward_async", late)
    fgkd(*capture(tiny_teacher, tmp_path / "cache", "--batch-size", 8))
    assert len(asked) == 7 * 4 + 2
    assert product(tmp_path / "cache") == product(unbroken)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("how", ["workers", "small", "large", "ranks"])
def test_workers_ranks_and_batch_size_do_not_show_in_the_bytes(
    tiny_teacher: Path, unbroken_of: dict[str, Path], tmp_path: Path, how: str, name: str
) -> None:
    """8 and 32 views per teacher batch; two worker processes; two ranks."""
    more = {"small": ("--batch-size", 8), "large": ("--batch-size", 32)}.get(how, ())
    workers = 2 if how == "workers" else 0
    cache = tmp_path / "cache"
    command = capture(tiny_teacher, cache, "--format", name, *more, workers=workers)
    if how == "ranks":
        run_ranks(2, *command)
        journals = [cache / "shards.jsonl", cache / "shards-rank1.jsonl"]
        assert sorted(cache.glob("shards*.jsonl")) == sorted(journals)  # one a writer
        lines = [len(path.read_text().splitlines()) for path in journals]
        assert lines == [5, 4]  # eight shards by stride, and the validation images
    else:
        fgkd(*command)
    assert product(cache) == product(unbroken_of[name])


@pytest.mark.parametrize("name", FORMATS)
def test_a_capture_killed_at_twenty_random_moments_ends_as_the_unbroken_one(
    tiny_teacher: Path, tmp_path: Path, name: str
) -> None:
    """A moment is a number of calls, of Python and C, after the folder became the cache's."""
    since, more = "fgkd.cache.writer.Writer.begin", ("--format", name, "--shard-size", 3)
    whole = capture(tiny_teacher, tmp_path / "whole", *more)
    total = count_calls(since, tmp_path / "calls", *whole)
    draw, cache = random.Random(f"kills of {name}"), tmp_path / "cache"
    command = capture(tiny_teacher, cache, *more)
    for _ in range(NUM_KILLS):
        # Many of these come before the first shard, the others within the next few.
        kill_after(since, draw.randrange(total // 6), *command)
        assert not (cache / "manifest.json").exists()
    assert len(journalled(cache)) > 2
    assert run_children([(fgkd, *command)]) == [0]
    assert product(cache) == product(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_capture_killed_again_and_again_ends_as_the_unbroken_one(
    tiny_teacher: Path, unbroken: Path, tmp_path: Path, workers: int
) -> None:
    """The same command continues, and what was finished before is not written again."""
    command = capture(tiny_teacher, tmp_path / "cache", workers=workers)
    written: dict[Path, int] = {}
    for point in KILL_POINTS[:: 1 + workers]:
        kill_at(point, *command)
        assert not (tmp_path / "cache/manifest.json").exists()
        now = {path: path.stat().st_mtime_ns for path in journalled(tmp_path / "cache")}
        assert {path: now.get(path) for path in written} == written
        written = now
    assert run_children([(fgkd, *command)]) == [0]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert product(tmp_path / "cache") == product(unbroken)


def journalled(cache: Path) -> list[Path]:
    """The shards that the journal calls finished."""
    journal = cache / "shards.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [cache / json.loads(line)["name"] for line in lines]


def test_a_complete_cache_says_so_and_is_not_touched(
    tiny_teacher: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Running the command again is free."""
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    fgkd(*capture(tiny_teacher, unbroken))
    assert "is complete with 2 views; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before


def test_growing_a_cache_leaves_its_shards_and_its_students_as_they_were(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """From 2 to 4 views; and the first two of four are what a cache of two had."""

    def train(name: str, *more: object) -> bytes:
        fgkd(
            *("train-student", "--cache", tmp_path / "cache", *STUDENT, *more),
            *("--output", tmp_path / name, "--epochs", 3, "--batch-size", 32, "--workers", 0),
        )
        return (tmp_path / name / "metrics.jsonl").read_bytes()

    fgkd(*capture(tiny_teacher, tmp_path / "cache"))
    shards = list((tmp_path / "cache/shards").iterdir())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    student = train("before")
    fgkd(*capture(tiny_teacher, tmp_path / "cache", views=4))
    assert len(list((tmp_path / "cache/shards").iterdir())) == 2 * len(shards)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards} == before
    assert train("after", "--views", 2) == student
    of_all = train("all")
    assert of_all != student  # the third epoch now has a view of its own
    fgkd(*capture(tiny_teacher, tmp_path / "at_once", views=4))
    assert train("again", "--cache", tmp_path / "at_once") == of_all
