"""What stops a run leaves it whole: another's folder, a bad loss, Ctrl-C, a full disk."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.failures import Fails, exit_code, full_disk, partials
from helpers.runs import STUDENT, TEACHER, assert_same_run, fgkd, rows, saved, start, tree

from fgkd import files, losses


@pytest.fixture
def command(tiny_data: Path, tmp_path: Path) -> tuple[object, ...]:
    """A train-teacher of 3 epochs x 4 steps."""
    return (
        *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--epochs", 3),
        *("--batch-size", 32, "--workers", 0, "--output", tmp_path / "run"),
    )


def test_an_existing_folder(
    fails: Fails, command: tuple[object, ...], tiny_teacher: Path, tmp_path: Path
) -> None:
    """Refused with both remedies; --overwrite moves the old folder aside, whole."""
    before = tree(tiny_teacher)
    said = fails(*command, "--output", tiny_teacher)
    assert "exists and is not empty" in said
    assert "--resume to continue it, --overwrite to rename it to" in said
    assert tree(tiny_teacher) == before
    run = tmp_path / "run"
    run.mkdir()
    (run / "args.yaml").write_text("precious: 1")
    fgkd(*command, "--overwrite", "--epochs", 1)
    assert tree(tmp_path / "run.old1") == {"args.yaml": b"precious: 1"}
    assert len(rows(run)) == 1
    assert "exclude each other" in fails(*command, "--overwrite", "--resume")


def test_a_finished_run_says_so(
    fails: Fails, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tiny_teacher)
    before.pop("log.txt")
    assert exit_code("train-teacher", "--resume", "--output", tiny_teacher) == 0
    assert "is finished (28 steps); nothing to do" in capsys.readouterr().out
    changed = fails("train-teacher", "--resume", "--output", tiny_teacher, "--lr", 0.5)
    assert "lr: 0.01 -> 0.5" in changed
    other = fails("train-student", "--resume", "--output", tiny_teacher, "--distillation", "none")
    assert "is a run of train-teacher, not of train-student" in other
    after = tree(tiny_teacher)
    after.pop("log.txt")
    assert after == before


def test_a_student_does_not_resume_from_another_cache(
    fails: Fails, tiny_cache: Path, tmp_path: Path
) -> None:
    """A cache may move; another teacher's may not take its place."""
    other, run = tmp_path / "other", tmp_path / "run"
    fgkd("cache-logits", "-c", tiny_cache / "args.yaml", "--output", other, "--seed", 1)
    student = ("train-student", *STUDENT, "--img-size", 32, "--epochs", 1, "--workers", 0)
    fgkd(*student, "--cache", tiny_cache, "--output", run)
    moved = tmp_path / "moved"
    os.symlink(tiny_cache, moved)
    assert exit_code(*student, "--cache", moved, "--output", run, "--resume") == 0
    said = fails(*student, "--cache", other, "--output", run, "--resume")
    assert "identity_sha256: " in said
    assert "views.seed: 0 -> 1" in said


