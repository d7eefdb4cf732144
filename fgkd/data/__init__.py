"""Image datasets by name. A new one is one file here and one line in `DATASETS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fgkd.data import cub, dogs, folder, foodx, icons, nabirds, tars, torchvision_sets
from fgkd.data.boxes import with_boxes
from fgkd.data.combine import split_validation, union
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import MissingDataset, MissingOption, OptionError, UnknownName, near

__all__ = [
    "DATASETS",
    "Dataset",
    "Samples",
    "absolute_specs",
    "open_dataset",
    "split_validation",
    "union",
    "with_boxes",
]

DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "folder": folder.load,
    "cub": cub.load,
    "dogs": dogs.load,
    "foodx": foodx.load,
    "nabirds": nabirds.load,
    "aircraft": torchvision_sets.AIRCRAFT.load,
    "cars": torchvision_sets.CARS.load,
    "pets": torchvision_sets.PETS.load,
    "flowers": torchvision_sets.FLOWERS.load,
    "food101": torchvision_sets.FOOD101.load,
    "webdataset": tars.load,
    "icons": icons.load,
}


def open_dataset(specs: str | Sequence[str], val_fraction: float = 0.1) -> Dataset:
    """The dataset of a spec `NAME:PATH`; of several, their union in the order given.

    NAME is one of `DATASETS`; `folder` reads train/<class>/*.jpg and so on. `.splits` are its
    samples by split, `.classes` its class names.

    A dataset without a validation split gets one of `val_fraction` (in [0, 1)) of its train split,
    before the union: what is held out of one does not depend on the others.
    Raises: UnknownName, MissingDataset, or a DatasetError of the files.
    """
    if not specs:
        raise MissingOption("no dataset given", option="data", suggestion=("icons",))
    given = [specs] if isinstance(specs, str) else list(specs)
    members = [split_validation(_load(spec), val_fraction) for spec in given]
    found = members[0] if len(members) == 1 else union(members)
    return replace(found, specs=tuple(absolute_specs(given)), val_fraction=val_fraction)


def absolute_specs(specs: Sequence[str]) -> list[str]:
    """`NAME:PATH` specs with their paths made absolute, to be read from any folder."""
    parts = [spec.partition(":") for spec in specs]
    return [
        f"{name}:{os.path.abspath(os.path.expanduser(path))}" if colon else name
        for name, colon, path in parts
    ]


def _load(spec: str) -> Dataset:
    name, _, path = spec.partition(":")
    if name not in DATASETS:
        known = list(DATASETS)
        message = (
            f"unknown dataset {name!r} in {spec}{near(name, known)} (known: {', '.join(known)})"
        )
        example = ("folder:PATH",)
        raise UnknownName(message, option="data", value=spec, known=known, suggestion=example)
    root = Path(path).expanduser()
    if name == "icons":  # the one that is in the package, and that makes its folder itself
        return icons.load(root if path else None)
    if not path:
        message = f"dataset {spec} needs a path"
        raise OptionError(message, option="data", value=spec, suggestion=(f"{name}:PATH",))
    if not root.is_dir():
        raise MissingDataset(f"no folder {root} (dataset {spec})", path=root, dataset=name)
    return DATASETS[name](root)
