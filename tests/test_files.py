"""A file is complete or absent, whatever stops its writer; a journal loses one line at most."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from pathlib import Path

import pytest
from helpers.errors import expected

from fgkd import files
from fgkd.errors import (
    FileError,
    MissingFile,
    OptionError,
    TooManyOpenFiles,
    UnreadableFile,
    WriteError,
)
from stages.remedies import remedy


@pytest.mark.parametrize("stop", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3)])
def test_a_stopped_writer_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, stop: BaseException
) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")

    def write_half() -> None:
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise stop

    with pytest.raises(type(stop)) as caught:
        write_half()
    assert caught.value is stop
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_failed_write_names_file_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "sub" / "file"
    files.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(WriteError) as caught:
            files.write_text(path, "new")
    assert caught.value.message == f"cannot write {path}: {os.strerror(number)}"
    assert (caught.value.path, caught.value.errno) == (path, number)
    assert remedy(caught.value).startswith(f"df -h {path.parent}")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_content_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real_fsync(fd)

    def replace(old: Path, new: Path) -> None:
        calls.append(f"rename {old.name} {new.name}")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(tmp_path / "f", b"x")
    assert calls == ["fsync f.partial", "rename f.partial f", f"fsync {tmp_path.name}"]


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with expected(WriteError, path=tmp_path / "file" / "below"):
        files.write_text(tmp_path / "file" / "below", "x")


def test_journal_round_trip(tmp_path: Path) -> None:
    path, rows = tmp_path / "sub" / "j", [{"a": 1}, {"é": [1.5, None]}, {"b": "two\nlines"}]
    assert files.read_lines(path) == []
    for row in rows:
        files.append_line(path, row)
    assert files.read_lines(path) == rows
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("cut", range(1, 15))
def test_a_journal_cut_anywhere_in_its_last_line_loses_that_line_alone(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "j"
    for row in ({"step": 1}, {"step": "zwö"}):
        files.append_line(path, row)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert files.read_lines(path) == [{"step": 1}]
    files.append_line(path, {"step": 3})
    last = files.read_lines(path)[-1]
    assert last == {"step": 3}
    assert files.read_lines(path)[0] == {"step": 1}


def test_trim_lines_keeps_order_and_drops_the_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    files.trim_lines(path, lambda row: True)
    assert not path.exists()
    for step in (3, 1, 2):
        files.append_line(path, {"step": step})
    path.write_bytes(path.read_bytes() + b'{"step": 0')
    files.trim_lines(path, lambda row: row["step"] != 1)
    assert path.read_text() == '{"step": 3}\n{"step": 2}\n'


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with expected(MissingFile, path=tmp_path / "x.json"):
        files.read_json(path, "thing")
    files.write_json(path, {"b": 1, "a": "é"})
    assert files.read_json(path, "thing") == {"b": 1, "a": "é"}
    assert list(json.loads(path.read_text())) == ["b", "a"]
    for damaged in (b'{"b": 1', b"\xff\xfe", b""):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFile, match=r"thing .*x\.json is damaged") as caught:
            files.read_json(path, "thing")
        assert caught.value.path == path
        assert caught.value.reason


def test_fingerprint_is_of_the_value_not_of_its_order() -> None:
    one = files.fingerprint({"a": 1, "b": [1.5, "é"]})
    assert one == files.fingerprint({"b": [1.5, "é"], "a": 1})
    assert one != files.fingerprint({"a": 1, "b": [1.5, "e"]})
    assert one == "2bb202b35963ad9e57f87e5828e072cc53f4720ecd10a7d625f850411a31c4c6"


@pytest.mark.parametrize("num", [0, 1, 4096, 4097, 10_000])
def test_json_in_pieces_is_the_whole_text(num: int, tmp_path: Path) -> None:
    """Of a file on one line, and of what a fingerprint is taken of."""
    pairs = [[i, 0.1] for i in range(num)]
    value = {"é": {}, "b": [f'"é{i}' for i in range(num)], "a": {"z": pairs}}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert files.fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()
    files.write_json(tmp_path / "x.json", value, indent=None)
    assert (tmp_path / "x.json").read_text() == json.dumps(value, ensure_ascii=False) + "\n"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert files.sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_human_bytes(n: float, text: str) -> None:
    assert files.human_bytes(n) == text


@pytest.mark.parametrize(
    ("s", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (95, "1m35s"), (3599.6, "1h00m"), (90061, "25h01m")],
)
def test_human_time(s: float, text: str) -> None:
    assert files.human_time(s) == text


def test_numbers_of_a_journal(tmp_path: Path) -> None:
    files.append_line(tmp_path / "j", {"epoch": 1, "loss": 0.5, "stage": "x", "parts": [1]})
    assert files.read_numbers(tmp_path / "j") == [{"epoch": 1, "loss": 0.5}]
    with pytest.raises(UnreadableFile) as caught:
        files.read_lines(tmp_path)
    assert caught.value.reason == "Is a directory"


def test_a_hint_looks_at_a_folder_that_is_there(tmp_path: Path) -> None:
    error = files.write_error(tmp_path / "no" / "such" / "file", OSError(errno.EROFS, "read-only"))
    assert remedy(error).startswith(f"df -h {tmp_path};")
    (tmp_path / "x.partial").mkdir()
    with expected(WriteError, errno=errno.EISDIR) as caught:
        files.write_text(tmp_path / "x", "new")
    assert "move away what is in the way" in remedy(caught.value)


@pytest.mark.parametrize(
    "begin", [b"", b'[\n {\n  "run": "a"', b'{"image": "a.jpg"', b'[{"cache": ', b'{\n "images":']
)
def test_results_are_replaced(tmp_path: Path, begin: bytes) -> None:
    (tmp_path / "x.json").write_bytes(begin)
    files.claim_option(str(tmp_path / "x.json"), "json")


@pytest.mark.parametrize(
    "begin", [b"\x89PNG", b'{"stage": "train-teacher"', b'{"identity": {"run": 1}', b"runs"]
)
def test_other_files_are_not_replaced_by_results(tmp_path: Path, begin: bytes) -> None:
    """A slip such as `--json runs/student/run.json`."""
    path = tmp_path / "x.json"
    path.write_bytes(begin)
    with expected(OptionError, option="json", value=str(path)):
        files.claim_option(str(path), "json")
    assert path.read_bytes() == begin


def test_a_device_a_pipe_and_a_link_are_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "elsewhere")
    for path in (pipe, link, Path("/dev/null")):
        with expected(OptionError, option="json", value=str(path)):
            files.claim_option(str(path), "json")
    with expected(WriteError, path=pipe):
        files.write_text(pipe, "x")
    assert pipe.is_fifo()


def test_what_the_system_says_is_explained() -> None:
    gone = files.explain(OSError(errno.EROFS, "Read-only file system", "/a/b"))
    assert isinstance(gone, FileError)
    assert gone.path == "/a/b"
    full = files.explain(OSError(errno.EMFILE, "Too many open files"))  # of os.pipe: no name
    assert isinstance(full, TooManyOpenFiles)
    assert (full.limit, full.hard_limit) == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files.explain(OSError(errno.EROFS, "Read-only file system")) is None
    assert files.explain(OSError(errno.EINVAL, "Invalid argument", "/a/b")) is None
    assert files.explain(ValueError("no file")) is None


@pytest.mark.parametrize("url", ["s3://b/c", "gs://b/c d", "https://host:1/c", "hf://datasets/a/b"])
def test_a_url_in_a_path_is_the_url_again(url: str) -> None:
    """pathlib makes one slash of two."""
    assert files.text_of(Path(url)) == files.text_of(url) == url
    assert files.paths([Path(url), url]) == [url, url]
    for local in ("/data/s3:/x", "folder:/data/x", "s3:x", "./s3:", "C:/x"):
        assert files.text_of(Path(local)) == str(Path(local))
