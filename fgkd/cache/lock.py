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
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from fgkd import files
from fgkd.errors import CacheInUse, FgkdError

TOUCH_S, STALE_S = 30.0, 600.0
FACTS = {"host": str, "pid": int, "process_started": float, "started": str, "blocks": [int]}


@contextlib.contextmanager
def held(folder: Path, name: str, blocks: range) -> Iterator[None]:
    """Hold the lock of these blocks while entered. name: of this capture's own lock file.

    Raises: CacheInUse while another process that is alive writes one of these blocks.
    """
    path = folder / f"{name}.lock"
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "blocks": [blocks.start, blocks.stop],
    }
    _refuse_others(folder, path, blocks)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of a process that is gone
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(facts, file)
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


def _keep_fresh(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _refuse_others(folder: Path, own: Path, blocks: range, is_own: bool = False) -> None:
    for path in sorted(folder.glob("*.lock")):
        if path == own and is_own:
            continue
        facts = _read(path)
        if facts is None:
            continue
        first, last = facts["blocks"]
        if max(first, blocks.start) < min(last, blocks.stop) and _is_alive(path, facts):
            raise CacheInUse(
                f"{folder} is being written by {_who(facts)}, since {facts['started']}",
                cache=folder,
                path=path,
                host=facts["host"],
                pid=facts["pid"],
            )


def writer_of(folder: Path) -> str:
    """The process that writes a cache now, as `process 12 on host`; "" if there is none."""
    for path in sorted(folder.glob("*.lock")):
        facts = _read(path)
        if facts and _is_alive(path, facts):
            return _who(facts)
    return ""


def _who(facts: dict[str, Any]) -> str:
    return f"process {facts['pid']} on {facts['host']}"


def _read(path: Path) -> dict[str, Any] | None:
    """The facts of a lock file; None of one that is damaged or gone."""
    try:
        value = files.read_json(path, "lock")
    except FgkdError:
        return None
    return value if files.matches(value, FACTS) and len(value["blocks"]) == 2 else None


def _is_alive(path: Path, facts: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock is alive, as far as can be told from here."""
    if facts["host"] == socket.gethostname():
        try:
            started = psutil.Process(facts["pid"]).create_time()
        except psutil.Error:
            return False
        return abs(started - facts["process_started"]) < 1
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
