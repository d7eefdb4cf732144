"""Datasets of the Hugging Face `datasets` library: from its hub, or in a folder or parquet file.

The spec is `hf:ORG/NAME` or `hf:PATH`: of `save_to_disk`, of parquet files, or any folder that
`load_dataset` reads, such as an image folder. Options: `image_column`, `label_column`, and of the
hub `config` and `revision`. Images are read at their places inside the library's Arrow files, or in
files of their own; they are not encoded again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgkd.data.csv_file import KNOWN, LABEL, SPLIT_OF
from fgkd.data.samples import Dataset, Place, Samples
from fgkd.data.spec import Spec
from fgkd.download import from_hub, http_status
from fgkd.errors import (
    DatasetError,
    DatasetHubError,
    FgkdError,
    MissingDataset,
    OptionError,
    near,
)
from fgkd.packages import require

NONE: Mapping[str, str] = {}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load(where: str | Path, options: Mapping[str, str] = NONE) -> Dataset:
    """The dataset at a path or of a name on the hub.

    Classes are the names of a ClassLabel column, else the labels, sorted. Keys are paths in the
    folder, of images that are in files of their own; else `<split>/<file name>` where these are
    different for all images of a split, else `<split>/<number>`.
    Raises: MissingPackage, MissingDataset, OptionError, DatasetError.
    """
    require("a dataset hf:", "datasets")
    parts = _parts(str(where), options)
    named = {SPLIT_OF[name]: name for name in parts if name in SPLIT_OF}
    if not named:
        there = ", ".join(parts)
        raise DatasetError(
            f"{where} has the splits {there}; none is train, val or test", path=where
        )
    notes = []
    if others := [name for name in parts if name not in named.values()]:
        notes.append(f"not read: the splits {', '.join(others)} of {where}")
    features = parts[next(iter(named.values()))].features
    image = _column(features, "image", options.get("image_column"), where)
    label = _column(features, "label", options.get("label_column"), where)
    columns = {s: list(parts[name].with_format(None)[label]) for s, name in named.items()}
    classes, label_of = _classes(features[label], columns)
    splits: dict[str, Samples] = {}
    for split in ("train", "val", "test"):
        if split in named:
            labels = np.array([label_of.get(value, -1) for value in columns[split]], np.int64)
            splits[split] = _samples(parts[named[split]], image, named[split], labels, where)
            if count := int((labels < 0).sum()):
                notes.append(f"{count:,} images of {split} have no label")
    return Dataset("hf", classes, ["hf"], splits, notes=notes)


def _parts(where: str, options: Mapping[str, str]) -> Mapping[str, Any]:
    """The splits by the name that the library has for them."""
    import datasets

    path = Path(where)
    is_saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    is_parquet = path.suffix == ".parquet" and path.is_file()
    unused = {"config": is_saved or is_parquet, "revision": path.exists()}
    for option in options:
        if unused.get(option):
            rest = {name: value for name, value in options.items() if name != option}
            raise _data_error(f"{option} has no effect on {where}", where, options, rest)
    try:
        if is_saved:
            found = datasets.load_from_disk(where)
        elif is_parquet:
            found = datasets.load_dataset("parquet", data_files=where)
        else:
            names = {"name": options.get("config"), "revision": options.get("revision")}
            found = from_hub(lambda: datasets.load_dataset(where, **names))
    except Exception as error:  # the library raises many kinds
        raise _explained(error, where, options) from error
    parts = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
    return {name: part for name, part in parts.items() if len(part)}


def _explained(error: Exception, where: str, options: Mapping[str, str]) -> FgkdError:
    """The error of a dataset that the library does not load."""
    import datasets

    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = f"cannot load the Hugging Face dataset {where}: {reason}"
    if "config" in options and isinstance(error, ValueError):
        with contextlib.suppress(Exception):  # of the library, about what failed already
            names = datasets.get_dataset_config_names(where, revision=options.get("revision"))
            if options["config"] not in names:
                return _data_error(message, where, options, {**options, "config": names[0]})
    if HUB_NAME.fullmatch(where) and not Path(where).exists():
        return DatasetHubError(
            message,
            path=where,
            dataset="hf",
            url=f"{datasets.config.HF_ENDPOINT}/datasets/{where}",
            status=http_status(error),
            offline=datasets.config.HF_HUB_OFFLINE,
        )
    if isinstance(error, FileNotFoundError | ConnectionError):
        return MissingDataset(message, path=where, dataset="hf")
    return DatasetError(message, path=where)


def _data_error(
    message: str, where: str, given: Mapping[str, str], better: Mapping[str, str]
) -> OptionError:
    """The error of a spec with an option that is wrong there; `better` has the options to use."""
    value, suggestion = (str(Spec("hf", where, dict(options))) for options in (given, better))
    return OptionError(message, option="data", value=value, suggestion=(suggestion,))


def _column(features: Any, kind: str, given: str | None, where: str | Path) -> str:
    """The name of the image or label column: as given, by its type, or by a usual name."""
    import datasets

    message = f"which column of {where} is the {kind}?"
    if given:
        if given in features:
            return given
        message = f"{where} has no column {given!r}{near(given, list(features))}"
    else:
        wanted = datasets.Image if kind == "image" else datasets.ClassLabel
        typed = [name for name, feature in features.items() if isinstance(feature, wanted)]
        if kind == "image" and not typed:
            typed = [name for name, feature in features.items() if _holds_images(feature)]
        usual = [name for name in ("labels", *KNOWN[LABEL]) if name in features]
        found = typed or (usual if kind == "label" else [])
        if len(found) == 1 or kind in found:
            return kind if kind in found else found[0]
    suggestion = kind if kind in features else next(iter(features))
    message = f"{message}; it has {', '.join(features)}"
    raise OptionError(message, option=f"{kind}_column", value=given, suggestion=suggestion)


def _holds_images(feature: Any) -> bool:
    """Whether a column's values are images: encoded bytes, alone or in an Image's own struct."""
    import datasets

    binary = datasets.Value("binary"), datasets.Value("large_binary")
    if isinstance(feature, dict):
        return feature.get("bytes") in binary and set(feature) <= {"bytes", "path"}
    return isinstance(feature, datasets.Image) or feature in binary


def _classes(
    feature: Any, columns: Mapping[str, Sequence[Any]]
) -> tuple[list[str], dict[Any, int]]:
    """Class names, and value -> label."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), {i: i for i in range(len(feature.names))}
    values = {value for column in columns.values() for value in column if value is not None}
    values -= {-1, ""}
    ordered = sorted(values)
    return list(map(str, ordered)), {value: i for i, value in enumerate(ordered)}


