"""A miniature of the Hugging Face hub: what its clients ask of it, over a folder of repositories.

`FOLDER/datasets/ORG/NAME` and `FOLDER/models/ORG/NAME` hold the files of one revision each. The
paths are those of https://huggingface.co/docs/hub/api, as huggingface_hub 0.2x to 2 asks for them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.shard_server import running

API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
FILE = re.compile(
    r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


def etag(path: Path) -> str:
    """What names a file's content."""
    return sha1(path.read_bytes()).hexdigest()


def commit(repository: Path) -> str:
    """A revision's name, of all of its content."""
    files = sorted(path for path in repository.rglob("*") if path.is_file())
    return sha1("".join(etag(path) for path in files).encode()).hexdigest()


def entry(repository: Path, path: Path) -> dict[str, Any]:
    """A file or folder as lists of a tree have it."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {
            "type": "directory",
            "path": name,
            "size": 0,
            "oid": sha1(name.encode()).hexdigest(),
        }
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)}


class Handler(BaseHTTPRequestHandler):
    """Answers a request; `fails(method, path)` is a status to answer instead, or 0."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]
    fails: Callable[[str, str], int]

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Find what the request is about."""
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if status := self.fails(self.command, path):
            return self.send(status, b"{}")
        found = API.fullmatch(path) or FILE.fullmatch(path)
        if found is None:
            return self.send(404, b"{}")
        parts = found.groupdict()
        repository = self.folder / (parts["kind"] or "models") / parts["name"]
        if not repository.is_dir():
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if parts["revision"] not in (None, "main", commit(repository)):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        place = repository / (parts["path"] or "")
        if found.re is FILE:
            if not place.is_file():
                return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return self.send(
                200,
                place.read_bytes(),
                {"ETag": f'"{etag(place)}"', "X-Repo-Commit": commit(repository)},
            )
        if parts["what"] == "tree":
            if not place.is_dir():
                return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            all_of_it = "true" in parse_qs(urlsplit(self.path).query.lower()).get("recursive", [])
            listed = place.rglob("*") if all_of_it else place.iterdir()
            return self.send_json([entry(repository, path) for path in sorted(listed)])
        names = [p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()]
        return self.send_json(
            {
                "id": parts["name"],
                "sha": commit(repository),
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": name} for name in sorted(names)],
            }
        )

    def send_json(self, value: Any) -> None:
        """Answer with JSON."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer with a status, a body and headers."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(
    folder: Path, fails: Callable[[str, str], int] = lambda method, path: 0
) -> Iterator[tuple[str, list[str]]]:
    """A hub of a folder's repositories while the block lasts: (its URL, the requests made)."""
    asked: list[str] = []
    members = {"folder": folder, "asked": asked, "fails": staticmethod(fails)}
    with running(type("Hub", (Handler,), members)) as url:
        yield url, asked
