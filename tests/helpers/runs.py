"""Miniature runs of the real stages: tiny models on tiny images, and processes that may be killed.

Stages run in this process (`fgkd`), or in children of a fork server that has torch and the stages
imported already (`run_children`), so that a child costs a fork and not seconds of imports.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from stages.cli import main

# dims and depths of a few thousand parameters; 32 px in patches of 2 and of 8.
TEACHER = (
    *("--model", "convnext_atto", "--img-size", 32),
    *("--model-kwargs", "patch_size=2,depths=[1,1,1,1],dims=[8,8,16,16]"),
)
STUDENT = (
    *("--model", "deit_tiny_distilled_patch16_224"),
    *("--model-kwargs", "patch_size=8,embed_dim=24,depth=2,num_heads=2"),
)
TIMED = ("log.txt", "timings.jsonl")  # the files that depend on the clock
STAGES = ("train_teacher", "cache_logits", "train_student", "evaluate", "inspect_cache")
LATE = (
    "timm.data.transforms_factory",
    "timm.optim",
    "timm.models",
    "torch._dynamo",
    "PIL.ImageFont",
)
PRELOADED = ["helpers.runs", *(f"stages.{name}" for name in STAGES), *LATE]
Point = tuple[str, int]  # the n-th call of a function, as `("os.fsync", 3)`


def fgkd(*args: object) -> None:
    """Run a command in this process; an error fails the test."""
    main([str(arg) for arg in args])


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    return state


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def cache_files(cache: Path) -> dict[str, bytes]:
    """The files of a cache that must be equal however it was written."""
    names = ("shards/", "val/", "manifest")
    return {name: data for name, data in tree(cache).items() if name.startswith(names)}


def model_files(run: Path) -> dict[str, bytes]:
    """The files of a run's model but its card, which names the options of the run."""
    return {name: data for name, data in tree(run / "model").items() if name != "README.md"}


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Nested dicts and lists are equal, and their tensors are so in every bit."""
    assert type(got) is type(want), where
    if isinstance(want, dict):
        assert list(got) == list(want), where
        for key in want:
            assert_same(got[key], want[key], f"{where}/{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype, where
        assert torch.equal(got, want), where
    else:
        assert got == want, where


def assert_same_run(got: Path, want: Path) -> None:
    """Two run folders hold the same files, and those of training are equal bit for bit."""
    got_files, want_files = tree(got), tree(want)
    assert list(got_files) == list(want_files)
    for name in want_files:
        if name == "model/README.md":
            continue  # a card names the options, which may be how the same model was trained
        if name.startswith("model/") or name in ("metrics.jsonl", "summary.csv"):
            assert got_files[name] == want_files[name], name
    for name in ("last", "best"):
        assert_same(saved(got, name), saved(want, name), name)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _enter(function: Callable[..., None], env: dict[str, str], args: tuple[object, ...]) -> None:
    os.setsid()  # killed with its data loading workers, as a machine that loses power
    multiprocessing.set_start_method("fork", force=True)  # a fork server's child would use another
    os.environ.update(env)
    torch.set_num_threads(1)
    function(*args)


def start(
    function: Callable[..., None], *args: object, env: dict[str, str] | None = None
) -> BaseProcess:
    """A module-level function in a child, in its own process group, on one thread."""
    child: BaseProcess = _context().Process(target=_enter, args=(function, env or {}, args))
    child.start()
    return child


def run_children(calls: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Each `(function, *args)` in its own child, one after another; their exit codes."""
    codes = []
    for call in calls:
        child = start(*call)
        child.join(120)
        codes.append(child.exitcode)
    return codes


def _die_at(point: Point, args: tuple[object, ...]) -> None:
    """Run a command and SIGKILL its process group at a call of a function, before it is made."""
    path, number = point
    owner, _, name = path.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    real, calls = getattr(holder, name), itertools.count(1)

    def counted(*a: Any, **k: Any) -> Any:
        if next(calls) == number:
            os.killpg(0, signal.SIGKILL)
        return real(*a, **k)

    setattr(holder, name, counted)
    fgkd(*args)


def kill_at(point: Point, *args: object) -> None:
    """Run a command in a child that is killed at `point`; it must get there."""
    assert run_children([(_die_at, point, args)]) == [-signal.SIGKILL], point


def _profiled(since: str, at: int, args: tuple[object, ...], report: Path | None = None) -> None:
    """Run a command; from the first call of `since` on, SIGKILL the group at the `at`-th call.

    Calls are those of the main thread, into Python and into C. report: write their number here.
    """
    owner, _, name = since.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    real, calls = getattr(holder, name), 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1
            if calls == at:
                os.killpg(0, signal.SIGKILL)

    def started(*a: Any, **k: Any) -> Any:
        sys.setprofile(count)
        return real(*a, **k)

    setattr(holder, name, started)
    fgkd(*args)
    sys.setprofile(None)
    if report:
        report.write_text(str(calls))


def count_calls(since: str, report: Path, *args: object) -> int:
    """Run a command in a child; how many calls it makes from the first of `since` on."""
    assert run_children([(_profiled, since, 0, args, report)]) == [0]
    return int(report.read_text())


def kill_after(since: str, calls: int, *args: object) -> None:
    """Run a command in a child that is killed so many calls after the first of `since`."""
    assert run_children([(_profiled, since, max(calls, 1), args)]) == [-signal.SIGKILL]


def start_ranks(world: int, function: Callable[..., None], *args: object) -> list[BaseProcess]:
    """A function in `world` processes on this machine, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(function, *args, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def run_ranks(world: int, *args: object) -> None:
    """Run a command as torchrun would, in `world` processes on this machine."""
    ranks = start_ranks(world, fgkd, *args)
    for child in ranks:
        child.join(120)
    assert [child.exitcode for child in ranks] == [0] * world
