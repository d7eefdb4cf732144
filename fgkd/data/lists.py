"""Reading the list files of datasets: finding them, their lines, and the samples they name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgkd.data.samples import BoxReader, Samples
from fgkd.errors import DatasetError, MissingFile, UndecodableName, UnreadableFile
from fgkd.files import is_text


def require_dir(path: Path, layout: str) -> None:
    """Raise MissingFile, with the expected layout, if a folder does not exist."""
    if not path.is_dir():
        raise MissingFile(f"no folder {path}; expected {layout}", path=path)


def find_file(root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of `names` that exists under `root`.

    Raises: DatasetError with the expected layout.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    message = f"no {' or '.join(names)} in {root}; expected {layout}"
    raise DatasetError(message, path=root)


def read_text(path: Path) -> list[str]:
    """The lines of a UTF-8 text file. Raises: UnreadableFile."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", path=path, reason=str(error)) from None


def read_table(path: Path, id_pattern: str = r"\d+") -> dict[str, str]:
    """The lines "id value" of a text file; a value may hold spaces.

    Raises: DatasetError with file and line of anything else.
    """
    table = {}
    for number, line in enumerate(read_text(path), start=1):
        if not line.strip():
            continue
        id_, _, value = line.strip().partition(" ")
        if not re.fullmatch(id_pattern, id_) or not value.strip() or id_ in table:
            raise bad_line(path, number, line, "a new '<id> <value>'")
        table[id_] = value.strip()
    return table


def bad_line(path: Path, number: int, line: str, expected: str) -> DatasetError:
    """The error for line `number` (from 1) of a list."""
    message = f"{path}, line {number}: expected {expected}, found {line.strip()!r}"
    return DatasetError(message, path=path, line=number)


def make_samples(
    root: Path, keys: list[str], labels: Sequence[int], box_reader: BoxReader | None = None
) -> Samples:
    """The columns of one split of a dataset with one domain.

    keys: POSIX paths relative to `root`; labels: 0-based; box_reader: of `boxes`, or None.
    Raises: DatasetError for a split without images, a repeated key, or one that leaves `root`.
    """
    if not keys:
        raise DatasetError(f"the lists of {root} leave a split without images", path=root)
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        message = f"the lists of {root} name {twice!r} twice"
        raise DatasetError(message, path=root, pattern=twice)
    top = os.path.abspath(root)
    for key in keys:
        _check_key(top, key)
    domains = np.zeros(len(keys), np.int64)
    paths = [f"{top}/{key}" for key in keys]
    return Samples(keys, np.asarray(labels, np.int64), domains, paths, box_reader=box_reader)


def _check_key(root: str, key: str) -> None:
    """Raise DatasetError unless `key` is a relative path inside `root`, of UTF-8 text."""
    parts = key.replace("\\", "/").split("/")  # a backslash separates, too, on Windows
    if not is_text(key):
        message = f"the file name {key!r} in dataset {root} is not UTF-8 text"
        raise UndecodableName(message, path=root, key=key)
    if not parts[0] or ".." in parts:  # an absolute path has an empty first part
        message = (
            f"unsafe file name {key!r} in dataset {root}: it must be a path inside that folder"
        )
        raise DatasetError(message, path=root)
