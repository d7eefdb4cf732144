"""`torchrun --max-restarts`: a killed rank costs time, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from helpers.runs import STUDENT, assert_same_run, run_ranks, tree

ROOT = Path(__file__).parents[1]


def survive(command: tuple[object, ...], begun: Callable[[], bool]) -> None:
    """Run a command on two ranks that may restart once; rank 1 is killed once it has `begun`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun = subprocess.Popen(
        [*launch, "--max-restarts=1", "-m", "stages", *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 100
        while not begun() and torchrun.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        ranks = psutil.Process(torchrun.pid).children()
        (victim,) = (child for child in ranks if child.environ().get("RANK") == "1")
        assert victim.environ()["TORCHELASTIC_RESTART_COUNT"] == "0"
        victim.kill()
        said, _ = torchrun.communicate(timeout=150)
        assert torchrun.returncode == 0, said
    finally:
        if torchrun.poll() is None:
            for process in [*psutil.Process(torchrun.pid).children(recursive=True), torchrun]:
                process.kill()


def test_a_capture_ends_complete(tiny_cache: Path, tmp_path: Path) -> None:
    """With the bytes of an unbroken one."""
    cache, options = tmp_path / "cache", ("--views", 40, "--shard-size", 10, "--batch-size", 4)
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", *options, "--device", "cpu")
    survive((*command, "--output", cache), lambda: any(cache.glob("shards/*.h5")))
    run_ranks(1, *command, "--output", tmp_path / "unbroken")
    got, want = (
        {n: b for n, b in tree(path).items() if n.startswith(("shards/", "val/", "manifest"))}
        for path in (cache, tmp_path / "unbroken")
    )
    assert got == want


def test_training_ends_with_the_same_weights(tiny_cache: Path, tmp_path: Path) -> None:
    """It continues from the last checkpoint, with the `--resume` that it was started with."""
    options = ("--epochs", 12, "--batch-size", 16, "--workers", 0, "--checkpoint-steps", 3)
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *options, "--resume")
    run = tmp_path / "run"
    survive((*command, "--output", run), (run / "checkpoints/last.pt").exists)
    run_ranks(2, *command, "--output", tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")
