"""Caltech-UCSD Birds-200-2011 (Wah et al., 2011), as CUB_200_2011.tgz unpacks."""

from __future__ import annotations

import functools
from pathlib import Path

from fgkd.data import boxes
from fgkd.data.lists import find_file, make_samples, read_table, require_dir
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import DatasetError

LAYOUT = (
    "images/<class>/*.jpg beside images.txt, image_class_labels.txt, train_test_split.txt "
    "and classes.txt, as CUB_200_2011.tgz unpacks"
)


def load(root: Path) -> Dataset:
    """CUB with its official train and test split, and its bounding boxes.

    `root` is the folder that holds `images/`, or the one around it that the archive makes.
    Classes keep their full name ("001.Black_footed_Albatross"), in the order of their ids.
    Raises: MissingFile; DatasetError for lists that do not agree.
    """
    if (root / "CUB_200_2011").is_dir():
        root = root / "CUB_200_2011"
    return read_lists("cub", root, LAYOUT)


def read_lists(name: str, root: Path, layout: str, id_pattern: str = r"\d+") -> Dataset:
    """A dataset of CUB's lists. Its classes are those of classes.txt that have images, by id.

    NABirds has the same lists, with ids of another kind, and a classes.txt that names all nodes of
    a tree.
    """
    require_dir(root / "images", layout)
    images = _table(root, layout, "images.txt", id_pattern)
    class_names = _table(root, layout, "classes.txt", r"\d+")
    class_ids = _table(root, layout, "image_class_labels.txt", id_pattern, images)
    is_train = _table(root, layout, "train_test_split.txt", id_pattern, images)
    for id_ in images:
        if class_ids[id_] not in class_names or is_train[id_] not in ("0", "1"):
            what = f"image id {id_} has class {class_ids[id_]!r} and split {is_train[id_]!r}"
            message = f"{what} in the lists of {root}"
            raise DatasetError(message, path=root, pattern=f"^{id_} ")
    used = sorted({class_ids[id_] for id_ in images}, key=int)
    label_of = {class_id: label for label, class_id in enumerate(used)}
    box_reader = functools.partial(boxes.of_cub, root, layout, id_pattern)

    def split(flag: str) -> Samples:
        ids = [id_ for id_ in sorted(images, key=_in_order) if is_train[id_] == flag]
        keys = [f"images/{images[id_]}" for id_ in ids]
        return make_samples(root, keys, [label_of[class_ids[id_]] for id_ in ids], box_reader)

    classes = [class_names[class_id] for class_id in used]
    return Dataset(name, classes, [name], {"train": split("1"), "test": split("0")})


def _in_order(id_: str) -> tuple[int, str]:
    """Numbers by value, ids of one length as text."""
    return len(id_), id_


def _table(
    root: Path, layout: str, name: str, id_pattern: str, images: dict[str, str] | None = None
) -> dict[str, str]:
    """The list `name`, which must have a line for every id of `images`."""
    path = find_file(root, [name], layout)
    table = read_table(path, id_pattern)
    missing = (images or {}).keys() - table.keys()
    if missing:
        first = min(missing, key=_in_order)
        message = f"{path} has no line for {len(missing)} ids of images.txt, as {first}"
        raise DatasetError(message, path=root, pattern=f"^{first} ")
    return table
