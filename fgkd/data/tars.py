"""Tars in WebDataset's layout as a dataset: `train-*.tar`, and `val-*.tar` and `test-*.tar`.

A sample is the members `<stem>.jpg` (or jpeg, png, webp) and `<stem>.cls`, a number; others, as
`<stem>.json`, are passed over. Images are read at their places inside the tars; nothing is
extracted. Tars are untrusted: they are read forwards alone, and links are refused.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fgkd.data.lists import make_samples, read_text
from fgkd.data.samples import Dataset, Place
from fgkd.errors import DatasetError, UnreadableFile

LAYOUT = "train-*.tar (and val-*.tar, test-*.tar) of <stem>.jpg and <stem>.cls"
SPLITS = ("train", "val", "test")
IMAGES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512  # bytes of a member's header, and what its content is padded to
PAX = re.compile(rb"([0-9]{1,9}) ([^=]{1,100})=")
MAX_CLS = 20  # bytes of a label's text

Row = tuple[str, str, Place]  # key, label as text, image


def load(root: Path) -> Dataset:
    """The dataset of a folder of tars. Keys are `<tar>/<stem>.<suffix>`.

    Class i is line i of classes.txt; without that file classes are the numbers in the tars, in
    order. Raises: UnreadableFile for a damaged tar or a sample without image or label;
    DatasetError.
    """
    tars = {split: sorted(root.glob(f"{split}-*.tar")) for split in SPLITS}
    if not any(tars.values()):
        raise DatasetError(f"no tars of a split in {root}; expected {LAYOUT}", path=root)
    rows = {
        split: [row for path in paths for row in _samples(path)]
        for split, paths in tars.items()
        if paths
    }
    classes, label_of = _classes(root, {label for part in rows.values() for _, label, _ in part})
    splits = {}
    for split, part in rows.items():
        for key, text, _ in part:
            if int(text) not in label_of:
                what = f"{root}/{key} has label {text}, but classes.txt has {len(classes)} lines"
                raise DatasetError(what, path=root / "classes.txt")
        labels = [label_of[int(text)] for _, text, _ in part]
        samples = make_samples(root, [key for key, _, _ in part], labels)
        splits[split] = replace(samples, places=[place for _, _, place in part])
    return Dataset("webdataset", classes, ["webdataset"], splits)


def _classes(root: Path, texts: set[str]) -> tuple[list[str], dict[int, int]]:
    """Class names, and number -> label."""
    path = root / "classes.txt"
    if not path.exists():
        numbers = sorted({int(text) for text in texts})
        return [str(n) for n in numbers], {n: label for label, n in enumerate(numbers)}
    names = [line.strip() for line in read_text(path)]
    while names and not names[-1]:
        names.pop()
    if not all(names) or len(set(names)) < len(names):
        what = f"{path} has an empty line, or a name twice; expected a class name a line"
        raise DatasetError(what, path=path)
    return names, {label: label for label in range(len(names))}


def _samples(path: Path) -> list[Row]:
    """The samples of one tar, in its order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name, offset, size in _members(data):
                folder, slash, file_name = name.rpartition("/")
                stem, _, suffix = file_name.partition(".")  # as WebDataset: at the first dot
                kind = suffix.lower()
                if kind in (*IMAGES, "cls"):
                    parts = found.setdefault(folder + slash + stem, {})
                    if kind in parts:
                        raise ValueError(f"{name} is there twice")
                    parts[kind] = offset, size
            return [_row(path, data, stem, parts) for stem, parts in found.items()]
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", path=path, reason=str(error)) from None


def _row(path: Path, data: mmap.mmap, stem: str, parts: dict[str, tuple[int, int]]) -> Row:
    kinds = [kind for kind in parts if kind != "cls"]
    if len(kinds) != 1 or len(parts) != 2:
        raise ValueError(f"sample {stem!r} has {', '.join(parts)}; expected an image and a cls")
    offset, size = parts["cls"]
    text = data[offset : offset + min(size, MAX_CLS + 1)].decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or size > MAX_CLS:
        raise ValueError(f"{stem}.cls is {text!r}, not a number from 0")
    place = (str(path.absolute()), *parts[kinds[0]])
    return f"{path.name}/{stem}.{kinds[0]}", text, place


def _members(data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the plain files of a tar: ustar, with GNU's and pax's long names.

    Python's tarfile follows links, sparse maps and sizes that point backwards. Raises: ValueError.
    """
    at, long_name = 0, ""
    while any(block := data[at : at + BLOCK]):
        if len(block) != BLOCK:
            raise ValueError("it is truncated")
        total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
        if _octal(block[148:156], at) != total:
            raise ValueError(f"the header at byte {at} is damaged")
        kind, size = block[156:157], _octal(block[124:136], at)
        start = at + BLOCK
        at = start + -(-size // BLOCK) * BLOCK
        if at > len(data):
            raise ValueError("it is truncated")
        if kind == b"L":
            long_name = _text(data[start : start + size])
        elif kind == b"x":
            long_name = _pax_path(data[start : start + size]) or long_name
        elif kind in (b"0", b"\0"):
            yield long_name or _name(block), start, size
            long_name = ""
        elif kind in (b"5", b"g"):  # a folder, or pax's words on the whole archive
            long_name = ""
        else:
            raise ValueError(f"{long_name or _name(block)} is a link or a special file")
    if len(block) != BLOCK:
        raise ValueError("it is truncated: it does not end in a block of zeros")


def _octal(field: bytes, at: int) -> int:
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", text):
        raise ValueError(f"the header at byte {at} is damaged")
    return int(text, 8)


def _name(block: bytes) -> str:
    """A header's name; ustar (not GNU) may hold its beginning in another field."""
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode()


def _pax_path(records: bytes) -> str:
    """The path of pax records, each "<length> <key>=<value>\\n"; a size of their own is refused."""
    path, at = "", 0
    while at < len(records):
        found = PAX.match(records, at)
        length = int(found[1]) if found else 0
        record = records[at : at + length]
        if not found or record[-1:] != b"\n" or len(record) != length:
            raise ValueError("it has damaged pax records")
        if found[2] == b"size" or found[2].startswith(b"GNU.sparse"):
            raise ValueError("it has members over 8 GiB, or sparse ones")
        if found[2] == b"path":
            path = record[found.end() - at : -1].decode()
        at += length
    return path
