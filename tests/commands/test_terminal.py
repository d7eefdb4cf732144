"""What a person sees beside the log: TensorBoard's curves, the progress bar, a second Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from helpers.failures import Fails, exit_code
from helpers.runs import TEACHER, assert_same_run, fgkd, rows, saved, start

from fgkd import losses
from fgkd.errors import FgkdError
from fgkd.training import optim
from stages import console, next_step


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
    fails: Fails,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorboard" in fails(*command, "--tensorboard")
    assert not (tmp_path / "run").exists()


def _at_terminal(name: str, no_color: str, args: tuple[object, ...]) -> None:
    """Run a command whose output is a terminal, in a process of its own."""
    console.REDRAW_S = 0.0
    os.environ["NO_COLOR"] = no_color
    terminal = os.open(name, os.O_RDWR)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    fgkd(*args)


def shown_at_terminal(columns: int, *args: object, no_color: str = "") -> str:
    """What a command writes to a terminal of so many columns, escape sequences and all."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    child = start(_at_terminal, os.ttyname(theirs), no_color, args)
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
    return said.decode()


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7])m")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_one_live_line_on_a_terminal_alone(
    command: tuple[object, ...], tmp_path: Path, no_color: str
) -> None:
    args = (*command, "--log-interval", 0.01)
    said = shown_at_terminal(80, *args, no_color=no_color)
    assert bool(COLOUR.search(said)) == (not no_color)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", said))]
    live = [line for line in lines if re.search(r"img/s  data +\d+%  [\d.]+ [KMG]iB .*%", line)]
    assert {line.split("  loss")[0] for line in live} == {f"epoch {n}/3" for n in (1, 2, 3)}
    rules = [line for line in lines if "val top-1" in line and line.startswith("epoch")]
    assert [line[:9] for line in rules] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert "best" in rules[0]
    commands = [line for line in lines if line.startswith("next: ")]
    assert all(len(line) <= 80 for line in lines if line not in commands and "/" not in line)
    assert len(commands) == 1  # whole, to be pasted
    log = (tmp_path / "run/log.txt").read_text()
    assert "\x1b" not in log
    assert len(re.findall(r"  step \d+/12  ", log)) > 3  # which the live line stands for
    assert "  step " not in ESCAPE.sub("", said)


def test_plain_lines_in_a_pipe(
    command: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fgkd(*command, "--log-interval", 1e-9)
    said = capsys.readouterr()
    assert not {"\r", "\x1b"} & set(said.out + said.err)
    assert len(re.findall(r"^epoch ./3  step \d+/12  ", said.out, re.MULTILINE)) == 12


def test_the_table_of_results_fits_the_terminal(
    tiny_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In parts, each with its names; in a pipe it is one."""
    runs = list(tiny_runs.values())
    said = ESCAPE.sub("", shown_at_terminal(80, "evaluate", *runs, "--workers", 0))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", said)]
    heads = [line for line in lines if re.match(r"run  ", line)]
    assert len(heads) > 1
    for line in lines[lines.index(heads[0]) :]:
        assert len(line) <= 80 or line.startswith(("next:", "cache ", "agree"))
    fgkd("evaluate", *runs, "--workers", 0)
    whole = re.findall(r"^run  .*$", capsys.readouterr().out, re.MULTILINE)
    assert len(whole) == 1
    assert whole[0].split() == ["run", *(w for head in heads for w in head.split()[1:])]


def test_a_complete_cache_has_a_next_command_too(
    tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("cache-logits", "--teacher", tiny_runs["teacher"], "--views", 1, "--workers", 0)
    for _ in range(2):
        fgkd(*command, "--output", tmp_path / "cache")
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"next: {next_step.after_cache(tmp_path / 'cache')}"


def test_the_next_command_names_teacher_baseline_and_student(
    tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two is trained last; from elsewhere and from the folder they are in."""
    teacher, baseline, student = (tiny_runs[name] for name in ("teacher", "baseline", "student"))
    report = student.with_name("report")
    expected = f"fgkd evaluate {teacher} {baseline} {student} --split test --report {report}"
    for last in (student, baseline):
        said = next_step.after_student(last, ("train", "val", "test"))
        assert sorted(said.split()[2:5]) == sorted(expected.split()[2:5])
        assert said.split()[5:] == expected.split()[5:]
    assert next_step.after_student(student, ("train", "test")) == expected
    monkeypatch.chdir(student.parent)
    near = next_step.after_student(student, ("test",))
    assert near == f"fgkd evaluate {teacher} baseline student --split test --report report"
    teacher_args = student.with_name("args")  # no run: a folder that is not readable as one
    (teacher_args / "model").mkdir(parents=True)
    (teacher_args / "run.json").write_text("{")
    assert next_step.after_student(student, ("test",)) == near
    monkeypatch.chdir(teacher)
    assert shlex.split(next_step.after_teacher(Path()))[-1] == f"{teacher}-cache"
    cache = tmp_path / "a cache"
    (tmp_path / "student").mkdir()
    assert shlex.split(next_step.after_cache(cache))[-1] == str(tmp_path / "student-2")
    assert shlex.split(next_step.after_cache(cache))[3] == str(cache)


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
