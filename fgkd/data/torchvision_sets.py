"""Datasets that torchvision has a reader for, from the folder that their archive makes.

The readers name files and labels; images stay encoded on disk, and nothing is downloaded. The
files must be those of the authors: for Flowers-102, torchvision checks the lists' MD5.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgkd.data import boxes
from fgkd.data.lists import make_samples
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import DatasetError


@dataclass(frozen=True)
class Official:
    """One of torchvision's datasets; `load` is what `DATASETS` holds.

    reader: its class in torchvision.datasets; folder: what the archive unpacks to, and what
    torchvision looks for; splits: our name -> torchvision's; boxes: (root, keys) -> boxes.
    """

    name: str
    reader: str
    folder: str
    layout: str
    splits: dict[str, str]
    boxes: Callable[[Path, list[str]], np.ndarray] | None = None
    notes: tuple[str, ...] = ()

    def load(self, root: Path) -> Dataset:
        """The official splits; `root` is the archive's folder, or the one around it.

        Raises: DatasetError with the expected layout if a file is missing or damaged.
        """
        root = Path(os.path.abspath(root))
        if (root / self.folder).is_dir():
            root = root / self.folder
        if root.name != self.folder:
            raise self._error(root, f"no folder {self.folder} in {root}")
        classes: list[str] = []
        splits = {}
        for split in self.splits:
            reader = self._open(root, split)
            names = [str(name) for name in reader.classes]
            if classes and names != classes:
                raise self._error(root, f"the {split} split of {root} has classes of its own")
            classes = names
            splits[split] = self._samples(root, split, reader, len(classes))
        return Dataset(self.name, classes, [self.name], splits, notes=list(self.notes))

    def _open(self, root: Path, split: str) -> Any:
        from torchvision import datasets

        try:
            return getattr(datasets, self.reader)(root.parent, split=self.splits[split])
        except Exception as error:  # what the readers raise on a missing or bad file is open-ended
            reason = str(error).replace("You can use download=True to download it", "").strip()
            what = f"cannot read {self.name} in {root}: {reason} ({type(error).__name__})"
            raise self._error(root, what) from None

    def _samples(self, root: Path, split: str, reader: Any, num_classes: int) -> Samples:
        keys, labels = [], []
        for file, label in _pairs(reader):
            keys.append(str(file).removeprefix(f"{root}/"))
            labels.append(int(label))
            if not 0 <= labels[-1] < num_classes:
                what = f"{keys[-1]} ({split}) has label {label} of {num_classes} classes"
                raise self._error(root, what)
        reader_of_boxes = functools.partial(self.boxes, root) if self.boxes else None
        return make_samples(root, keys, labels, reader_of_boxes)

    def _error(self, root: Path, what: str) -> DatasetError:
        return DatasetError(f"{what}; expected {self.folder}/ with {self.layout}", path=root)


def _pairs(reader: Any) -> Iterable[tuple[Any, Any]]:
    """(image file, label) of each sample; torchvision has no public name for the files."""
    if hasattr(reader, "_samples"):
        return list(reader._samples)
    files = reader._images if hasattr(reader, "_images") else reader._image_files
    return zip(files, reader._labels, strict=True)


# Maji et al., 2013. Labels are the 100 variants, the finest of its three levels. It has a
# validation split of its own, so none is carved from train. Names hold "/" ("F/A-18").
AIRCRAFT = Official(
    "aircraft",
    "FGVCAircraft",
    "fgvc-aircraft-2013b",
    "data/images/*.jpg, data/variants.txt and data/images_variant_{train,val,test}.txt",
    {"train": "train", "val": "val", "test": "test"},
    boxes.of_aircraft,
)
# Krause et al., 2013.
CARS = Official(
    "cars",
    "StanfordCars",
    "stanford_cars",
    "cars_train/*.jpg, cars_test/*.jpg, devkit/{cars_meta,cars_train_annos}.mat and "
    "cars_test_annos_withlabels.mat",
    {"train": "train", "test": "test"},
    boxes.of_cars,
)
# Parkhi et al., 2012. Some files named .jpg are PNG or GIF, and a few JPEGs are damaged.
PETS = Official(
    "pets",
    "OxfordIIITPet",
    "oxford-iiit-pet",
    "images/*.jpg and annotations/{trainval,test}.txt",
    {"train": "trainval", "test": "test"},
    boxes.of_pets,
)
# Nilsback and Zisserman, 2008. Test is six times the size of train: 1,020, 1,020 and 6,149.
FLOWERS = Official(
    "flowers",
    "Flowers102",
    "flowers-102",
    "jpg/image_*.jpg, imagelabels.mat and setid.mat as distributed",
    {"train": "train", "val": "val", "test": "test"},
)
# Bossard et al., 2014.
FOOD101 = Official(
    "food101",
    "Food101",
    "food-101",
    "images/<class>/*.jpg and meta/{train,test}.json",
    {"train": "train", "test": "test"},
    notes=("training images were not cleaned: some of their labels are wrong",),
)
