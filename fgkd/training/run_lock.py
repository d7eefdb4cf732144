"""The lock of a training run: no second process trains in the same folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fgkd.errors import RunInUse

NAME = "train.lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while entered; the system releases that of a process that is killed.

    Where files cannot be locked, nothing is. Raises: RunInUse while another process holds it.
    """
    path = folder / NAME
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # such as a read-only folder
            file = stack.enter_context(open(path, "a+", encoding="ascii"))
            try:
                # Unlike flock, it is not inherited by worker processes, which may outlive this one.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _in_use(folder, path) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            stack.callback(path.unlink, missing_ok=True)
        yield


def _in_use(folder: Path, path: Path) -> RunInUse:
    with contextlib.suppress(OSError, ValueError):
        pid = int(path.read_text())
        return RunInUse(f"process {pid} is training in {folder}", path=folder, pid=pid)
    return RunInUse(f"another process is training in {folder}", path=folder)
