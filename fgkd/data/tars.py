"""Tars in WebDataset's layout as a dataset: in a folder, or by a pattern or URL with braces.

The spec is `webdataset:FOLDER`, whose tars' names say their splits (`train-*.tar`, `val/0.tar`), or
`webdataset:PATTERN`, as `/data/birds-{000..011}.tar`, `/data/*.tar`, `https://host/t-{0..9}.tar`;
`val=PATTERN` and `test=PATTERN` are options for other splits.

A sample is an image `<stem>.jpg` (or another suffix that is decoded) and its label: a number or a
name in `<stem>.cls`, or in `<stem>.txt`, or in `<stem>.json` at the key `label_key`. Images are
read at their places inside the tars; nothing is extracted. Tars are untrusted: they are read
forwards alone, and links are refused.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fgkd import files
from fgkd.data import folder
from fgkd.data.csv_file import SPLIT_OF
from fgkd.data.lists import make_samples, read_text
from fgkd.data.samples import Dataset, Place
from fgkd.download import download, home, log, require_fsspec
from fgkd.errors import DatasetError, MissingDataset, OptionError, UnreadableFile, near
from fgkd.packages import require

LAYOUT = "train-*.tar (and val-*.tar, test-*.tar) of <stem>.jpg and <stem>.cls"
SPLITS = ("train", "val", "test")
LABELS = ("cls", "txt", "json")  # the first that is there, unless a key of the json is given
BLOCK = 512  # bytes of a member's header, and what its content is padded to
PAX = re.compile(rb"([0-9]{1,9}) ([^=]{1,100})=")
MAX_LABEL, MAX_JSON = 200, 1 << 20  # bytes
NUMBER = re.compile(r"[0-9]{1,9}")
NO_LABEL = ("", "-1")
NONE: Mapping[str, str] = {}

Row = tuple[str, str, Place]  # key, label as text, image


def load(where: str | Path, options: Mapping[str, str] = NONE) -> Dataset:
    """The dataset of a folder of tars, or of a pattern. Keys are `<tar>/<stem>.<suffix>`.

    Labels that are numbers are line numbers of classes.txt beside the tars, from 0; without that
    file classes are the labels, in order. `-1` and an empty label are none. A URL's tars are
    downloaded once, into `$FGKD_HOME/webdataset`. Raises: MissingDataset; DownloadError;
    UnreadableFile for a damaged tar or a sample without image or label; DatasetError.
    """
    tars, notes = _tars(str(where))
    for split in ("val", "test"):
        if pattern := options.get(split):
            tars[split] = _expanded(pattern)
    if not tars:
        raise DatasetError(f"no tars in {where}; expected {LAYOUT}", path=where)
    root = Path(os.path.commonpath([path.parent for path in next(iter(tars.values()))]))
    rows = {split: _rows(paths, options.get("label_key")) for split, paths in tars.items()}
    classes, label_of = _classes(root, {text for part in rows.values() for _, text, _ in part})
    splits = {}
    for split in [split for split in SPLITS if split in rows]:
        part = rows[split]
        for key, text, _ in part:
            if text not in label_of and text not in NO_LABEL:
                what = f"{root}/{key} has label {text}, but classes.txt has {len(classes)} lines"
                raise DatasetError(what, path=root / "classes.txt")
        labels = [label_of.get(text, -1) for _, text, _ in part]
        samples = make_samples(root, [key for key, _, _ in part], labels)
        splits[split] = replace(samples, places=[place for _, _, place in part])
    return Dataset("webdataset", classes, ["webdataset"], splits, notes=notes)


def _tars(where: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The tars of each split, and notes on what is not read."""
    if files.is_url(where) or not os.path.isdir(where):
        paths, top = _expanded(where), ""
    else:
        paths = sorted([*Path(where).glob("*.tar"), *Path(where).glob("*/*.tar")])
        top = where
    found: dict[str, list[Path]] = {}
    others = list[Path]()
    for path in paths:
        name = os.path.relpath(path, top) if top else path.name
        words = re.findall(r"[^\W\d_]+", name.casefold())
        split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)
        (found.setdefault(split, []) if split else others).append(path)
    if not found and others:
        return {"train": others}, []
    names = ", ".join(path.name for path in others[:3])
    return found, [
        f"not read: {len(others)} tars without a split in their name, as {names}"
    ] * bool(others)


def _expanded(pattern: str) -> list[Path]:
    """The tars of a pattern of braces and wildcards, in order.

    Raises: MissingDataset; OptionError for a URL with wildcards, or of a folder.
    """
    if files.is_url(pattern):
        _, slash, name = pattern.partition("://")[2].rpartition("/")
        is_file = bool(slash) and "." in name
        if "*" in pattern or not is_file:
            message = f"a URL names each tar, as train-{{000..011}}.tar does: {pattern}"
            tars = pattern if is_file else f"{pattern.rstrip('/')}/train-*.tar"
            braces = f"webdataset:{tars.replace('*', '{000..011}')}"
            raise OptionError(message, option="data", value=pattern, suggestion=(braces,))
    names = [pattern]
    if "{" in pattern:
        require("braces in a path", "braceexpand")
        from braceexpand import braceexpand

        try:
            names = list(braceexpand(pattern))
        except ValueError:  # unbalanced
            names = []
    if files.is_url(pattern):
        return _downloaded(names)
    found = []
    for name in names:
        here = [name] if os.path.isfile(name) else sorted(glob.glob(name))
        if not here:
            raise MissingDataset(f"no tar {name}", path=name, dataset="webdataset")
        found += [Path(one).absolute() for one in here]
    if not found:
        raise MissingDataset(f"no tar {pattern}", path=pattern, dataset="webdataset")
    return found


