"""Bounding boxes of datasets, read only if the views need them (Stanford Dogs: one file per image).

A reader takes the keys of some samples and gives float64 [N, 4]: x, y, width, height in source
pixels. Corners that count from 1 and are part of the object, as MATLAB's, become such boxes here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fgkd.data.lists import find_file, read_table
from fgkd.data.samples import BoxReader, Dataset
from fgkd.errors import BadBoundingBox, DatasetError, OptionError, UnreadableFile

LIMIT = 1e6  # pixels; no image that is decoded has such a side


def with_boxes(dataset: Dataset) -> Dataset:
    """The dataset with the boxes of its train split read; evaluation needs none.

    Raises: OptionError if it has no boxes; DatasetError, UnreadableFile or BadBoundingBox.
    """
    if "train" not in dataset.splits:
        return dataset
    train = dataset.splits["train"]
    rows = read(dataset.name, train.box_reader, list(train.keys))
    train = replace(train, boxes=checked(train.keys, rows))
    return replace(dataset, splits=dataset.splits | {"train": train})


def read(name: str, reader: BoxReader | None, keys: list[str]) -> np.ndarray:
    """The boxes of a dataset's samples. Raises: OptionError for a dataset without boxes."""
    if reader is None:
        message = f"the dataset {name} has no bounding boxes"
        raise OptionError(message, option="bbox_crop", value=True, suggestion=False)
    return reader(keys)


def checked(keys: Sequence[str], boxes: Any) -> np.ndarray:
    """The boxes as float64 [N, 4]. Raises: BadBoundingBox."""
    boxes_N4 = np.asarray(boxes, np.float64).reshape(len(keys), 4)
    good = (np.abs(boxes_N4) < LIMIT).all(1) & (boxes_N4[:, 2:] > 0).all(1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        what = f"the bounding box of {keys[row]} is {boxes_N4[row].tolist()}"
        raise BadBoundingBox(f"{what} (x, y, width, height)", box=boxes_N4[row].tolist())
    return boxes_N4


def from_corners(corners: Sequence[float]) -> list[float]:
    """(left, top, right, bottom), counted from 1 and inclusive, as x, y, width, height."""
    left, top, right, bottom = corners
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def of_cub(root: Path, layout: str, id_pattern: str, keys: list[str]) -> np.ndarray:
    """Boxes of bounding_boxes.txt, "id x y width height", for the keys of images.txt."""
    path = find_file(root, ["bounding_boxes.txt"], layout)
    table = read_table(path, id_pattern)
    images = read_table(root / "images.txt", id_pattern)
    id_of = {f"images/{file}": id_ for id_, file in images.items()}
    return np.array([_numbers(path, table, id_of[key]) for key in keys])


def of_aircraft(root: Path, keys: list[str]) -> np.ndarray:
    """Boxes of images_box.txt, "image left top right bottom"; without the banner at the bottom."""
    path = find_file(root, ["data/images_box.txt"], "it beside data/variants.txt")
    table = read_table(path)
    ids = [PurePosixPath(key).stem for key in keys]
    return np.array([from_corners(_numbers(path, table, id_)) for id_ in ids])


def of_cars(root: Path, keys: list[str]) -> np.ndarray:
    """Boxes of the structs that hold the labels, too."""
    from scipy.io import loadmat

    boxes = {}
    for folder, file in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        try:
            rows = loadmat(root / file, squeeze_me=True)["annotations"]
            for row in np.atleast_1d(rows):
                corners = [float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2")]
                boxes[f"{folder}/{row['fname']}"] = from_corners(corners)
        except Exception as error:  # what scipy raises on a damaged file is open-ended
            reason = f"{error} ({type(error).__name__})"
            what = f"cannot read the boxes of {root / file}: {reason}"
            raise UnreadableFile(what, path=root / file, reason=reason) from None
    return np.array([boxes[key] for key in keys])


def of_dogs(root: Path, keys: list[str]) -> np.ndarray:
    """The box around all objects of each image's VOC-like file in Annotation/."""
    from xml.etree import ElementTree

    def one(key: str) -> list[float]:
        path = root / "Annotation" / PurePosixPath(key).relative_to("Images").with_suffix("")
        try:
            found = [
                [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                for box in ElementTree.parse(path).iter("bndbox")
            ]
            left, top, right, bottom = zip(*found, strict=True)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            message = f"cannot read a box from {path}: {error}"
            raise UnreadableFile(message, path=path, reason=str(error)) from None
        return [min(left), min(top), max(right) - min(left), max(bottom) - min(top)]

    return np.array([one(key) for key in keys])


def of_pets(root: Path, keys: list[str]) -> np.ndarray:
    """The extent of what is not background (2) in each trimap.

    The boxes in annotations/xmls are of heads, and not every image has one.
    """
    from fgkd.data.decoding import decode_rgb

    def one(key: str) -> list[float]:
        path = root / "annotations/trimaps" / f"{PurePosixPath(key).stem}.png"
        try:
            pet_HW = decode_rgb(path.read_bytes(), str(path))[..., 0] != 2
        except OSError as error:
            reason = str(error.strerror)
            raise UnreadableFile(
                f"cannot read {path}: {reason}", path=path, reason=reason
            ) from None
        columns, rows = np.flatnonzero(pet_HW.any(0)), np.flatnonzero(pet_HW.any(1))
        if not len(rows):
            return [0.0, 0.0, 0.0, 0.0]  # refused with its key
        return from_corners((columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1))

    return np.array([one(key) for key in keys], np.float64)


def of_union(readers: dict[str, BoxReader | None], keys: list[str]) -> np.ndarray:
    """The boxes of several datasets' samples, whose keys begin with "domain/"."""
    boxes_N4 = np.empty((len(keys), 4))
    for domain, reader in readers.items():
        prefix = f"{domain}/"
        rows = [i for i, key in enumerate(keys) if key.startswith(prefix)]
        if rows:
            boxes_N4[rows] = read(domain, reader, [keys[i].removeprefix(prefix) for i in rows])
    return boxes_N4


def in_pixels(box_4: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width, height of the whole pixels that a box touches."""
    x, y, width, height = box_4.tolist()
    left, top = math.floor(x), math.floor(y)
    return left, top, math.ceil(x + width) - left, math.ceil(y + height) - top


def _numbers(path: Path, table: dict[str, str], id_: str) -> list[float]:
    """The four numbers of a line "id a b c d"."""
    text = table.get(id_, "nothing")
    try:
        a, b, c, d = map(float, text.split())
    except ValueError:
        message = f"{path}: expected '{id_}' and four numbers, found {text!r}"
        raise DatasetError(message, path=path, pattern=f"^{id_} ") from None
    return [a, b, c, d]
