"""Image datasets by name. A new one is one file here and one line in `DATASETS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fgkd.config import DataSpec
from fgkd.data import csv_file, cub, dogs, folder, foodx, icons, nabirds, tars, torchvision_sets
from fgkd.data.boxes import with_boxes
from fgkd.data.combine import split_validation, union
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import MissingDataset, MissingOption, OptionError, UnknownName, UnusedOption, near

__all__ = [
    "DATASETS",
    "Dataset",
    "Samples",
    "absolute_specs",
    "open_dataset",
    "specs_of",
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
    "csv": lambda path: csv_file.load(_csv_file(str(path), f"csv:{path}")),
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


def specs_of(spec: DataSpec) -> tuple[str, ...]:
    """The dataset specs of the options, with their column names and image root in csv specs.

    Raises: UnusedOption for these when no dataset is a csv file.
    """
    options = {name: getattr(spec, name) for name in csv_file.OPTIONS}
    is_csv = [one.startswith("csv:") for one in spec.data]
    for name, value in options.items():
        if value and spec.data and not any(is_csv):
            message = f"{name} has no effect without a csv dataset"
            raise UnusedOption(message, option=name, value=value)
    if options["image_root"]:
        options["image_root"] = os.path.abspath(os.path.expanduser(options["image_root"]))
    return tuple(
        csv_file.with_options(one, options) if csv else one
        for one, csv in zip(spec.data, is_csv, strict=True)
    )


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
    if name == "csv":  # a file, perhaps with options
        return csv_file.load(_csv_file(path, spec))
    if not root.is_dir():
        raise MissingDataset(f"no folder {root} (dataset {spec})", path=root, dataset=name)
    return DATASETS[name](root)


def _csv_file(text: str, spec: str) -> str:
    """`FILE?options` of a csv spec, whose path may be a folder that holds one CSV file."""
    name, mark, query = text.partition("?")
    path = Path(name).expanduser()
    if path.is_dir() and len(files := sorted(path.glob("*.csv"))) == 1:
        path = files[0]
    if not path.is_file():
        message = f"no CSV file {path} (dataset {spec})"
        raise MissingDataset(message, path=path, dataset="csv")
    return f"{path}{mark}{query}"
