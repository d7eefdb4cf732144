"""The images that a cache's targets belong to: inside its shards, or a dataset that must match."""

from __future__ import annotations

from collections.abc import Sequence

from fgkd.cache.reader import Reader
from fgkd.config import args_file
from fgkd.data import Dataset, absolute_specs, moved, open_dataset, with_boxes
from fgkd.download import is_url
from fgkd.errors import MissingOption


def cached_data(reader: Reader, data: str | Sequence[str] = ()) -> tuple[list[str], Dataset]:
    """(dataset specs with absolute paths, the dataset) of a cache.

    data: where the images are, as `folder:PATH`; by default in the shards if they hold images, else
    where the cache was made from. The specs are [] where only the shards are known.
    Raises: DataMismatch for other data; MissingOption for a URL whose shards hold no images.
    """
    args = reader.folder / "args.yaml"
    if reader.holds_images and not data:
        return (list(args_file.load_yaml(args)["data"]) if args.exists() else []), reader.dataset()
    if is_url(reader.name) and not data:
        message = "data is required: the shards of this cache hold no images"
        raise MissingOption(message, option="data", suggestion="NAME:PATH")
    given = [data] if isinstance(data, str) and data else list(data)
    recorded = args_file.load_yaml(args)["data"] if not given or args.exists() else ()
    specs = absolute_specs(moved(given, recorded))
    dataset = open_dataset(specs, reader.identity.dataset.val_fraction)
    return specs, matching(reader, dataset)


def matching(reader: Reader, dataset: Dataset) -> Dataset:
    """The dataset, with bounding boxes if the cache's views need them. Raises: DataMismatch."""
    if reader.identity.views.recipe.bbox_crop:
        dataset = with_boxes(dataset)
    reader.check_dataset(dataset)
    return dataset
