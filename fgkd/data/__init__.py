"""Image datasets by name. A new one is one file here and one line in `DATASETS`."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fgkd.config import DataSpec
from fgkd.data import (
    csv_file,
    cub,
    dogs,
    folder,
    foodx,
    hf,
    icons,
    nabirds,
    tars,
    torchvision_sets,
    unlabeled,
)
from fgkd.data.boxes import with_boxes
from fgkd.data.combine import split_listed, split_off, split_validation, union
from fgkd.data.keys import Keys
from fgkd.data.lists import read_text
from fgkd.data.samples import Dataset, Samples
from fgkd.data.spec import OPTIONS, PATHS, Spec, absolute_specs, moved, takes
from fgkd.errors import MissingDataset, MissingOption, OptionError, UnknownName, UnusedOption, near
from fgkd.files import PathLike, is_url, paths

__all__ = [
    "DATASETS",
    "DEFAULT_VAL_FRACTION",
    "OPTIONS",
    "Dataset",
    "Keys",
    "Samples",
    "absolute_specs",
    "moved",
    "open_chosen",
    "open_dataset",
    "specs_of",
    "split_validation",
    "union",
    "with_boxes",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "folder": folder.load,
    "csv": csv_file.load,
    "hf": hf.load,
    "webdataset": tars.load,
    "unlabeled": unlabeled.load,
    "cub": cub.load,
    "dogs": dogs.load,
    "foodx": foodx.load,
    "nabirds": nabirds.load,
    "aircraft": torchvision_sets.AIRCRAFT.load,
    "cars": torchvision_sets.CARS.load,
    "pets": torchvision_sets.PETS.load,
    "flowers": torchvision_sets.FLOWERS.load,
    "food101": torchvision_sets.FOOD101.load,
    "icons": icons.load,
}
DEFAULT_VAL_FRACTION = 0.1
WITH_OPTIONS = ("csv", "hf", "webdataset")  # loaders that look themselves for what is at the path


def open_dataset(
    specs: PathLike | Sequence[PathLike], val_fraction: float = DEFAULT_VAL_FRACTION
) -> Dataset:
    """The dataset of a spec `NAME:PATH`; of several, their union in the order given.

    NAME is one of `DATASETS`; `folder` reads train/<class>/*.jpg and so on. A spec may end in
    options of `spec.OPTIONS`, as `csv:FILE?label_column=species&test_fraction=0.2`. `.splits` are
    its samples by split, `.classes` its class names.

    A dataset without a validation split gets one of `val_fraction` (in [0, 1)) of its train split,
    before the union: what is held out of one does not depend on the others.
    Raises: UnknownName, MissingDataset, or a DatasetError of the files; OptionError for data
    of less than two classes, for a `val_fraction` out of range, and for a `test_fraction` where
    every dataset has a test split.
    """
    if not specs:
        raise MissingOption("no dataset given", option="data", suggestion=("icons",))
    if not (isinstance(val_fraction, numbers.Real) and 0 <= val_fraction < 1):
        message = f"val_fraction is {val_fraction!r}, not a number from 0 to below 1"
        raise OptionError(message, option="val_fraction", value=val_fraction)
    given = paths(specs)
    parsed = [Spec.parse(text) for text in given]
    members = [_load(one) for one in parsed]
    if not any(member.classes for member in members):
        message = f"{given[0]} has no labels; it needs a labelled dataset beside it"
        raise OptionError(message, option="data", value=given[0], suggestion=("folder:PATH",))
    fractions = [one.test_fraction for one in parsed]
    if any(fractions) and all("test" in m.splits for m in members if m.classes):
        message = "test_fraction has no effect: the data has a test split"
        raise UnusedOption(message, option="test_fraction", value=max(fractions))
    members = [split_off(m, "test", share) for m, share in zip(members, fractions, strict=True)]
    for i, one in enumerate(parsed):
        if path := one.options.get("val_list"):
            keys = {line for line in read_text(Path(path).expanduser()) if line}
            members[i] = split_listed(members[i], keys)
    has_val = all("val" in member.splits for member in members if member.classes)
    members = [split_validation(member, val_fraction) for member in members]
    found = members[0] if len(members) == 1 else union(members)
    if len(found.classes) == 1:
        message = f"{found.name} has one class, {found.classes[0]}, and nothing to tell it from"
        raise OptionError(message, option="data", value=given[0], suggestion=("folder:PATH",))
    specs = tuple(absolute_specs(given))
    return replace(found, specs=specs, val_fraction=val_fraction, has_val=has_val)


def open_chosen(
    spec: DataSpec, specs: Sequence[str], recorded: float = DEFAULT_VAL_FRACTION
) -> Dataset:
    """The dataset of some specs, with the `val_fraction` of the options, else the recorded one.

    Raises: as `open_dataset`; UnusedOption for a `val_fraction` where every dataset has a val
    split.
    """
    given = spec.val_fraction
    found = open_dataset(specs, recorded if given is None else given)
    if given is not None and found.has_val:
        message = "val_fraction has no effect: the data has a val split"
        raise UnusedOption(message, option="val_fraction", value=given)
    return found


def specs_of(spec: DataSpec) -> tuple[str, ...]:
    """The dataset specs of the options, with those options that are about how they are read.

    Raises: UnusedOption for one that none of the datasets has.
    """
    parsed = [Spec.parse(text) for text in spec.data]
    for name in [name for name in OPTIONS if hasattr(spec, name)]:
        value = getattr(spec, name)
        if value is None:
            continue
        if not parsed:
            message = f"{name} has no effect without data"
            raise UnusedOption(message, option=name, value=value, advice="name the data as well")
        if not any(takes(one.name, name) for one in parsed):
            message = f"{name} has no effect without a dataset {' or '.join(OPTIONS[name])}"
            raise UnusedOption(message, option=name, value=value)
        text = os.path.abspath(os.path.expanduser(value)) if name in PATHS else str(value)
        parsed = [
            replace(one, options={name: text} | one.options) if takes(one.name, name) else one
            for one in parsed
        ]
    return tuple(map(str, parsed))


def _load(spec: Spec) -> Dataset:
    name, path = spec.name, spec.path
    if name not in DATASETS:
        known = list(DATASETS)
        message = (
            f"unknown dataset {name!r} in {spec}{near(name, known)} (known: {', '.join(known)})"
        )
        example = ("folder:PATH",)
        raise UnknownName(message, option="data", value=str(spec), known=known, suggestion=example)
    if is_url(path) and name != "webdataset":
        message = f"dataset {spec} is behind a URL; {name} reads a path on this machine"
        raise OptionError(
            message,
            option="data",
            value=str(spec),
            suggestion=(f"{name}:PATH",),
            advice="webdataset:URL of tars",
        )
    if name == "icons":  # the one that is in the package, and that makes its folder itself
        return icons.load(Path(path).expanduser() if path else None)
    if not path:
        message = f"dataset {spec} needs a path"
        raise OptionError(message, option="data", value=str(spec), suggestion=(f"{name}:PATH",))
    if name in WITH_OPTIONS:
        where = path if is_url(path) else os.path.expanduser(path)
        return DATASETS[name](where, spec.options)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MissingDataset(f"no folder {root} (dataset {spec})", path=root, dataset=name)
    return DATASETS[name](root)