def test_a_loss_that_is_not_finite(
    fails: Fails, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is named, no update is made, and the last checkpoint continues."""
    said = fails(*command, "--lr", 1e30, "--warmup-epochs", 0, "--output", tmp_path / "wild")
    step = re.search(r"the loss is not finite at step (\d+) \(epoch 1\)", said)
    assert step
    assert "lower --lr" in said
    real, calls = losses.task_loss, iter(range(100))

    def sometimes(**kwargs: Any) -> torch.Tensor:
        return real(**kwargs) * (torch.nan if next(calls) == 6 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "task_loss", sometimes)
        assert "not finite at step 6 (epoch 2)" in fails(*command, "--checkpoint-steps", 1)
    run = tmp_path / "run"
    assert saved(run)["step"] == 6
    assert all(v.isfinite().all() for v in saved(run)["model"].values())
    fgkd(*command, "--resume")
    fgkd(*command, "--output", tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_signal_finishes_the_step_saves_and_says_how_to_continue(
    number: signal.Signals,
    at: int,
    command: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = losses.task_loss, iter(range(100))

    def interrupting(**kwargs: Any) -> torch.Tensor:
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return real(**kwargs)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(losses, "task_loss", interrupting)
        code = exit_code(*command)
    out = capsys.readouterr().out
    run = tmp_path / "run"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    if at == 11:  # the last step: there is nothing left to stop
        assert code == 0
        return
    assert code == 128 + number
    assert "stopping after this step" in out
    assert saved(run)["step"] in (at + 1, at + 2)
    again = out.partition("To continue:\n")[2].strip()
    assert again.startswith("fgkd train-teacher ")
    assert again.endswith(" --resume")
    assert exit_code(*shlex.split(again)[1:]) == 0
    fgkd(*command, "--output", tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


def _speaking(said: Path, args: tuple[object, ...]) -> None:
    """Run a command as this process's own, its words to a file."""
    words = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(words, 1)
    os.dup2(words, 2)
    sys.argv = ["fgkd", *map(str, args)]
    fgkd(*args)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_handled_by_one_process(
    number: signal.Signals, command: tuple[object, ...], tmp_path: Path
) -> None:
    """As a terminal sends Ctrl-C, and torchrun SIGTERM: to the data loading workers too."""
    run, said = tmp_path / "run", tmp_path / "said.txt"
    options = ("--workers", 2, "--epochs", 200, "--checkpoint-steps", 1)
    child = start(_speaking, said, (*command, *options))
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.pid is not None
    os.killpg(child.pid, number)
    child.join(60)
    words = said.read_text()
    assert child.exitcode == 128 + number, words
    assert "saved. To continue:\n  fgkd train-teacher" in words
    assert "Traceback" not in words
    assert 0 < saved(run)["step"] < 800


def test_ctrl_c_before_the_first_step(command: tuple[object, ...], fails: Fails) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgkd.commands.train_teacher.open_chosen", _interrupted)
        assert exit_code(*command) == 130
    assert exit_code(*command, "--resume", "--epochs", 1) == 0


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_capture(
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    real, calls = files.append_line, iter(range(100))

    def interrupting(path: Path, row: dict[str, Any]) -> None:
        real(path, row)
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_line", interrupting)
        assert exit_code(*command) == 130
    again = capsys.readouterr().out.partition("To continue:\n")[2].strip()
    assert not again.endswith("--resume")
    assert 2 <= len(files.read_lines(cache / "shards.jsonl")) < 6
    assert not (cache / "manifest.json").exists()
    assert exit_code(*shlex.split(again)[1:]) == 0
    now, then = tree(cache), tree(tiny_cache)
    for name in now:
        if name.startswith("shards/") or name == "manifest.json":
            assert now[name] == then[name], name


@pytest.mark.parametrize("num_bytes", [0, 300, 5_000, 60_000])
def test_a_full_disk_in_training(
    num_bytes: int, fails: Fails, command: tuple[object, ...], tmp_path: Path
) -> None:
    """At any file: an error that names it, nothing half-written, and --resume continues."""
    run = tmp_path / "run"
    with full_disk(num_bytes):
        said = fails(*command)
    assert f"cannot write {run}" in said
    assert "df -h" in said
    assert partials(tmp_path) == []
    for path in run.rglob("*.pt"):
        torch.load(path, weights_only=True)
    fgkd(*command, "--resume")
    fgkd(*command, "--output", tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


@pytest.mark.parametrize("num_bytes", [0, 2_000, 7_000])
def test_a_full_disk_in_capture(
    num_bytes: int, fails: Fails, tiny_cache: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    with full_disk(num_bytes):
        said = fails(*command)
    assert f"cannot write {cache}" in said
    assert partials(cache) == []
    fgkd(*command)
    now, then = tree(cache), tree(tiny_cache)
    for name in then:
        if name.startswith("shards/") or name == "manifest.json":
            assert now[name] == then[name], name


def test_a_read_only_place(
    fails: Fails, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Root may write anywhere, so the system call is made to fail.)"""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("os.mkdir", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(call, refuse)
            assert f"cannot write {tmp_path / 'run'}" in fails(*command, "--resume")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "args.yaml").write_text("precious: 1")
    monkeypatch.setattr("os.replace", refuse)
    assert "Read-only file system" in fails(*command, "--overwrite")
    assert (tmp_path / "run" / "args.yaml").read_text() == "precious: 1"
