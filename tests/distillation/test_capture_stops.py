"""What stops a capture of WebDataset shards leaves a folder that the same command continues.

(tests/test_errors_stop.py has the same for HDF5.)
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.failures import Fails, exit_code, full_disk, partials
from helpers.runs import cache_files, fgkd

from fgkd import files


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture that nothing stopped."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    fgkd(*capture(tiny_cache, cache))
    return cache


def capture(cache: Path, output: Path) -> tuple[object, ...]:
    """A capture of five tars of 90 KiB."""
    options = ("--format", "webdataset", "--output", output)
    return ("cache-logits", "-c", cache / "args.yaml", *options)


@pytest.mark.parametrize("num_bytes", [0, 2_000, 30_000, 70_000])
def test_a_full_disk(
    num_bytes: int, fails: Fails, tiny_cache: Path, whole: Path, tmp_path: Path
) -> None:
    """At the first file, inside a tar, and where the manifest comes."""
    cache = tmp_path / "cache"
    with full_disk(num_bytes):
        said = fails(*capture(tiny_cache, cache))
    assert f"cannot write {cache}" in said
    assert "df -h" in said
    assert partials(cache) == []
    fgkd(*capture(tiny_cache, cache))
    assert cache_files(cache) == cache_files(whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_disk_that_refuses_midway(
    number: int,
    call: str,
    fails: Fails,
    tiny_cache: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the fourth time on, as when someone else filled or remounted it."""
    real, calls = getattr(os, call.partition(".")[2]), iter(range(1000))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if next(calls) < 4:
            return real(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        said = fails(*capture(tiny_cache, cache))
    assert f"cannot write {cache}" in said
    assert os.strerror(number) in said
    assert not (cache / "manifest.json").exists()
    assert partials(cache) == []
    fgkd(*capture(tiny_cache, cache))
    assert cache_files(cache) == cache_files(whole)


def test_ctrl_c(
    tiny_cache: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 130, and the command that continues."""
    cache = tmp_path / "cache"
    real, calls = files.append_line, iter(range(100))

    def interrupting(path: Path, row: dict[str, Any]) -> None:
        real(path, row)
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_line", interrupting)
        assert exit_code(*capture(tiny_cache, cache)) == 130
    again = capsys.readouterr().out.partition("To continue:\n")[2].strip()
    assert 2 <= len(files.read_lines(cache / "shards.jsonl")) < 6
    assert not (cache / "manifest.json").exists()
    assert exit_code(*shlex.split(again)[1:]) == 0
    assert cache_files(cache) == cache_files(whole)
