"""Stanford Dogs (Khosla et al., 2011): images.tar and lists.tar unpacked into one folder.

The lists are at the root (where the tar puts them) or in `splits/`. A list is a MATLAB file with
`file_list`, N x 1 cells of paths below `Images/`, and `labels`, N x 1, from 1. Bounding boxes are
in `Annotation/`, one file per image.
"""

from __future__ import annotations

import functools
from pathlib import Path

from fgkd.data import boxes
from fgkd.data.lists import find_file, make_samples, require_dir
from fgkd.data.samples import Dataset
from fgkd.errors import DatasetError, UnreadableFile

LAYOUT = "Images/<synset>/*.jpg, and train_list.mat and test_list.mat beside it or in splits/"
NOTE = "every image comes from ImageNet: ImageNet-pretrained models have seen the test set"


def load(root: Path) -> Dataset:
    """Stanford Dogs with its official split; class names are the synset folders' names.

    Raises: MissingFile, UnreadableFile; DatasetError for labels that are not the folders' order.
    """
    require_dir(root / "Images", LAYOUT)
    lists = {
        split: find_file(root, [f"{split}_list.mat", f"splits/{split}_list.mat"], LAYOUT)
        for split in ("train", "test")
    }
    columns = {split: _read_list(path) for split, path in lists.items()}
    classes = sorted({file.split("/")[0] for files, _ in columns.values() for file in files})
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for split, (files, numbers) in columns.items():
        labels = [label_of[file.split("/")[0]] for file in files]
        for file, label, number in zip(files, labels, numbers, strict=True):
            if number != label + 1:
                message = (
                    f"{lists[split]} labels {file} {number}, but its folder is number {label + 1} "
                    f"of the {len(classes)} in the lists"
                )
                raise DatasetError(message, path=root / "Images")
        keys = [f"Images/{file}" for file in files]
        splits[split] = make_samples(root, keys, labels, functools.partial(boxes.of_dogs, root))
    return Dataset("dogs", classes, ["dogs"], splits, notes=[NOTE])


def _read_list(path: Path) -> tuple[list[str], list[int]]:
    """The paths and the labels (from 1) of a `.mat` list."""
    from scipy.io import loadmat

    try:
        mat = loadmat(path)
        files = [str(cell.item()) for cell in mat["file_list"].ravel()]
        labels = [int(label) for label in mat["labels"].ravel()]
    except Exception as error:  # what scipy raises on a damaged file is open-ended
        reason = f"{error} ({type(error).__name__})"
        raise UnreadableFile(f"cannot read {path}: {reason}", path=path, reason=reason) from None
    if len(files) != len(labels):
        message = f"{path} has {len(files)} files and {len(labels)} labels"
        raise DatasetError(message, path=path)
    return files, labels
