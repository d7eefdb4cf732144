"""ImageFolder: `train/ val/ test/` (whichever exist), each with one folder a class.

The layout of torchvision's `ImageFolder`, whose class order (sorted names) this is. Images are
found at any depth below a class folder; hidden files are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

from fgkd.data.lists import make_samples
from fgkd.data.samples import Dataset
from fgkd.errors import DatasetError

LAYOUT = "train/<class>/*.jpg and, if there are any, val/<class>/*.jpg and test/<class>/*.jpg"
SPLITS = ("train", "val", "test")
EXTENSIONS = (".png", ".jpg", ".jpeg")  # timm's, in any case


def load(root: Path) -> Dataset:
    """The dataset of a folder tree. Keys are `<split>/<class>/<file>`.

    Raises: DatasetError if there is no split, or a split lacks a class or has an empty one.
    """
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if not splits:
        message = f"no train, val or test folder in {root}; expected {LAYOUT}"
        raise DatasetError(message, path=root)
    classes = _class_names(root, splits)
    ignored: list[str] = []
    samples = {}
    for split in splits:
        labels: dict[str, int] = {}
        for label, name in enumerate(classes):
            labels |= dict.fromkeys(_image_keys(root, f"{split}/{name}", ignored), label)
        keys = sorted(labels)
        samples[split] = make_samples(root, keys, [labels[key] for key in keys])
    notes = []
    if ignored:
        kinds = ", ".join(EXTENSIONS)
        notes = [f"ignored {len(ignored)} files that are not {kinds}, as {min(ignored)}"]
    return Dataset("folder", classes, ["folder"], samples, notes=notes)


def _class_names(root: Path, splits: list[str]) -> list[str]:
    """The class folders' names, sorted; every split must have all of them."""
    found = {split: {p.name for p in (root / split).iterdir() if _is_class(p)} for split in splits}
    classes = sorted(set().union(*found.values()))
    for split in splits:
        for name in classes:
            if name not in found[split]:
                have = ", ".join(other for other in splits if name in found[other])
                message = f"class folder {name!r} is missing in split {split} (it is in {have})"
                raise DatasetError(message, path=root / split)
    if not classes:
        message = f"no class folders in {root / splits[0]}; expected {LAYOUT}"
        raise DatasetError(message, path=root)
    return classes


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _image_keys(root: Path, class_dir: str, ignored: list[str]) -> list[str]:
    """The keys of the images below a class folder; files of other types go to `ignored`."""
    keys: list[str] = []
    for parent, dirs, files in os.walk(root / class_dir, followlinks=True):
        dirs[:] = [name for name in dirs if not name.startswith(".")]
        prefix = Path(parent).relative_to(root).as_posix()
        for name in files:
            if not name.startswith("."):
                is_image = name.lower().endswith(EXTENSIONS)
                (keys if is_image else ignored).append(f"{prefix}/{name}")
    if not keys:
        message = f"class folder {root / class_dir} holds no image ({', '.join(EXTENSIONS)})"
        raise DatasetError(message, path=root / class_dir)
    return keys
