"""Atomic file writes, JSON and journals, hashes, and sizes and times in readable form."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgkd.errors import (
    FileError,
    MissingFile,
    MissingOption,
    NotLocal,
    OptionError,
    OutputExists,
    TooManyOpenFiles,
    UnreadableFile,
    WriteError,
)

PathLike = str | os.PathLike[str]
# What `Path("s3://bucket")` is as text: pathlib makes one slash of two.
SHORTENED_URL = re.compile(r"^(s3|gs|gcs|az|abfs|https?|hf|s?ftp|hdfs):/(?=[^/])")

PARTIAL = ".partial"
OPEN_FILES = 65_536  # that a process allows itself, where the system lets it
PIECE = 4096  # entries of a list in JSON
# How a file of results of fgkd begins, by its first key; or a file is empty.
RESULTS = re.compile(rb'\s*(\[\s*)?\{\s*"(run|cache|image|samples|images)":|$')


def text_of(path: PathLike) -> str:
    """A path as text, as `os.fspath`; a URL in a `Path` is the URL again."""
    text = os.fspath(path)
    return text if isinstance(path, str) else SHORTENED_URL.sub(r"\1://", text)


def paths(given: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several as text; a run or cache that a function returned is its path."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [text_of(path) for path in several]


def is_url(where: str) -> bool:
    """Whether a place is a URL that fsspec opens, and not a path."""
    return "://" in where


def is_text(name: str) -> bool:
    """Whether a name or path can be written as UTF-8: file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def local_path(where: str | Path) -> Path:
    """A path with the home folder in the place of `~`. Raises: NotLocal for a URL."""
    if is_url(str(where)):
        raise NotLocal(f"{where} is a URL, not a path on this machine", path=where)
    return Path(where).expanduser()


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` survive a power cut (a no-op where folders cannot be synced)."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def claim(path: Path) -> None:
    """Check before any work that a file can be written, and create its folder.

    A folder is refused, and so is a device or a pipe, since the rename would replace it. Raises:
    OSError.
    """
    for file in (path, path.with_name(path.name + PARTIAL)):
        if file.is_dir():
            raise IsADirectoryError(21, "it is a folder" if file == path else f"{file} is a folder")
    if path.exists() and not path.is_file():
        raise FileExistsError(17, "it is no regular file")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "permission denied")


def free(path: Path) -> tuple[int, Path]:
    """Free bytes of the disk that a path is on or will be, and the nearest folder that exists."""
    path = path.resolve()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free, existing


def claim_option(path: str | None, option: str) -> None:
    """`claim` the file of results that an option names, if it is given.

    Only a file that holds results of fgkd may be overwritten. Raises: OptionError.
    """
    if not path:
        return
    try:
        claim(Path(path))
        if os.path.islink(path):
            raise FileExistsError(17, "it is a symbolic link")
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if not RESULTS.match(file.read(100)):
                raise FileExistsError(17, "it is there, and holds no results of fgkd")
    except OSError as error:
        raise OptionError(
            f"{option} {path} cannot be written: {error.strerror}",
            option=option,
            value=path,
            suggestion="runs/NAME.json",
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a `*.partial` path to write; fsync and rename it to `path` if the body succeeds.

    Raises: WriteError, for example when the folder is read-only or the disk is full.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        claim(path)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_dir(path.parent)
    except OSError as error:
        _discard(partial)
        raise write_error(path, error) from error
    except BaseException:
        _discard(partial)
        raise


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def write_error(path: Path, error: OSError) -> WriteError:
    """The error for a failed write of a file."""
    reason = str(error.strerror or error)
    return WriteError(
        f"cannot write {path}: {reason}", path=path, reason=reason, errno=error.errno or 0
    )


# Failures of the system, which say nothing about a file's content.
TRANSIENT = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM, errno.EAGAIN)
) | {errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.ENOTCONN, errno.EINTR}
TOO_MANY = (errno.EMFILE, errno.ENFILE)  # open files

OF_A_DISK = frozenset(
    (errno.EDQUOT, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EROFS)
)


def is_transient(error: BaseException) -> bool:
    """Whether a read failed because of the system, and not because of what the file holds."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in TRANSIENT
    )


def explain(error: Exception) -> FileError | None:
    """What the system says about a file, as an FgkdError; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in OF_A_DISK | TRANSIENT:
        return None
    if error.errno in TOO_MANY:  # without a name where a worker was to be started
        return read_error(error.filename or "a pipe to a worker process", error)
    if not error.filename:
        return None
    said = f"{error.filename}: {error.strerror}"
    return FileError(said, path=error.filename, reason=str(error.strerror))


def read_error(path: Path | str, error: BaseException) -> UnreadableFile:
    """The error for a file that the system does not let us read."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error) or "too little memory"
    message = f"cannot read {path}: {reason}"
    if number not in TOO_MANY:
        return UnreadableFile(message, path=path, reason=reason)
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message += f" (the limit of this process is {limit})"
    return TooManyOpenFiles(message, path=path, reason=reason, limit=limit, hard_limit=hard)


def raise_open_files_limit() -> None:
    """Allow this process as many open files as the system lets it have."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON atomically; key order is the caller's. indent None: on one line, in pieces."""
    if indent is not None:
        write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
        return
    write_pieces(path, itertools.chain(_json_pieces(value), "\n"))


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a UTF-8 file atomically, from parts of its text that need not be in memory at once."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(pieces)


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form: keys sorted, no spaces, UTF-8."""
    found = hashlib.sha256()
    for text in _json_pieces(value, sort_keys=True, separators=(",", ":")):
        found.update(text.encode())
    return found.hexdigest()


def _json_pieces(value: Any, **how: Any) -> Iterator[str]:
    """json.dumps(value, **how) in parts: of a column of a million entries it would be large.

    The keys of dicts are strings.
    """
    comma, colon = how.get("separators", (", ", ": "))
    if isinstance(value, dict):
        for i, key in enumerate(sorted(value) if how.get("sort_keys") else value):
            yield (comma if i else "{") + json.dumps(key, ensure_ascii=False) + colon
            yield from _json_pieces(value[key], **how)
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple) and len(value) > PIECE:
        for start in range(0, len(value), PIECE):
            part = json.dumps(value[start : start + PIECE], ensure_ascii=False, **how)
            yield (comma if start else "[") + part[1:-1]
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False, **how)


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file. Raises: MissingFile, or UnreadableFile if it cannot be parsed."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingFile(f"no {what} at {path}", path=path) from None
    except (ValueError, OSError, RecursionError) as error:
        message = f"{what} {path} is damaged: {error}"
        raise UnreadableFile(message, path=path, reason=str(error)) from None


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line and fsync it; a reader sees the full line or none of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:  # close a line that a crash cut short, so that it cannot swallow this one
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


Row = dict[str, Any]  # of a journal
Rows = list[Row]


def read_lines(path: Path) -> Rows:
    """The journal's rows, without a last line that a crash cut short; none if there is no file."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = str(error.strerror)
        raise UnreadableFile(f"cannot read {path}: {reason}", path=path, reason=reason) from None
    rows = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):  # a line cut inside a character is not UTF-8 either
            row = json.loads(line.decode())
            if isinstance(row, dict):
                rows.append(row)
    return rows


def read_numbers(path: Path) -> list[dict[str, float]]:
    """The journal's rows, reduced to the values that are numbers."""
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float)}
        for row in read_lines(path)
    ]


def trim_lines(
    path: Path, keep: Callable[[Row], bool], change: Callable[[Rows], Rows] = list
) -> None:
    """Rewrite a journal with only the rows to keep, in their order; change: what to make of it."""
    if path.exists():
        rows = [row for row in change(read_lines(path)) if keep(row)]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content. Raises: UnreadableFile."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise read_error(path, error) from error


def as_typed(path: Path) -> Path:
    """The path as one would type it here: relative where it lies below the current folder."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path


def human_bytes(n: float) -> str:
    """`1536 -> '1.5 KiB'`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def human_time(seconds: float) -> str:
    """`3723 -> '1h02m'`, `95 -> '1m35s'`, `7 -> '7s'`."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 60}m{s % 60:02d}s" if s >= 60 else f"{s}s"


def matches(value: Any, parts: Any) -> bool:
    """Whether a JSON value has the parts of a template: dicts, lists of one kind, types."""
    if isinstance(parts, dict):
        return isinstance(value, dict) and all(
            name in value and matches(value[name], part) for name, part in parts.items()
        )
    if isinstance(parts, list):
        if not isinstance(value, list):
            return False
        if isinstance(parts[0], type):  # long columns, so no loop in Python
            return set(map(type, value)) <= ({int, float} if parts[0] is float else {parts[0]})
        return all(matches(item, parts[0]) for item in value)
    return parts is Any or matches([value], [parts])


# Files of which one is in every folder that fgkd writes, from its first moments on.
OWN = ("args.yaml", "run.json", "identity.json", "manifest.json", "samples.h5")


def claim_folder(
    path: Path,
    *,
    overwrite: bool,
    may_continue: bool,
    resume: bool = True,
    inputs: Sequence[str] = (),
) -> None:
    """Check that an output folder may be written, and create it.

    It may be absent, empty, continued, or renamed if it may be overwritten and fgkd wrote it.
    resume: whether what is in it could be continued on request. inputs: what the command reads, as
    paths or NAME:PATH; none may be the folder or lie in it. Raises: MissingOption, OptionError,
    OutputExists, WriteError.
    """
    if not str(path) or str(path) == ".":
        raise MissingOption("no output folder given", option="output", suggestion="runs/NAME")
    if path.exists() and not path.is_dir():
        raise OptionError(
            f"output {path} is a file", option="output", value=path, suggestion="runs/NAME"
        )
    try:
        is_empty = not path.is_dir() or all(p.name.endswith(PARTIAL) for p in path.iterdir())
        if not (is_empty or may_continue):
            _refuse_foreign(path, inputs, overwrite)
        if not (is_empty or may_continue or overwrite):
            message = f"output {path} exists and is not empty"
            own = _is_own(path)
            renamed = free_name(path) if own else None
            raise OutputExists(message, path=path, resumable=resume and own, renamed=renamed)
        if overwrite and not is_empty:
            os.replace(path, free_name(path))
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise write_error(path, error) from error


def _is_own(path: Path) -> bool:
    """Whether fgkd wrote a folder."""
    return any((path / name).exists() for name in OWN)


def _refuse_foreign(path: Path, inputs: Sequence[str], overwrite: bool) -> None:
    """Raise OptionError for a folder of other files than fgkd's, or with an input in it."""
    problem = ""
    for given in inputs:
        place = Path(given if Path(given).exists() else given.partition(":")[2] or given)
        if place.exists() and place.resolve().is_relative_to(path.resolve()):
            problem = f"output {path} holds {given}, which this command reads"
    if not problem and overwrite and not _is_own(path):
        problem = f"output {path} holds files that fgkd did not write"
    if problem:
        raise OptionError(problem, option="output", value=path, suggestion="runs/NAME")


def free_name(path: Path) -> Path:
    """The first free `NAME.oldN` next to a path: what it is renamed to when overwritten."""
    number = 1
    while (free := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return free
