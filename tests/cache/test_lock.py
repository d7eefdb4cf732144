"""The lock of a capture: one process for each block, and none that is dead in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.failures import Fails
from helpers.runs import fgkd

import fgkd as library
from fgkd.cache import lock
from fgkd.errors import CacheInUse, IncompleteCache


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write_lock(folder: Path, pid: int, blocks: tuple[int, int] = (0, 9), **changes: object) -> Path:
    facts = {"host": lock.socket.gethostname(), "pid": pid, "started": "2026-01-01 10:00:00"}
    facts |= {"process_started": psutil.Process(pid).create_time(), "blocks": list(blocks)}
    path = folder / "shards.lock"
    path.write_text(json.dumps(facts | changes))
    return path


def test_a_living_process_is_not_disturbed(other: subprocess.Popen[bytes], tmp_path: Path) -> None:
    path = write_lock(tmp_path, other.pid)
    text = path.read_text()
    for blocks in (range(9), range(8, 12)):
        with pytest.raises(CacheInUse) as caught, lock.held(tmp_path, "shards-8-12", blocks):
            pass
        assert (caught.value.pid, caught.value.path) == (other.pid, path)
    assert path.read_text() == text
    with lock.held(tmp_path, "shards-9-12", range(9, 12)):  # a disjoint part
        assert len(list(tmp_path.glob("*.lock"))) == 2
    assert list(tmp_path.glob("*")) == [path]


def test_the_lock_of_a_killed_process_is_taken_over(
    other: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    write_lock(tmp_path, other.pid)
    other.kill()
    other.wait()
    with lock.held(tmp_path, "shards", range(9)):
        assert json.loads((tmp_path / "shards.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_the_number_of_a_dead_one(
    other: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    write_lock(tmp_path, other.pid, process_started=1.0)
    with lock.held(tmp_path, "shards", range(9)):
        pass


@pytest.mark.parametrize(("age_s", "is_alive"), [(0, True), (lock.STALE_S + 60, False)])
def test_another_machine_is_alive_while_its_lock_is_touched(
    age_s: float, is_alive: bool, tmp_path: Path
) -> None:
    path = write_lock(tmp_path, os.getpid(), host="another")
    os.utime(path, (time.time() - age_s,) * 2)
    if is_alive:
        with pytest.raises(CacheInUse, match="another"), lock.held(tmp_path, "x", range(3)):
            pass
    else:
        with lock.held(tmp_path, "shards", range(3)):
            pass


def test_a_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_S", 0.01)
    with lock.held(tmp_path, "shards", range(3)):
        path = tmp_path / "shards.lock"
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"blocks": [1]}'])
def test_a_damaged_lock_stops_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / "shards.lock").write_text(text)
    with lock.held(tmp_path, "shards", range(3)):
        pass


def test_two_captures_into_one_folder(
    other: subprocess.Popen[bytes],
    tiny_cache: Path,
    tmp_path: Path,
    fails: Fails,
) -> None:
    """The second is refused, and a reader is told who writes; then the first is gone."""
    cache = tmp_path / "cache"
    part = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    fgkd(*part, "--shard-range", "0:2")
    write_lock(cache, other.pid, (2, 5))
    assert isinstance(fails(*part, "--overwrite").error, CacheInUse)  # nor renamed under it
    said = fails(*part)
    assert isinstance(said.error, CacheInUse)
    assert str(cache / "shards.lock") in said.remedy
    with pytest.raises(IncompleteCache) as caught:
        library.open_cache(cache)
    error = caught.value
    assert (error.written, error.total) == (2, 5)
    assert str(other.pid) in error.writer
    fgkd(*part, "--shard-range", "1:2")
    other.kill()
    other.wait()
    fgkd(*part)
    assert len(library.open_cache(cache).manifest.shards) == 5
    assert not list(cache.glob("*.lock"))
