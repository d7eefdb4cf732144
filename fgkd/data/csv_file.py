"""A CSV file of image paths, labels and, if there is a column for it, splits.

The spec is `csv:FILE`, or `csv:FILE?image_column=NAME&label_column=NAME&split_column=NAME&
image_root=FOLDER` with any of these. Without a header the columns are image, label and split.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgkd.data.folder import SPLITS
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import DatasetError, MissingDataset, OptionError, UnreadableFile, near

IMAGE, LABEL, SPLIT, ROOT = "image_column", "label_column", "split_column", "image_root"
KNOWN = {  # names of columns, in any case, the first that is there
    IMAGE: [
        "image",
        "image_path",
        "path",
        "filepath",
        "file_path",
        "filename",
        "file_name",
        "file",
        "img",
    ],
    LABEL: ["label", "class", "class_name", "category", "target", "species", "name", "class_id"],
    SPLIT: ["split", "set", "subset", "partition"],
}
SEPARATORS = ",;\t|"
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass(frozen=True)
class _Row:
    """A line of the file. label: "" for none."""

    line: int
    image: str
    label: str
    split: str


NONE: Mapping[str, str] = {}


def load(where: str | Path, options: Mapping[str, str] = NONE) -> Dataset:
    """The dataset of a file, or of the one CSV file in a folder.

    Keys are paths relative to the image root, where they can be. Classes are the labels, sorted: by
    number if all are integers. An empty label is none. Raises: MissingDataset; UnreadableFile;
    OptionError for a column that is not there; DatasetError with the line of an image that is
    missing or named twice, or of an unknown split.
    """
    path = Path(where)
    if path.is_dir() and len(files := sorted(path.glob("*.csv"))) == 1:
        path = files[0]
    if not path.is_file():
        raise MissingDataset(f"no CSV file {path}", path=path, dataset="csv")
    root = Path(os.path.abspath(Path(options.get(ROOT) or path.parent).expanduser()))
    rows = list(_rows(path, options))
    if not rows:
        raise DatasetError(f"{path} has no line with an image", path=path)
    labels = {row.label for row in rows if row.label}
    numeric = all(label.lstrip("-").isdecimal() for label in labels)
    classes = sorted(labels, key=int) if numeric else sorted(labels)
    if not classes:
        raise DatasetError(f"{path} has no label", path=path)
    parts: dict[str, list[_Row]] = {split: [] for split in SPLITS}
    for row in rows:
        parts[row.split].append(row)
    place = {label: i for i, label in enumerate(classes)}
    seen: dict[str, int] = {}
    splits = {
        split: _samples(path, root, part, place, seen) for split, part in parts.items() if part
    }
    unlabelled = sum(not row.label for row in rows)
    notes = [f"{unlabelled:,} images have no label"] if unlabelled else []
    return Dataset("csv", classes, ["csv"], splits, notes=notes)


def _samples(
    path: Path, root: Path, rows: list[_Row], place: dict[str, int], seen: dict[str, int]
) -> Samples:
    keys, paths = [], []
    for row in rows:
        found = os.path.normpath(os.path.join(root, row.image))
        if not os.path.isfile(found):
            message = f"{path}, line {row.line}: no image {found}"
            raise DatasetError(message, path=path, line=row.line)
        if found in seen:
            message = f"{path}, line {row.line}: {row.image} is on line {seen[found]} too"
            raise DatasetError(message, path=path, line=row.line)
        seen[found] = row.line
        inside = found.startswith(f"{root}{os.sep}")
        keys.append(os.path.relpath(found, root) if inside else found.lstrip(os.sep))
        paths.append(found)
    labels = np.array([place.get(row.label, -1) for row in rows], np.int64)
    return Samples(keys, labels, np.zeros(len(rows), np.int64), paths)


def _rows(path: Path, options: Mapping[str, str]) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines()
        separator = max(SEPARATORS, key=lines[0].count) if lines else ","
        reader = csv.reader(lines, delimiter=separator, strict=True)
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", path=path, reason=str(error)) from None
    cells = [(line, row) for line, row in cells if any(row)]
    columns = _columns(path, cells[0][1], options) if cells else None
    if columns is None:
        columns = {name: i for i, name in enumerate((IMAGE, LABEL, SPLIT))}
    else:
        cells = cells[1:]
    for line, row in cells:
        image, label, split = (
            row[i] if (i := columns.get(name, -1)) in range(len(row)) else ""
            for name in (IMAGE, LABEL, SPLIT)
        )
        if not image or (split and split.casefold() not in SPLIT_OF):
            what = f"split {split!r} is not one of {', '.join(SPLIT_OF)}" if image else "no image"
            raise DatasetError(f"{path}, line {line}: {what}", path=path, line=line)
        yield _Row(line, image, label, SPLIT_OF[split.casefold()] if split else "train")


def _columns(path: Path, header: list[str], options: Mapping[str, str]) -> dict[str, int] | None:
    """The index of each column, by the header; None if the first line is none."""
    names = [name.casefold() for name in header]
    found = {}
    for kind, known in KNOWN.items():
        if given := options.get(kind):
            if given.casefold() not in names:
                what = f"{path} has no column {given!r}{near(given, header)}"
                message = f"{what}; it has {', '.join(header)}"
                raise OptionError(message, option=kind, value=given, suggestion=header[0])
            found[kind] = names.index(given.casefold())
        else:
            taken = set(found.values())
            there = [names.index(name) for name in known if name in names]
            if free := [i for i in there if i not in taken]:
                found[kind] = free[0]
    if IMAGE not in found or LABEL not in found:
        if any(options.get(kind) for kind in KNOWN):
            lacking = IMAGE if IMAGE not in found else LABEL
            message = f"{path}: which column is the {lacking}? It has {', '.join(header)}"
            raise OptionError(message, option=lacking, suggestion=header[-1])
        return None
    return found
