"""A folder behind a URL on this machine, which counts the requests for each file."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of a folder; counts the requests and logs nothing."""

    def __init__(self, *args: Any, requested: Counter[str], **kwargs: Any) -> None:
        self.requested = requested
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.requested[self.path.lstrip("/")] += 1
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server on this machine, which runs while the block lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The folder's URL, and the GET requests for each of its files so far."""
    requested: Counter[str] = Counter()
    handler = functools.partial(Handler, directory=str(folder), requested=requested)
    with running(handler) as url:
        yield url, requested


def shards_of(requested: Counter[str]) -> Counter[str]:
    """The training shards among the requests."""
    return Counter({name: n for name, n in requested.items() if name.startswith("shards/")})
