"""What the adapters of listed datasets share: finding files, reading "id value" lists, columns."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgkd.data.samples import BoxReader, Samples
from fgkd.errors import FgkdError, quoted


def require_dir(path: Path, layout: str) -> None:
    """Raises: FgkdError naming the folder and the expected layout if it does not exist."""
    if not path.is_dir():
        raise FgkdError(f"no folder {path}; expected {layout}", f"ls {quoted(path.parent)}")


def find_file(root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of `names` that exists under `root`.

    Raises: FgkdError naming the files looked for and the expected layout.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FgkdError(f"no {' or '.join(names)} in {root}; expected {layout}", f"ls {quoted(root)}")


def read_text(path: Path) -> list[str]:
    """The lines of a UTF-8 text file. Raises: FgkdError naming a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise FgkdError(f"cannot read {path}: {error}", f"head -c 300 {quoted(path)}") from None


def read_table(path: Path, id_pattern: str = r"\d+") -> dict[str, str]:
    """The lines "id value" of a text file; a value may hold spaces.

    Raises: FgkdError naming file and line of anything else.
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


def bad_line(path: Path, number: int, line: str, expected: str) -> FgkdError:
    """The error for line `number` (from 1) of a list."""
    return FgkdError(
        f"{path}, line {number}: expected {expected}, found {line.strip()!r}",
        f"sed -n {number}p {quoted(path)}",
    )


def make_samples(
    root: Path, keys: list[str], labels: Sequence[int], box_reader: BoxReader | None = None
) -> Samples:
    """The columns of one split of a dataset with one domain.

    keys: POSIX paths relative to `root`; labels: 0-based; box_reader: of `boxes`, or None.
    Raises: FgkdError for a split without images, a repeated key, or one that leaves `root`.
    """
    if not keys:
        raise FgkdError(f"the lists of {root} leave a split without images", f"ls {quoted(root)}")
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise FgkdError(
            f"the lists of {root} name {twice!r} twice", f"grep -rn {quoted(twice)} {quoted(root)}"
        )
    top = os.path.abspath(root)
    for key in keys:
        _check_key(top, key)
    domains = np.zeros(len(keys), np.int64)
    paths = [f"{top}/{key}" for key in keys]
    return Samples(keys, np.asarray(labels, np.int64), domains, paths, box_reader=box_reader)


def _check_key(root: str, key: str) -> None:
    """Raises: FgkdError unless `key` is a plain relative path of UTF-8 text."""
    parts = key.replace("\\", "/").split("/")  # a backslash separates, too, on Windows
    is_text = key.encode(errors="ignore").decode() == key and "\0" not in key
    if not is_text or not parts[0] or ".." in parts:  # an absolute path has an empty first part
        raise FgkdError(
            f"unsafe file name {key!r} in dataset {root}: it must be a path inside that folder",
            f"ls -R {quoted(root)}",
        )
