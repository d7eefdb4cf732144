"""What a person sees beside the log: TensorBoard's curves, the progress bar, a second Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from helpers.failures import exit_code, make_fails
from helpers.runs import TEACHER, assert_same_run, fgkd, rows, saved, start

from fgkd import losses
from fgkd.errors import FgkdError
from fgkd.training import optim


@pytest.fixture
def command(tiny_data: Path, tmp_path: Path) -> tuple[object, ...]:
    """A train-teacher of 3 epochs x 4 steps, each of 2 micro-batches."""
    return (
        *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--epochs", 3),
        *("--batch-size", 32, "--workers", 0, "--grad-accum-steps", 2),
        *("--output", tmp_path / "run"),
    )


def test_tensorboard_has_the_rows_and_a_resumed_run_has_them_once(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the checkpoint of an epoch whose row is written: it is written again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        real, calls = optim.clip_grad, iter(range(99))

        def failing(*args: Any, **kwargs: Any) -> float:
            if next(calls) == 9:
                raise FgkdError("stop")
            return real(*args, **kwargs)

        patch.setattr(optim, "clip_grad", failing)
        patch.setattr("fgkd.training.run_folder.RunFolder.save", _save_first_epoch_alone)
        assert exit_code(*command, "--tensorboard") == 1
    run = tmp_path / "run"
    assert (len(rows(run)), saved(run)["step"]) == (2, 4)
    fgkd(*command, "--tensorboard", "--resume")
    curves = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "lr", "val_top1_pct"):
        points = [(event.step, event.value) for event in curves.Scalars(name)]
        assert [step for step, _ in points] == [4, 8, 12]
        assert [value for _, value in points] == pytest.approx([row[name] for row in rows(run)])


def _save_first_epoch_alone(self: Any, path: Path, state: dict[str, Any]) -> None:
    from fgkd.training import checkpoint

    if state.get("step") in (None, 4):
        checkpoint.save(path, state)


def test_tensorboard_that_is_not_installed(
    command: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorboard" in make_fails(capsys)(*command, "--tensorboard")
    assert not (tmp_path / "run").exists()


def _at_terminal(name: str, args: tuple[object, ...]) -> None:
    """Run a command whose output is a terminal."""
    terminal = os.open(name, os.O_RDWR)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    fgkd(*args)


def test_a_progress_bar_on_a_terminal_alone(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    child = start(_at_terminal, os.ttyname(theirs), (*command, "--log-interval", 0.01))
    os.set_blocking(ours, False)
    said = b""
    while child.is_alive() or said == b"":
        child.join(0.05)
        try:
            said += os.read(ours, 1 << 16)
        except BlockingIOError:
            continue
    child.join(60)
    os.close(theirs)
    assert child.exitcode == 0
    text = said.decode()
    assert "/12 [" in text  # tqdm's: steps of steps
    assert "\r" in text
    assert "epoch 1/3  step " in text
    assert "/12 [" not in (tmp_path / "run/log.txt").read_text()
    fgkd(*command[:-1], tmp_path / "plain")
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_between_micro_batches(
    signals: int,
    command: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One finishes the step; a second one ends at once, and still says how to continue."""
    real, calls = losses.task_loss, iter(range(99))

    def interrupting(**kwargs: Any) -> Any:
        if next(calls) == 10:  # the first micro-batch of step 5
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
        return real(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "task_loss", interrupting)
        assert exit_code(*command) == 130
    said = capsys.readouterr()
    assert "To continue:\n  fgkd train-teacher" in said.out + said.err
    assert (said.out + said.err).rstrip().endswith("--resume")
    run = tmp_path / "run"
    assert saved(run)["step"] in ((6, 7) if signals == 1 else (4,))
    fgkd(*command, "--resume")
    fgkd(*command[:-1], tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")
