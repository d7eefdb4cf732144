"""The lock of a capture: no two processes write the same blocks of a cache.

Each capture has a file `NAME.lock` in the cache's folder, which says who it is and which blocks it
writes. It is touched while the capture lives, so that one that was killed, here or on another
machine, is found out and taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fgkd import files
from fgkd.errors import CacheInUse, FgkdError

TOUCH_S, STALE_S = 30.0, 600.0
TEMPLATE = {"host": str, "pid": int, "process_started": float, "started": str, "blocks": [int]}


@dataclass(frozen=True)
class Holder:
    """A process that writes blocks of a cache. started: when it began, for a person."""

    host: str
    pid: int
    process_started: float
    started: str
    blocks: tuple[int, int]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @staticmethod
    def this(blocks: range) -> Holder:
        """The present process."""
        began, now = psutil.Process().create_time(), time.strftime("%Y-%m-%d %H:%M:%S")
        return Holder(socket.gethostname(), os.getpid(), began, now, (blocks.start, blocks.stop))

    @staticmethod
    def read(path: Path) -> Holder | None:
        """The holder of a lock file; None of one that is damaged or gone."""
        try:
            value = files.read_json(path, "lock")
        except FgkdError:
            return None
        if not files.matches(value, TEMPLATE) or len(value["blocks"]) != 2:
            return None
        given = {name: value[name] for name in TEMPLATE}
        return Holder(**given | {"blocks": tuple(value["blocks"])})


@contextlib.contextmanager
def held(folder: Path, name: str, blocks: range) -> Iterator[None]:
    """Hold the lock of these blocks while entered. name: of this capture's own lock file.

    Raises: CacheInUse while another process that is alive writes one of these blocks.
    """
    path = folder / f"{name}.lock"
    _refuse_others(folder, path, blocks)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of a process that is gone
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(asdict(Holder.this(blocks)), file)
    except FileExistsError:  # another was faster
        _refuse_others(folder, path, blocks)
    except OSError as error:
        raise files.write_error(path, error) from error
    over = threading.Event()
    thread = threading.Thread(target=_keep_fresh, args=(path, over), daemon=True)
    thread.start()
    try:
        _refuse_others(folder, path, blocks, is_own=True)  # one of other blocks may have begun
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def refuse_in_use(folder: Path) -> None:
    """Raise CacheInUse while a process that is alive writes any block of a cache."""
    _refuse_others(folder, folder / ".lock", range(sys.maxsize))


def _keep_fresh(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _refuse_others(folder: Path, own: Path, blocks: range, is_own: bool = False) -> None:
    for path in sorted(folder.glob("*.lock")):
        if path == own and is_own:
            continue
        holder = Holder.read(path)
        if holder is None:
            continue
        first, last = holder.blocks
        if max(first, blocks.start) < min(last, blocks.stop) and _is_alive(path, holder):
            raise CacheInUse(
                f"{folder} is being written by {holder}, since {holder.started}",
                cache=folder,
                path=path,
                host=holder.host,
                pid=holder.pid,
            )


def writer_of(folder: Path) -> str:
    """The process that writes a cache now, as `process 12 on host`; "" if there is none."""
    for path in sorted(folder.glob("*.lock")):
        holder = Holder.read(path)
        if holder and _is_alive(path, holder):
            return str(holder)
    return ""


def _is_alive(path: Path, holder: Holder) -> bool:
    """Whether the process that wrote a lock is alive, as far as can be told from here."""
    if holder.host == socket.gethostname():
        try:
            started = psutil.Process(holder.pid).create_time()
        except psutil.Error:
            return False
        return abs(started - holder.process_started) < 1
    with contextlib.suppress(OSError):
        return _now(path.parent) - path.stat().st_mtime < STALE_S
    return False


def _now(folder: Path) -> float:
    """The present time by the clock of the folder's file system."""
    probe = folder / f".clock-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
