"""Failure handling across ranks: one rank reports the error, the others exit instead of hanging.

A gloo collective fails when a peer's connection closes, an nccl collective waits. So a rank that
fails sets a key in the store that torchrun (or rank 0) keeps, and a thread of each rank polls it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import threading
import time
from typing import Any

from fgkd import distributed
from fgkd.errors import LostProcess, LostWorker

POLL_S = 1.0
_LOST = r"(?i)gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed? ?out"
_over = threading.Event()  # set once this process is ending by itself


def watch() -> None:
    """Start a thread that exits this process with code 1 once another rank reports an error."""
    if distributed.world() > 1:
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    store = _store()
    with contextlib.suppress(RuntimeError):  # the store is gone; the next collective fails
        while not _over.wait(POLL_S):
            if store.check([_key()]) and not _over.is_set():
                store.add(_key(), 1)
                os._exit(1)  # the main thread may hang in a collective; writes are atomic


def first_to_fail() -> bool:
    """Whether this is the first rank to report an error: one message is enough."""
    _over.set()
    if distributed.world() > 1 and distributed.rank() > 0:
        time.sleep(0.3)  # the store of a killed rank 0 takes a moment to disappear
    if distributed.world() == 1 or not _has_store():
        return True  # rank 0 is gone, perhaps without a message
    try:
        return bool(_store().add(_key(), 1) == 1)
    except RuntimeError:
        return True


def leave(failed: bool = False) -> None:
    """Leave the job; the last call of a process.

    The rank that hosts the store waits up to 5 s for the others' last look at it. failed: wait
    until they have seen this rank's error.
    """
    _over.set()
    keeps_store = distributed.rank() == 0
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or distributed.world() == 1:
        return
    if (failed and not keeps_store) or not _has_store():
        return
    key = _key() if failed else f"{_key()}/none"
    deadline = time.monotonic() + 5 * POLL_S
    with contextlib.suppress(RuntimeError):
        store = _store()
        done = store.add(key, 0 if failed else 1)
        while keeps_store and done < distributed.world() and time.monotonic() < deadline:
            time.sleep(0.02)
            done = store.add(key, 0)


def lost(error: BaseException) -> LostProcess | None:
    """A LostProcess error if `error` was caused by a collective whose peer ended; else None.

    The collective's error may be the cause or context of `error`, as when torchrun's SIGTERM
    follows it.
    """
    link: BaseException | None = error
    while link and not (isinstance(link, RuntimeError) and re.search(_LOST, str(link))):
        link = link.__cause__ or link.__context__
    if distributed.world() == 1 or link is None:
        return None
    return LostProcess(
        f"process {distributed.rank()} of {distributed.world()} lost another one, which ended "
        "without an error of its own (killed, out of memory, or its machine is gone): "
        + str(link).strip().splitlines()[0][:200],
        rank=distributed.rank(),
    )


def lost_worker(error: BaseException) -> LostWorker | None:
    """A LostWorker error if torch says that a process which loads images ended; else None."""
    found = re.search(
        r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*?)(?:\. |\.?$)", str(error)
    )
    if not isinstance(error, RuntimeError) or not found:
        return None
    how = found[2].replace("is killed", "was killed")
    return LostWorker(f"a process that loads images (pid {found[1]}) {how}", how=how)


def _key() -> str:
    return f"fgkd/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _address() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _has_store() -> bool:
    try:
        socket.create_connection(_address(), timeout=2).close()
    except OSError:
        return False
    return True


def _store() -> Any:
    import torch.distributed as dist

    return dist.TCPStore(  # type: ignore[attr-defined]
        *_address(), is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=10)
    )
