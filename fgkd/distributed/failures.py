"""Processes that work together end together: one says why, and none waits for the dead.

A collective of gloo fails when a peer's connection closes, one of nccl waits. So a process that
fails leaves word in the store that torchrun (or rank 0) keeps, and a thread of each looks for it.
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
from fgkd.errors import FgkdError

POLL_S = 1.0
_LOST = r"(?i)gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed? ?out"
_over = threading.Event()  # this process is ending by itself: its watch is over


def watch() -> None:
    """From now on end this process, exit code 1, once another one has reported an error."""
    if distributed.world() > 1:
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    store = _store()
    with contextlib.suppress(RuntimeError):  # the store is gone, and the next collective fails
        while not _over.wait(POLL_S):
            if store.check([_key()]) and not _over.is_set():
                store.add(_key(), 1)
                os._exit(1)  # the main thread may hang in a collective; files are written whole


def first_to_fail() -> bool:
    """Whether no other process has reported an error yet: one message is enough."""
    _over.set()
    if distributed.world() > 1 and distributed.rank() > 0:
        time.sleep(0.3)  # a rank 0 that was killed takes its store with it, but not at once
    if distributed.world() == 1 or not _has_store():
        return True  # rank 0 is gone with the store, and may have had no time to say why
    try:
        return bool(_store().add(_key(), 1) == 1)
    except RuntimeError:
        return True


def part(failed: bool = False) -> None:
    """The last call of a process: one that keeps the store lets the others ask it once more.

    failed: wait for those that must learn of this process's error. At most 5 s.
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


def lost(error: BaseException) -> FgkdError | None:
    """The failure of a collective because another process ended, in words; else None.

    It may be the cause of `error`: torchrun's SIGTERM to those that are left comes on top of it.
    """
    link: BaseException | None = error
    while link and not (isinstance(link, RuntimeError) and re.search(_LOST, str(link))):
        link = link.__cause__ or link.__context__
    if distributed.world() == 1 or link is None:
        return None
    return FgkdError(
        f"process {distributed.rank()} of {distributed.world()} lost another one, which ended "
        "without an error of its own (killed, out of memory, or its machine is gone): "
        + str(link).strip().splitlines()[0][:200],
        "the same command with --resume continues from the last checkpoint",
    )


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
