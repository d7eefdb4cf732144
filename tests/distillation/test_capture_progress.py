"""What an interrupted capture keeps of a shard that is not full."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.failures import exit_code
from helpers.runs import cache_files, fgkd

from fgkd.cache.writer import BEGUN, Captured
from fgkd.distillation import capture as module

NUM, VIEWS = 97, 2


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of all images, whose capture nothing stopped."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    fgkd(*command(tiny_cache, cache))
    return cache


def command(args: Path, output: Path, *more: object) -> tuple[object, ...]:
    given = ("-c", args / "args.yaml", "--shard-size", 200, "--batch-size", 16, *more)
    return ("cache-logits", *given, "--output", output)


def begun(cache: Path) -> list[Path]:
    return list(cache.glob(f"shards/*{BEGUN}"))


def interrupt_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C after so many batches were kept; the numbers of views of all that were."""
    real, counts = Captured.put, []

    def put(self: Captured, at: np.ndarray, views: range, *args: Any) -> None:
        real(self, at, views, *args)
        counts.append(len(at) * len(views))
        if len(counts) == batches:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Captured, "put", put)
    return counts


def test_ctrl_c_in_the_middle_of_a_shard_loses_no_batch(
    tiny_cache: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        counts = interrupt_after(3, patch)
        assert exit_code(*command(tiny_cache, cache)) == 130
    said = capsys.readouterr().out
    kept = sum(counts)
    assert 3 * 16 <= kept < NUM * VIEWS
    assert f"0 of 1 shards kept, and {kept:,} targets of the next. To continue:" in said
    assert len(begun(cache)) == 1
    again = said.partition("To continue:\n")[2].strip()
    with monkeypatch.context() as patch:
        counts = interrupt_after(-1, patch)
        assert exit_code(*shlex.split(again)[1:]) == 0
    assert sum(counts) == NUM * VIEWS - kept  # nothing was computed twice
    assert begun(cache) == []
    assert cache_files(cache) == cache_files(whole)


def test_a_killed_capture_loses_what_came_after_the_last_save(
    tiny_cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard is kept while it fills; one that is killed then (here: at publishing) goes on."""
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(module, "SAVE_EVERY_S", 0.0)
        patch.setattr(module, "SAVE_SHARE", 0)
        patch.setattr(module.Capture, "_keep_open", lambda self: None)
        counts = interrupt_after(5, patch)
        assert exit_code(*command(tiny_cache, cache)) == 130
    kept = sum(counts)
    with monkeypatch.context() as patch:
        counts = interrupt_after(-1, patch)
        fgkd(*command(tiny_cache, cache))
    assert sum(counts) == NUM * VIEWS - kept
    assert cache_files(cache) == cache_files(whole)


@pytest.mark.parametrize("damage", ["truncated", "empty", "another cache's", "other shapes"])
def test_a_kept_shard_that_cannot_be_used_is_made_again(
    damage: str, tiny_cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert exit_code(*command(tiny_cache, cache)) == 130
    (path,) = begun(cache)
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 * (damage == "truncated")])
    else:
        with np.load(path) as held:
            values = dict(held)
        if damage == "another cache's":
            values["identity"] = np.array("0" * 64)
        else:
            values["done"] = values["done"][:, :-1]
        with open(path, "wb") as file:
            np.savez(file, **values)
    fgkd(*command(tiny_cache, cache))
    assert cache_files(cache) == cache_files(whole)
    assert begun(cache) == []


def test_another_batch_size_continues(
    tiny_cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, stored as float32, the batch makes no difference."""
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert exit_code(*command(tiny_cache, cache)) == 130
    fgkd(*command(tiny_cache, cache, "--batch-size", 10))
    assert cache_files(cache) == cache_files(whole)


def test_an_error_in_the_middle_of_a_shard_keeps_it(
    tiny_cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, real = tmp_path / "cache", module.render

    def failing(*args: Any) -> Any:
        for i, answer in enumerate(real(*args)):
            if i == 4:
                raise RuntimeError("of the machine")
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr(module, "render", failing)
        with pytest.raises(RuntimeError, match="of the machine"):
            fgkd(*command(tiny_cache, cache))
    assert len(begun(cache)) == 1
    fgkd(*command(tiny_cache, cache))
    assert cache_files(cache) == cache_files(whole)
