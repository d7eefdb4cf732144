"""The lock of a training run: no second process trains in the same folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fgkd.errors import RunInUse

NAME = "train.lock"
PATIENCE_S = 5.0  # of waiting for one that finds that its run is finished


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while entered; the system releases that of a process that is killed.

    Where files cannot be locked, nothing is. Raises: RunInUse while another process holds it.
    """
    path = folder / NAME
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # such as a read-only folder
            file = stack.enter_context(_locked(path))
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            stack.callback(path.unlink, missing_ok=True)
        yield


def _locked(path: Path) -> IO[str]:
    """A lock file, open and locked; not one that its holder deleted meanwhile."""
    while True:
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115
        if _is_taken(file):
            file.close()
            raise _in_use(path)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def _is_taken(file: IO[str]) -> bool:
    """Lock a file, or tell that another process holds its lock for longer than a moment."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            # Unlike flock, it is not inherited by worker processes, which may outlive this one.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return False
            if time.monotonic() > give_up:
                return True
            time.sleep(0.05)
        else:
            return False


def _in_use(path: Path) -> RunInUse:
    folder = path.parent
    with contextlib.suppress(OSError, ValueError):
        pid = int(path.read_text())
        return RunInUse(f"process {pid} is training in {folder}", path=folder, pid=pid)
    return RunInUse(f"another process is training in {folder}", path=folder)