def _downloaded(urls: Sequence[str]) -> list[Path]:
    """Local copies of files behind URLs, kept for the next time."""
    require_fsspec(urls[0])
    paths = []
    for url in urls:
        folder_url, _, name = url.rpartition("/")
        to = home() / "webdataset" / hashlib.sha256(folder_url.encode()).hexdigest()[:16]
        if not (to / name).exists():
            log.warning("downloading %s to %s", url, to)
            to.mkdir(parents=True, exist_ok=True)
            with files.replacing(to / name) as partial:
                download(url, partial)
        paths.append(to / name)
    return paths


def _classes(root: Path, texts: set[str]) -> tuple[list[str], dict[str, int]]:
    """Class names, and label as text -> label."""
    texts = texts - set(NO_LABEL)
    is_numbers = all(NUMBER.fullmatch(text) for text in texts)
    path = root / "classes.txt"
    if not path.exists():
        ordered = sorted({int(text) for text in texts}) if is_numbers else sorted(texts)
        names = list(map(str, ordered))
    else:
        names = [line.strip() for line in read_text(path)]
        while names and not names[-1]:
            names.pop()
        if not all(names) or len(set(names)) < len(names):
            what = f"{path} has an empty line, or a name twice; expected a class name a line"
            raise DatasetError(what, path=path)
    label_of = {name: label for label, name in enumerate(names)}
    if is_numbers:
        place = label_of if not path.exists() else {str(i): i for i in range(len(names))}
        label_of = {t: place[str(int(t))] for t in texts if str(int(t)) in place}
    return names, label_of


def _rows(paths: Sequence[Path], label_key: str | None) -> list[Row]:
    """The samples of a split's tars, in order."""
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        row
        for path in paths
        for row in _samples(path, path.relative_to(root).as_posix(), label_key)
    ]


@functools.cache
def _image_kinds() -> frozenset[str]:
    return frozenset(suffix.lstrip(".") for suffix in folder.suffixes())


def _samples(path: Path, name: str, label_key: str | None) -> list[Row]:
    """The samples of one tar, in its order. name: of the tar in keys."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for member, offset, size in _members(data):
                above, slash, file_name = member.rpartition("/")
                stem, _, suffix = file_name.partition(".")  # as WebDataset: at the first dot
                kind = suffix.lower()
                if kind in _image_kinds() or kind in LABELS:
                    parts = found.setdefault(above + slash + stem, {})
                    if kind in parts:
                        raise ValueError(f"{member} is there twice")
                    parts[kind] = offset, size
            rows = []
            for stem, parts in found.items():
                kinds = [kind for kind in parts if kind not in LABELS]
                if not kinds and set(parts) <= {"txt", "json"}:
                    continue  # a note on the whole
                if len(kinds) != 1:
                    there = ", ".join(parts)
                    raise ValueError(f"sample {stem!r} has {there}; expected an image and a label")
                place = (str(path.absolute()), *parts[kinds[0]])
                text = _label(data, stem, parts, label_key)
                rows.append((f"{name}/{stem}.{kinds[0]}", text, place))
            return rows
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", path=path, reason=str(error)) from None


def _label(
    data: mmap.mmap, stem: str, parts: Mapping[str, tuple[int, int]], label_key: str | None
) -> str:
    """The label of a sample, as text. Raises: ValueError."""
    kind = "json" if label_key else next((kind for kind in LABELS if kind in parts), "cls")
    if kind not in parts:
        raise ValueError(f"sample {stem!r} has {', '.join(parts)}; expected an image and a {kind}")
    offset, size = parts[kind]
    if size > (MAX_JSON if kind == "json" else MAX_LABEL):
        raise ValueError(f"{stem}.{kind} is {size} bytes long, too many for a label")
    try:
        text = data[offset : offset + size].decode().strip()
        value = json.loads(text) if kind == "json" else None
    except ValueError as error:
        raise ValueError(f"{stem}.{kind} is damaged: {error}") from None
    if kind != "json":
        return text
    keys = ", ".join(value) if isinstance(value, dict) else ""
    if not label_key:
        raise ValueError(f"which label_key of {stem}.json is the label? It has {keys}")
    if not isinstance(value, dict) or label_key not in value:
        close = near(label_key, list(value)) if isinstance(value, dict) else ""
        raise ValueError(f"{stem}.json has no key {label_key!r}{close}; it has {keys}")
    label = value[label_key]
    if label is not None and (not isinstance(label, str | int) or isinstance(label, bool)):
        raise ValueError(f"{label_key} of {stem}.json is {label!r}, no number or name")
    return "" if label is None else str(label).strip()


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
