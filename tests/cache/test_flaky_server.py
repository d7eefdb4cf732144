"""Caches behind a server that fails now and then, and systems that run out of files."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from helpers.caches import write_cache
from helpers.failures import run_command

import fgkd
from fgkd import download
from fgkd.errors import DamagedShard, DownloadError, MissingPackage, TooManyOpenFiles
from stages.remedies import remedy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and time-outs of a test's length."""
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(download, "READ_S", 0.5)


@contextmanager
def serving(folder: Path, fail: Callable[[Any, int], bool]) -> Iterator[str]:
    """A server that lets `fail(handler, number)` answer requests; if that gives False, it does."""
    numbers = iter(range(10**6))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def do_GET(self) -> None:
            if not fail(self, next(numbers)):
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def busy(handler: Any, number: int) -> bool:
    if number % 3 != 2:
        handler.send_error(503)
    return number % 3 != 2


def cut_off(handler: Any, number: int) -> bool:
    if number % 3 != 2:
        handler.close_connection = True
        handler.connection.close()
    return number % 3 != 2


def short(handler: Any, number: int) -> bool:
    if number % 3 == 2:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"only this")
    handler.close_connection = True
    return True


def hanging(handler: Any, number: int) -> bool:
    if number % 3 != 2:
        time.sleep(2)
    return number % 3 != 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [busy, cut_off, short, hanging], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_faults_that_pass_are_outlived(
    fault: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = write_cache(tmp_path / "cache")
    with serving(cache, fault) as url:
        reader = fgkd.open_cache(url)
        local = fgkd.open_cache(cache)
        rows = range(len(local.samples["train"]))
        assert (reader.targets(rows, 0) == local.targets(rows, 0)).all()
        reader.close()
    assert any("trying again" in record.message for record in caplog.records)


@pytest.mark.usefixtures("quick")
def test_faults_that_last_are_told_after_several_attempts(tmp_path: Path) -> None:
    asked: list[int] = []

    def always(handler: Any, number: int) -> bool:
        asked.append(number)
        handler.send_error(502)
        return True

    with serving(tmp_path, always) as url, pytest.raises(DownloadError) as error:
        fgkd.open_cache(url)
    assert not error.value.is_final
    assert len(asked) >= 5
    assert remedy(error.value).startswith("curl -I ")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("status", "passes"),
    [(401, False), (403, False), (404, False), (410, False), (408, True), (429, True), (500, True)],
)
def test_only_what_may_pass_is_asked_for_again(status: int, passes: bool, tmp_path: Path) -> None:
    asked: list[int] = []

    def refuse(handler: Any, number: int) -> bool:
        asked.append(number)
        handler.send_error(status)
        return True

    with serving(tmp_path, refuse) as url, pytest.raises(DownloadError) as error:
        fgkd.open_cache(url)
    assert error.value.is_final != passes
    assert len(asked) == (download.ATTEMPTS if passes else 1)


@pytest.mark.usefixtures("quick")
def test_missing_credentials_are_not_asked_for_again() -> None:
    """The words are botocore's, on a machine without credentials."""
    asked: list[str] = []

    class Bucket(AbstractFileSystem):
        protocol = "bucket"

        def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
            asked.append(rpath)
            raise RuntimeError("Unable to locate credentials")

    fsspec.register_implementation("bucket", Bucket)
    with pytest.raises(DownloadError) as error:
        fgkd.open_cache("bucket://birds/cache")
    assert error.value.is_final
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")]
)
def test_a_protocols_missing_package_is_named(scheme: str, package: str) -> None:
    with pytest.raises(MissingPackage) as error:
        fgkd.open_cache(f"{scheme}://bucket/cache")
    assert error.value.package == package
    assert remedy(error.value) == f"pip install {package}"


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_too_many_open_files_never_advise_deletion(format: str, tmp_path: Path) -> None:
    """At every file that a reader opens, in a process that may have few."""
    cache = write_cache(tmp_path / "cache", format=format)
    code = (
        "import resource, sys, fgkd\n"
        "from fgkd.errors import TooManyOpenFiles, FgkdError\n"
        "import fgkd.cache.hdf5, fgkd.cache.wds\n"
        "reader = fgkd.open_cache(sys.argv[1])\n"
        "held = []\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 4096))\n"
        "try:\n"
        "    while True: held.append(open(sys.argv[1] + '/manifest.json'))\n"
        "except OSError: pass\n"
        "for spare in range(4):\n"
        "    try: reader.arrays_of_view(0)\n"
        "    except TooManyOpenFiles as error: print(error.limit, error.hard_limit)\n"
        "    reader.close(); held.pop().close()\n"
    )
    command = [sys.executable, "-c", code, str(cache)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "40 4096" in found.stdout.splitlines()


def test_the_limit_is_raised_where_the_system_lets_it() -> None:
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000))\n"
        "from fgkd import device\ndevice.set_up('cpu')\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1000", "1000"]


def test_the_remedy_names_a_limit_that_can_be_had() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"path": "x", "limit": 256}
    error = TooManyOpenFiles("x", **facts, hard_limit=4096)
    assert remedy(error).startswith("ulimit -n 1024 ")
    assert "ulimit" not in remedy(TooManyOpenFiles("x", **facts, hard_limit=256))
    assert limit
    assert not issubclass(TooManyOpenFiles, DamagedShard)


def test_a_command_shows_a_retry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.01)
    cache = write_cache(tmp_path / "cache")
    with serving(cache, busy) as url:
        code, out, err = run_command(capsys, "inspect", url)
    assert code == 0, err
    assert "trying again" in err
    assert "training images" in out
