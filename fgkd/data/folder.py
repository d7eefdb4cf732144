"""ImageFolder: a folder for each class, in the folders `train`, `val` and `test` or without them.

Class order is that of torchvision's `ImageFolder`: sorted names. Images are found at any depth
below a class folder. Hidden files and what file systems and photo tools leave are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fgkd.data.lists import make_samples
from fgkd.data.samples import Dataset
from fgkd.errors import DatasetError

LAYOUT = "train/<class>/*.jpg and, if there are any, val/<class>/*.jpg and test/<class>/*.jpg"
SPLITS = {  # names of their folders, in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
JUNK = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")
SHOWN = 3  # names in a note


def load(root: Path) -> Dataset:
    """The dataset of a folder tree. Keys are `<split folder>/<class>/<file>`.

    Class folders right in `root` are the train split. Raises: DatasetError when there is no class
    folder with an image, when two folders are one split, or when val or test has a class that train
    has not.
    """
    folders = _split_folders(root)
    ignored: list[str] = []
    found = {split: _classes(root, folder, ignored) for split, folder in folders.items()}
    first = next(iter(found))  # train, or what is there instead
    classes = sorted(found[first])
    if not classes:
        where = root / folders[first]
        kinds = ", ".join(sorted(suffixes()))
        message = f"no class folder with an image in {where} ({kinds}); expected {LAYOUT}"
        raise DatasetError(message, path=where)
    samples, notes = {}, []
    if "." in folders.values():
        notes.append(f"no split folders in {root}: its {len(classes)} folders are train's classes")
    for split, keys_of in found.items():
        if unknown := sorted(set(keys_of) - set(classes)):
            message = f"{split} has class {unknown[0]!r}, which {first} has not"
            raise DatasetError(message, path=root / folders[split])
        if not keys_of:
            notes.append(f"split {split} has no images ({root / folders[split]})")
            continue
        if lacking := [name for name in classes if name not in keys_of]:
            notes.append(f"split {split} has no images of {len(lacking)} classes, as {lacking[0]}")
        label_of = {key: label for label, n in enumerate(classes) for key in keys_of.get(n, ())}
        keys = sorted(label_of)
        samples[split] = make_samples(root, keys, [label_of[key] for key in keys])
    if ignored:
        notes.append(f"ignored {len(ignored)} files that are no images, as {min(ignored)}")
    if others := _not_read(root, folders):
        more = ", ..." if len(others) > SHOWN else ""
        notes.append(f"not read: the folders {', '.join(others[:SHOWN])}{more} in {root}")
    return Dataset("folder", classes, ["folder"], samples, notes=notes)


def _split_folders(root: Path) -> dict[str, str]:
    """The folder of each split, by its name in `root`; {"train": "."} where there are none."""
    names = [entry.name for entry in _folders(root)]
    found = {}
    for split, known in SPLITS.items():
        here = [name for name in names if name.casefold() in known]
        if len(here) > 1:
            message = f"{root} has several folders for the {split} split: {', '.join(here)}"
            raise DatasetError(message, path=root)
        if here:
            found[split] = here[0]
    return found or {"train": "."}


def _not_read(root: Path, folders: dict[str, str]) -> list[str]:
    """Names of the folders beside the splits' that nothing is read of."""
    if "." in folders.values():
        return []
    return [f"{entry.name}/" for entry in _folders(root) if entry.name not in folders.values()]


def _folders(path: Path) -> Iterator[os.DirEntry[str]]:
    """The folders in a folder, by name, without hidden ones and junk."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir() and not _is_junk(entry.name):
            yield entry


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in JUNK


def _classes(root: Path, folder: str, ignored: list[str]) -> dict[str, list[str]]:
    """The keys of each class folder that holds an image; other files' names go to `ignored`."""
    prefix = "" if folder == "." else f"{folder}/"
    found = {}
    for entry in _folders(root / folder):
        if keys := image_keys(root, f"{prefix}{entry.name}", ignored):
            found[entry.name] = keys
    return found


def image_keys(root: Path, folder: str, ignored: list[str]) -> list[str]:
    """The paths, from `root`, of images at any depth in a folder; other files go to `ignored`."""
    known, keys = suffixes(), list[str]()
    for parent, dirs, files in os.walk(root / folder, followlinks=True):
        dirs[:] = [name for name in dirs if not _is_junk(name)]
        below = Path(parent).relative_to(root).as_posix()
        inside = f"{below}/" if below != "." else ""
        for name in files:
            if not _is_junk(name):
                is_image = os.path.splitext(name)[1].lower() in known
                (keys if is_image else ignored).append(f"{inside}{name}")
    return keys


def suffixes() -> frozenset[str]:
    """The suffixes of the image formats that are decoded."""
    from PIL import Image

    from fgkd.data.decoding import FORMATS

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in FORMATS)
