"""Downloads of files behind URLs that fsspec opens, in several attempts."""

from __future__ import annotations

import logging
import os
import random
import re
import time
from pathlib import Path
from typing import Any

from fgkd.errors import DownloadError, MissingPackage
from fgkd.packages import require

HTTP = ("http", "https")
ATTEMPTS, FIRST_PAUSE_S = 6, 0.5  # of a download; pauses double, with jitter: 15 to 31 s in all
CONNECT_S, READ_S = 20, 60
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # who wants to see retries adds a handler of their own


def home() -> Path:
    """The folder of downloaded and unpacked data: `$FGKD_HOME`, or `~/.cache/fgkd`."""
    return Path(os.environ.get("FGKD_HOME") or "~/.cache/fgkd").expanduser()


def require_fsspec(url: str) -> None:
    """Raise MissingPackage unless fsspec, and what it needs for http(s)://, is installed."""
    is_http = url.partition("://")[0] in HTTP
    require("reading from a URL", "fsspec", *["aiohttp"] * is_http)


def is_url(where: str) -> bool:
    """Whether a place is a URL that fsspec opens, and not a path."""
    return "://" in where


def download(url: str, path: Path) -> None:
    """Copy the file behind a URL, in several attempts where the server or the network fails.

    Raises: DownloadError with the last reason; MissingPackage where fsspec needs another package.
    """
    for attempt in range(ATTEMPTS):
        try:
            _download_once(url, path)
        except DownloadError as error:
            if error.is_final or attempt == ATTEMPTS - 1:
                raise
            pause = FIRST_PAUSE_S * 2**attempt * (1 + random.random())
            log.warning("%s; trying again in %.1f s (%d)", error, pause, attempt + 2)
            time.sleep(pause)
        else:
            return


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
        status = getattr(error, "status", None)
        final = final or (isinstance(status, int) and 400 <= status < 500 and status != 429)
        said = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        reason = said.splitlines()[0] if said else type(error).__name__
        message = f"cannot fetch {url}: {reason}"
        raise DownloadError(message, url=url, reason=reason, is_final=final) from None


def _timeout() -> Any:
    """Seconds to connect and between two pieces of a file, after which a server hangs."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
