"""A cache behind a URL on this machine: what was asked of it, and how much was held at once."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; counts what was got, and says nothing."""

    def __init__(self, *args: Any, asked: Counter[str], **kwargs: Any) -> None:
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.asked[self.path.lstrip("/")] += 1
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The folder's URL, and the GET requests for each of its files so far."""
    asked: Counter[str] = Counter()
    handler = functools.partial(Handler, directory=str(folder), asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def shards_of(asked: Counter[str]) -> Counter[str]:
    """The training shards among what was asked for."""
    return Counter({name: n for name, n in asked.items() if name.startswith("shards/")})
