"""Downloads in several attempts: of files behind URLs that fsspec opens, and from model hubs."""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fgkd.errors import DownloadError, MissingPackage
from fgkd.packages import require

HTTP = ("http", "https")
ATTEMPTS, FIRST_PAUSE_S = 6, 0.5  # of a download; pauses double, with jitter: 15 to 31 s in all
CONNECT_S, READ_S = 20, 60
NO_CREDENTIALS = "Unable to locate credentials"  # botocore, before it has asked anybody
T = TypeVar("T")
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # who wants to see retries adds a handler of their own


def home() -> Path:
    """The folder of downloaded and unpacked data: `$FGKD_HOME`, or `~/.cache/fgkd`."""
    return Path(os.environ.get("FGKD_HOME") or "~/.cache/fgkd").expanduser()


def require_fsspec(url: str) -> None:
    """Raise MissingPackage unless fsspec, and what it needs for http(s)://, is installed."""
    is_http = url.partition("://")[0] in HTTP
    require("reading from a URL", "fsspec", *["aiohttp"] * is_http)


def download(url: str, path: Path) -> None:
    """Copy the file behind a URL, in several attempts where the server or the network fails.

    Raises: DownloadError with the last reason; MissingPackage where fsspec needs another package.
    """
    in_attempts(lambda: _download_once(url, path), _may_pass)


def from_hub(fetch: Callable[[], T]) -> T:
    """What a client of a hub fetches, repeated while the server answers with status 429 or 5xx.

    huggingface_hub itself repeats requests for a file's head, but not those for the file.
    """
    return in_attempts(fetch, lambda error: is_busy(http_status(error)))


def in_attempts(fetch: Callable[[], T], may_pass: Callable[[Exception], bool]) -> T:
    """What fetch() returns, called again after errors that may pass, with growing pauses."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return fetch()
        except Exception as error:
            if not may_pass(error):
                raise
            pause = FIRST_PAUSE_S * 2**attempt * (1 + random.random())
            said = str(error).partition("\n")[0]
            log.warning("%s; trying again in %.1f s (%d)", said, pause, attempt + 2)
            time.sleep(pause)
    return fetch()


def http_status(error: BaseException | None) -> int:
    """The status of the answer that an error, or what caused it, is about; 0 if there is none."""
    while error is not None:
        if status := _status_of(error):
            return status
        error = error.__cause__ or error.__context__
    return 0


def _status_of(error: BaseException) -> int:
    """The HTTP status that an error itself is about; 0 if it is about none."""
    answer = getattr(error, "response", None)
    for place, name in ((answer, "status_code"), (error, "status"), (error, "code")):
        status = getattr(place, name, 0)  # of requests; of aiohttp and urllib; of gcsfs
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return 0


def is_busy(status: int) -> bool:
    """Whether an HTTP status is about the moment: too many requests, or trouble of the server."""
    return status in (408, 429) or status >= 500


def _may_pass(error: Exception) -> bool:
    return isinstance(error, DownloadError) and not error.is_final


def _download_once(url: str, path: Path) -> None:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        options = {"client_kwargs": {"timeout": _timeout()}} if protocol in HTTP else {}
        system, place = url_to_fs(url, **options)
        system.get_file(place, str(path))
    except ImportError as error:  # fsspec names the package in prose
        known = known_implementations.get(protocol, {})
        found = re.search(r"(?:[Ii]nstall |pip install )['\"`]?([\w.-]+)", known.get("err", ""))
        package = found[1] if found else protocol
        message = f"{protocol}:// needs the package {package}"
        raise MissingPackage(message, package=package, install=package) from error
    except Exception as error:  # every file system has its own
        final = isinstance(error, FileNotFoundError | PermissionError | ValueError)
        said = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        status = _status_of(error)  # aiohttp gives a short answer's cause 400
        final = final or (status > 0 and not is_busy(status)) or said.startswith(NO_CREDENTIALS)
        reason = said.splitlines()[0] if said else type(error).__name__
        message = f"cannot fetch {url}: {reason}"
        raise DownloadError(message, url=url, reason=reason, is_final=final) from None


def _timeout() -> Any:
    """Seconds to connect and between two pieces of a file, after which a server hangs."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
