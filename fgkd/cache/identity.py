"""The identity of a cache: everything that decides its content, apart from the number of views.

Two caches may share files only if their identities are equal. On disk an identity is JSON, which
may come from anyone: `Identity.from_json` checks all of it before any of it is used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fgkd import files
from fgkd.data import Dataset
from fgkd.errors import FgkdError
from fgkd.views.recipes import ViewIdentity, ViewRecipe

FORMAT_VERSION = 3
MAX_SIZE = 8192  # pixels of a view's side
ENSEMBLES = (None, "logits", "probs")

TEMPLATE = {
    "format_version": int,
    "format": str,
    "encoding": {"name": str, "top_k": int, "temperatures": [float]},
    "shard_size": int,
    "dtype": str,
    "teachers": [
        {
            "architecture": str,
            "weights_sha256": str,
            "img_size": int,
            "mean": [float],
            "std": [float],
        }
    ],
    "ensemble": Any,
    "views": {"recipe": {}, "seed": int, "img_size": int, "short_side": Any},
    "dataset": {
        "name": str,
        "classes": [str],
        "domains": [str],
        "chiral": bool,
        "val_fraction": float,
    },
    "samples_sha256": str,
}


@dataclass(frozen=True)
class EncodingIdentity:
    """How logits are stored: a name of `encodings.ENCODINGS`.

    top_k, temperatures: only `topk` and `topk8` have them; 0 and () otherwise.
    """

    name: str
    top_k: int = 0
    temperatures: tuple[float, ...] = ()


@dataclass(frozen=True)
class TeacherIdentity:
    """One teacher model. img_size: the side of its input in pixels; mean, std: per channel."""

    architecture: str
    weights_sha256: str
    img_size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class DatasetIdentity:
    """A dataset's name, classes and domains.

    chiral: left and right are classes. val_fraction: the share of training images that become the
    validation split where the dataset has none.
    """

    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    chiral: bool
    val_fraction: float

    @staticmethod
    def of(dataset: Dataset, val_fraction: float) -> DatasetIdentity:
        """The identity of an opened dataset."""
        classes, domains = tuple(dataset.classes), tuple(dataset.domains)
        return DatasetIdentity(dataset.name, classes, domains, dataset.chiral, val_fraction)

    def to_json(self) -> dict[str, Any]:
        """As on disk."""
        lists = {"classes": list(self.classes), "domains": list(self.domains)}
        return asdict(self) | lists


@dataclass(frozen=True)
class Identity:
    """Everything that decides a cache's content, apart from the number of views.

    format: shard format. shard_size: images per shard. dtype: number type of the teachers.
    ensemble: what several teachers average, `logits` or `probs`; None for one teacher.
    samples_sha256: fingerprint of the columns of samples.h5; "" for a version 2 cache, which has no
    such file. added: how many training images were added to a cache, at the end of its samples, in
    each addition; earlier: the identities' sha256 before these.
    """

    format: str
    encoding: EncodingIdentity
    shard_size: int
    dtype: str
    teachers: tuple[TeacherIdentity, ...]
    ensemble: str | None
    views: ViewIdentity
    dataset: DatasetIdentity
    samples_sha256: str
    format_version: int = FORMAT_VERSION
    added: tuple[int, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of its canonical JSON. (Of a version 2 cache the manifest knows the hash.)"""
        return files.fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As on disk."""
        encoding = asdict(self.encoding) | {"temperatures": list(self.encoding.temperatures)}
        return {
            "format_version": self.format_version,
            "format": self.format,
            "encoding": encoding,
            "shard_size": self.shard_size,
            "dtype": self.dtype,
            "teachers": [
                asdict(one) | {"mean": list(one.mean), "std": list(one.std)}
                for one in self.teachers
            ],
            "ensemble": self.ensemble,
            "views": self.views.to_json(),
            "dataset": self.dataset.to_json(),
            "samples_sha256": self.samples_sha256,
            **self._additions(),
        }

    def _additions(self) -> dict[str, list[int] | list[str]]:
        if not self.added:
            return {}
        return {"added": list(self.added), "earlier": list(self.earlier)}

    @staticmethod
    def from_json(value: Any) -> Identity:
        """The identity that is written as `value`.

        Raises: ValueError for a field that is missing, unknown, of another type or out of range.
        """
        if not files.matches(value, TEMPLATE):
            raise ValueError("a field is missing or of another type")
        found = _parsed(value)
        if found.to_json() != value:
            raise ValueError("a field is unknown or not in its canonical form")
        return found


def _parsed(value: dict[str, Any]) -> Identity:
    """The identity of JSON that matches the template. Raises: ValueError."""
    views, encoding, dataset = value["views"], value["encoding"], value["dataset"]
    try:
        recipe = ViewRecipe.from_dict(views["recipe"])
    except FgkdError as error:
        raise ValueError(error.message) from None
    side = views["short_side"]
    if type(side) not in (int, type(None)) or (side is not None and side <= 0):
        raise ValueError(f"views.short_side is {side!r}")
    if not 0 < views["img_size"] <= MAX_SIZE:
        raise ValueError(f"views.img_size is {views['img_size']}")
    if value["shard_size"] <= 0:
        raise ValueError(f"shard_size is {value['shard_size']}")
    if value["ensemble"] not in ENSEMBLES:
        raise ValueError(f"ensemble is {value['ensemble']!r}")
    added, earlier = value.get("added", []), value.get("earlier", [])
    if not (files.matches(added, [int]) and files.matches(earlier, [str])) or len(added) != len(
        earlier
    ):
        raise ValueError("added and earlier do not fit together")
    if any(count <= 0 for count in added):
        raise ValueError("images were added, but none")
    return Identity(
        format=value["format"],
        encoding=EncodingIdentity(
            encoding["name"], encoding["top_k"], tuple(encoding["temperatures"])
        ),
        shard_size=value["shard_size"],
        dtype=value["dtype"],
        teachers=tuple(
            TeacherIdentity(
                one["architecture"],
                one["weights_sha256"],
                one["img_size"],
                tuple(one["mean"]),
                tuple(one["std"]),
            )
            for one in value["teachers"]
        ),
        ensemble=value["ensemble"],
        views=ViewIdentity(recipe, views["seed"], views["img_size"], side),
        dataset=DatasetIdentity(
            dataset["name"],
            tuple(dataset["classes"]),
            tuple(dataset["domains"]),
            dataset["chiral"],
            dataset["val_fraction"],
        ),
        samples_sha256=value["samples_sha256"],
        format_version=value["format_version"],
        added=tuple(added),
        earlier=tuple(earlier),
    )
