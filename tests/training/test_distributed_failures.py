"""When one of several processes dies or fails, all end soon, and one of them says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers.runs import STUDENT, assert_same_run, fgkd, rows, run_ranks, saved, start_ranks

from fgkd import distributed
from fgkd.errors import WriteError
from fgkd.training import optim

RUN = ("--epochs", 3, "--batch-size", 16, "--workers", 0, "--opt", "sgd", "--lr", 0.05)


def _misbehave(said: Path, how: str, who: tuple[int, ...], args: tuple[object, ...]) -> None:
    """Run a command, its words to a file of this rank; on some ranks the 10th update fails."""
    rank = distributed.rank()
    words = os.open(said / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(words, 1)
    os.dup2(words, 2)
    real, calls = optim.clip_grad, iter(range(100))

    def clip_grad(*a: Any, **k: Any) -> float:
        if rank in who and next(calls) == 9:
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise WriteError(f"rank {rank} cannot go on", path="x")
        return real(*a, **k)

    optim.clip_grad = clip_grad
    fgkd(*args)


def misbehave(world: int, said: Path, *args: Any) -> list[tuple[int | None, str]]:
    """Exit code and words of each rank, which must come to an end within a minute."""
    said.mkdir()
    ranks = start_ranks(world, _misbehave, said, *args)
    for child in ranks:
        child.join(60)
    texts = [(said / f"{rank}.txt").read_text() for rank in range(world)]
    return [(child.exitcode, text) for child, text in zip(ranks, texts, strict=True)]


@pytest.fixture
def command(tiny_cache: Path, tmp_path: Path) -> tuple[object, ...]:
    """A train-student of 3 epochs x 7 steps."""
    options = ("--checkpoint-steps", 4, "--output", tmp_path / "run")
    return ("train-student", "--cache", tiny_cache, *STUDENT, *RUN, *options)


@pytest.mark.parametrize("who", [0, 1])
def test_the_survivor_of_a_killed_rank_says_so_and_the_run_continues(
    who: int, command: tuple[object, ...], tmp_path: Path
) -> None:
    """Continued by as many processes the files are those of an unbroken run, bit for bit."""
    found = misbehave(2, tmp_path / "said", "is killed", (who,), command)
    assert found[who][0] == -signal.SIGKILL
    code, text = found[1 - who]
    assert code == 1
    assert text.count("error: ") == 1
    assert f"error: process {1 - who} of 2 lost another one" in text
    assert "Traceback" not in text
    if who == 1:  # else torch's own store, gone with rank 0, may complain in C++ on the way out
        assert "frame #" not in text
    assert saved(tmp_path / "run")["step"] == 8
    run_ranks(2, *command, "--resume")
    run_ranks(2, *command[:-1], tmp_path / "unbroken")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)], ids=str)
def test_an_error_of_a_rank_ends_all_and_is_said_once(
    who: tuple[int, ...], command: tuple[object, ...], tmp_path: Path
) -> None:
    found = misbehave(2, tmp_path / "said", "raises", who, command)
    assert [code for code, _ in found] == [1, 1]
    text = "".join(text for _, text in found)
    assert text.count("error: ") == 1
    assert "cannot go on\nTry: df -h ." in text
    assert "Traceback" not in text
    assert "frame #" not in text  # as C++ tells of exceptions


def test_a_run_continues_on_another_number_of_ranks(
    command: tuple[object, ...], tmp_path: Path
) -> None:
    """Two processes, then one: what one alone would have trained, but for rounding."""
    misbehave(2, tmp_path / "said", "is killed", (0, 1), command)
    fgkd(*command, "--resume")
    fgkd(*command[:-1], tmp_path / "one")
    assert [row["step"] for row in rows(tmp_path / "run")] == [7, 14, 21]
    got, want = (saved(tmp_path / name)["model"] for name in ("run", "one"))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5, msg=name)


def test_under_torchrun_the_survivor_of_a_killed_process_says_so(
    tiny_cache: Path, tmp_path: Path
) -> None:
    """It is failing already when torchrun sends SIGTERM to its group, data loading workers too."""
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ("--epochs", "999", "--batch-size", "16", "--workers", "1", "--checkpoint-steps", "1")
    train = ["train-student", "--cache", str(tiny_cache), *STUDENT, *options, "--output", str(run)]
    torchrun = subprocess.Popen(
        [*launch, "-m", "stages", *train],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not (run / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = psutil.Process(torchrun.pid).children()
    (victim,) = (child for child in ranks if child.environ().get("RANK") == "1")
    victim.kill()
    _, said = torchrun.communicate(timeout=60)
    assert torchrun.returncode == 1
    assert said.count("error: ") == 1, said
    assert "error: process 0 of 2 lost another one" in said
    assert "--resume" in said.partition("Try: ")[2]
    assert "[rank" not in said  # as torch marks the traceback of a rank
    assert saved(run)["step"] > 0
