"""Files that are whole or absent: atomic writes, hashes, journals, sizes for people."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgkd.errors import FgkdError, quoted

PARTIAL = ".partial"
PIECE = 4096  # entries of a list in JSON
# How every --json of the stages begins, by its first key; or a file is empty.
RESULTS = re.compile(rb'\s*(\[\s*)?\{\s*"(run|cache|image|samples|images)":|$')


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` survive a power cut (a no-op where folders cannot be synced)."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def claim(path: Path) -> None:
    """Make sure, before any work, that a file can be written: its folder is there, it is no folder.

    A device or a pipe is refused too: the rename would put a file in its place. Raises: OSError.
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
    """`claim` the file of results that an option names, if it does; only such a one is replaced.

    Raises: FgkdError.
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
        what = f"{option} {path} cannot be written: {error.strerror}"
        raise FgkdError(what, f"{option} runs/NAME.json") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a `*.partial` path to write; fsync and rename it to `path` if the body succeeds.

    Raises: FgkdError naming the file when the folder is read-only or the disk is full.
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


def write_error(path: Path, error: OSError) -> FgkdError:
    """The user's view of a failed write: which file, why, and what to do."""
    folder = quoted(next(p for p in path.parents if os.path.isdir(p)))  # to look at, so one that is
    remedy = f"df -h {folder}; ls -ld {folder}   # free space or permissions, then run again"
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        remedy = f"ls -la {folder}   # move away what is in the way, then run again"
    return FgkdError(f"cannot write {path}: {error.strerror or error}", remedy)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON atomically; key order is the caller's. indent None: on one line, in pieces."""
    if indent is not None:
        write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
        return
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(_json_pieces(value))
        file.write("\n")


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
    """Parse a JSON file. Raises: FgkdError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FgkdError(f"no {what} at {path}", f"ls {quoted(path.parent)}") from None
    except (ValueError, OSError) as error:
        raise FgkdError(
            f"{what} {path} is damaged: {error}", f"head -c 300 {quoted(path)}"
        ) from None


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line and fsync it; a line is in the journal whole or not at all."""
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The journal's rows; a last line that a crash cut short is left out. Missing file: no rows."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FgkdError(f"cannot read {path}: {error.strerror}", f"ls -ld {quoted(path)}") from None
    rows = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):  # a line cut inside a character is not UTF-8 either
            row = json.loads(line.decode())
            if isinstance(row, dict):
                rows.append(row)
    return rows


def read_numbers(path: Path) -> list[dict[str, float]]:
    """The journal's rows without what is no number: another program's file has none to show."""
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float)}
        for row in read_lines(path)
    ]


def trim_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a journal with only the rows to keep, in their order."""
    if path.exists():
        rows = [row for row in read_lines(path) if keep(row)]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def claim_folder(path: Path, *, overwrite: bool, may_continue: bool, resume: bool = True) -> None:
    """Make sure that an output folder may be written: absent, empty, ours to continue, or moved.

    resume: whether the command has --resume. Raises: FgkdError naming the remedies when the
    folder exists and none was asked for.
    """
    if not str(path) or str(path) == ".":
        raise FgkdError("no output folder given", "--output runs/NAME")
    if path.exists() and not path.is_dir():
        raise FgkdError(f"--output {path} is a file", "--output runs/NAME")
    try:
        is_empty = not path.is_dir() or all(p.name.endswith(PARTIAL) for p in path.iterdir())
        if not (is_empty or may_continue or overwrite):
            raise FgkdError(
                f"--output {path} exists and is not empty",
                "--resume to continue it, " * resume
                + f"--overwrite to move it to {aside(path)}, or another --output",
            )
        if overwrite and not is_empty:
            os.replace(path, aside(path))
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise write_error(path, error) from error


def aside(path: Path) -> Path:
    """The first free `NAME.oldN` beside a path, for what --overwrite moves away."""
    number = 1
    while (free := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return free