def _samples(part: Any, image: str, name: str, labels: np.ndarray, where: str | Path) -> Samples:
    if not _holds_images(part.features[image]):
        message = f"column {image!r} of {where} does not hold images"
        raise OptionError(message, option="image_column", value=image, suggestion="image")
    if part._indices is not None:
        part = part.flatten_indices()
    keys, paths, places = [], [], list[Place | None]()
    for file in part.cache_files:
        for key, path, place in _images(file["filename"], image, Path(where).absolute()):
            keys.append(key)
            paths.append(path)
            places.append(place)
    is_numbered = len(set(keys)) < len(keys) or not all(keys)
    if is_numbered:
        keys = [f"{i:08d}" for i in range(len(keys))]
    if is_numbered or any(places):  # not paths from the root, which begin with a split's folder
        keys = [f"{name}/{key}" for key in keys]
        top = Path(where).absolute() if Path(where).exists() else where
        paths = [
            f"{top}/{key}" if place else path
            for key, path, place in zip(keys, paths, places, strict=True)
        ]
    zeros = np.zeros(len(keys), np.int64)
    return Samples(keys, labels, zeros, paths, places=places if any(places) else None)


def _images(file: str, image: str, root: Path) -> Iterator[tuple[str, str, Place | None]]:
    """(key or "", path for errors, place inside this Arrow file or None) of each image."""
    import pyarrow as pa

    with pa.memory_map(file) as memory:
        start, size = memory.read_buffer().address, memory.size()
        memory.seek(0)
        column = pa.ipc.open_stream(memory).read_all().column(image)
        for chunk in column.chunks:
            known = {field.name for field in chunk.type} if pa.types.is_struct(chunk.type) else ()
            contents = chunk.field("bytes") if known else chunk
            names = chunk.field("path").to_pylist() if "path" in known else [None] * len(chunk)
            is_inside = contents.is_valid().to_numpy(zero_copy_only=False)
            _, offsets, data = contents.buffers()
            base = data.address - start if data is not None else 0
            if is_inside.any() and not 0 <= base <= size - data.size:
                message = f"{file} is compressed, and its images cannot be read in place"
                raise DatasetError(message, path=file)
            kind = np.int64 if pa.types.is_large_binary(contents.type) else np.int32
            ends = np.frombuffer(offsets, kind)[contents.offset :].tolist() if offsets else []
            for i, path in enumerate(names):
                if is_inside[i]:
                    place = (file, base + ends[i], ends[i + 1] - ends[i])
                    yield os.path.basename(path or ""), file, place
                else:
                    file_path = Path(path or "")
                    is_below = file_path.is_relative_to(root)
                    key = file_path.relative_to(root).as_posix() if is_below else ""
                    yield key, str(file_path), None
