"""The images that a cache's targets belong to: inside its shards, or a dataset that must match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgkd.cache.reader import Reader
from fgkd.config import args_file
from fgkd.data import Dataset, absolute_specs, moved, open_dataset, with_boxes
from fgkd.data.spec import Spec
from fgkd.errors import MissingOption
from fgkd.files import PathLike, is_url, paths


def cached_data(
    reader: Reader, data: PathLike | Sequence[PathLike] = (), fetch: bool = True
) -> tuple[list[str], Dataset]:
    """(dataset specs with absolute paths, the dataset) of a cache.

    data: where the images are, as `folder:PATH`; by default in the shards if they hold images, else
    where the cache was made from. The specs are [] where only the shards are known. fetch: see
    `Reader.dataset`; else training images come with the requests that name their places.
    Raises: DataMismatch for other data; MissingOption for a URL whose shards hold no images.
    """
    args = reader.folder / "args.yaml"
    if reader.holds_images and not data:
        specs = list(args_file.load_yaml(args)["data"]) if args.exists() else []
        return specs, reader.dataset(fetch)
    if is_url(reader.name) and not data:
        message = "data is required: the shards of this cache hold no images"
        raise MissingOption(message, option="data", suggestion="NAME:PATH")
    given = paths(data or ())
    recorded = args_file.load_yaml(args)["data"] if not given or args.exists() else ()
    specs = [_found(reader, spec) for spec in absolute_specs(moved(given, recorded))]
    dataset = open_dataset(specs, reader.identity.dataset.val_fraction)
    return specs, matching(reader, dataset)


def _found(reader: Reader, text: str) -> str:
    """A spec whose list of validation images, a file of the cache, is where the cache is now."""
    spec = Spec.parse(text)
    listed = Path(spec.options.get("val_list", ""))
    here = reader.folder / listed.name
    if not listed.name or listed.exists() or not here.exists():
        return text
    return str(replace(spec, options=spec.options | {"val_list": str(here.absolute())}))


def matching(reader: Reader, dataset: Dataset) -> Dataset:
    """The dataset, with bounding boxes if the cache's views need them. Raises: DataMismatch."""
    if reader.identity.views.recipe.bbox_crop:
        dataset = with_boxes(dataset)
    if reader.identity.added and "train" in dataset.splits:
        dataset = ordered(dataset, reader.samples["train"].keys)
    reader.check_dataset(dataset)
    return dataset


def ordered(dataset: Dataset, keys: Sequence[str]) -> Dataset:
    """The dataset with its training samples in the order of these keys, and those with others last.

    A key without a sample is passed over.
    """
    row_of = {key: row for row, key in enumerate(dataset.train.keys)}
    rows = [row for key in keys if (row := row_of.pop(key, None)) is not None]
    rows += row_of.values()
    return replace(dataset, splits=dataset.splits | {"train": dataset.train.take(np.array(rows))})
