"""Shards of a cache: the plan of one, its content, and its row in the journal and the manifest.

Shape legend: V views and S samples of a shard, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import files
from fgkd.cache.identity import FORMAT_VERSION
from fgkd.errors import DamagedShard, FgkdError

MAX_VIEWS = 10**6
NUM_BINS = 15  # of the teacher's confidence, as in `metrics.ece_pct`
LOSS_TEMPERATURES = (1.0, 2.0, 4.0)  # at which the error of an encoding is measured
LIMIT = 2**53  # of numbers in statistics: a count up to it is exact in float64
NAME = re.compile(r"(shards|val)/\w[\w.-]*")


def unreadable(path: Path, error: Exception, what: str = "") -> FgkdError:
    """The error for a shard that cannot be read: damaged, unless it is the system that failed."""
    if files.is_transient(error):
        return files.read_error(path, error)
    return damaged(path, f"{what}{error}")


def damaged(path: Path, reason: str) -> DamagedShard:
    """The error for a shard that lies at CACHE/shards/NAME or CACHE/val/NAME."""
    message = f"shard {path} is damaged: {reason}"
    return DamagedShard(message, cache=path.parent.parent, path=path, reason=reason)


def map_file(path: Path, num_bytes: int) -> np.ndarray:
    """A file's bytes, uint8 and read-only: memory-mapped, without keeping a file descriptor."""
    import torch

    mapped = torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return mapped


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: a block of training rows and a view range [start, stop)."""

    block: int
    start: int
    stop: int
    suffix: str

    @property
    def name(self) -> str:
        """File name inside shards/, e.g. `shard-00000-v000-008.h5`."""
        return f"shard-{self.block:05d}-v{self.start:03d}-{self.stop:03d}{self.suffix}"


@dataclass(frozen=True)
class ShardHeader:
    """What a shard's file says of itself. block -1: the validation images."""

    identity_sha256: str
    block: int
    start: int
    stop: int
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> ShardHeader:
        """The header that is written as `value`. Raises: ValueError if it is none."""
        numbers = dict.fromkeys(("block", "start", "stop", "format_version"), int)
        if not files.matches(value, {"identity_sha256": str, **numbers}):
            raise ValueError("its header is incomplete")
        return ShardHeader(**{one.name: value[one.name] for one in fields(ShardHeader)})


@dataclass(frozen=True)
class Shard:
    """A shard's content. arrays: name -> [V, S, ...], the encoding's plus `digests` and mixing.

    rows: int64 [S], places in the split. read(i): the encoded image of sample i of the shard.
    boxes: float64 [S, 4], bounding boxes, where views are cropped inside them.
    """

    header: ShardHeader
    keys: list[str]
    labels: np.ndarray
    rows: np.ndarray
    classes: Sequence[str]
    arrays: dict[str, np.ndarray]
    read: Callable[[int], bytes]
    boxes: np.ndarray | None = None


# Statistics of the teacher on a shard's views


@dataclass(frozen=True)
class DomainCounts:
    """Labelled images of one domain in a shard; top1, top5: how many are right, for each view."""

    images: int
    top1: tuple[int, ...]
    top5: tuple[int, ...]


@dataclass(frozen=True)
class Suspect:
    """An image for which the teacher predicts another class than its label, in every view.

    answer: the class it predicts most often. confidence: the lowest of those predictions.
    """

    key: str
    label: int
    answer: int
    confidence: float


@dataclass(frozen=True)
class ShardStats:
    """Sums over a shard's V x S targets.

    entropy: in nats. ratios: the median of the largest logit over the second. bin_hits,
    bin_confidence: right targets and confidence for each bin of confidence, of labelled images.
    encoding_kl: KL(teacher || stored) at each of `LOSS_TEMPERATURES`; None: the encoding does not
    have that temperature.
    """

    domains: tuple[DomainCounts, ...]
    targets: int
    entropy: float
    ratios: float
    bin_hits: tuple[float, ...]
    bin_confidence: tuple[float, ...]
    encoding_kl: tuple[float | None, ...]
    suspects: tuple[Suspect, ...]

    def to_json(self) -> dict[str, Any]:
        """As on disk."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any, views: int) -> ShardStats:
        """The statistics of a shard of so many views. Raises: ValueError if they are none."""
        if not files.matches(value, STATS) or not isinstance(value["encoding_kl"], list):
            raise ValueError("statistics lack a part")
        domains = tuple(
            DomainCounts(one["images"], tuple(one["top1"]), tuple(one["top5"]))
            for one in value["domains"]
        )
        suspects = tuple(
            Suspect(one["key"], one["label"], one["answer"], one["confidence"])
            for one in value["suspects"]
        )
        kls = value["encoding_kl"]
        bins = (value["bin_hits"], value["bin_confidence"])
        numbers = [value["targets"], value["entropy"], value["ratios"], *bins[0], *bins[1]]
        numbers += [x for one in domains for x in (one.images, *one.top1, *one.top5)]
        numbers += [x for x in kls if x is not None] + [one.confidence for one in suspects]
        if not all(map(_is_number, numbers)):
            raise ValueError("statistics are not numbers, or too large")
        lengths = {len(x) for one in domains for x in (one.top1, one.top5)} | {views}
        if lengths != {views} or {len(x) for x in bins} != {NUM_BINS} or len(kls) != 3:
            raise ValueError("statistics are of another length")
        return ShardStats(
            domains,
            value["targets"],
            value["entropy"],
            value["ratios"],
            tuple(bins[0]),
            tuple(bins[1]),
            tuple(kls),
            suspects,
        )


def _is_number(value: Any) -> bool:
    if type(value) is float and not math.isfinite(value):
        return False
    return type(value) in (int, float) and abs(value) <= LIMIT


STATS = {
    **{"domains": [{"images": int, "top1": [int], "top5": [int]}], "targets": int},
    **{"entropy": float, "ratios": float, "bin_hits": [float], "bin_confidence": [float]},
    "encoding_kl": Any,
    "suspects": [{"key": str, "label": int, "answer": int, "confidence": float}],
}


# Rows of the journal and the manifest


@dataclass(frozen=True)
class ShardRow:
    """A published shard. name: its path inside the cache. start, stop: its range of views.

    block: -1 for the validation images. unreadable: keys of images without targets. stats: None
    for the validation images.
    """

    name: str
    block: int
    start: int
    stop: int
    samples: int
    num_bytes: int
    sha256: str
    unreadable: tuple[str, ...] = ()
    stats: ShardStats | None = None

    def to_json(self) -> dict[str, Any]:
        """As on disk."""
        return {
            "name": self.name,
            "block": self.block,
            "start": self.start,
            "stop": self.stop,
            "samples": self.samples,
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "bad": list(self.unreadable),
            "stats": self.stats.to_json() if self.stats else {},
        }

    @staticmethod
    def from_json(value: Any) -> ShardRow:
        """The row that is written as `value`.

        Raises: ValueError if it is none, or if it names a file outside the cache.
        """
        if not files.matches(value, ROW) or not NAME.fullmatch(value["name"]):
            raise ValueError("a shard's row is incomplete, or its name is not one")
        start, stop = value["start"], value["stop"]
        if not 0 <= start < stop <= MAX_VIEWS:
            raise ValueError(f"a shard has the views {start} to {stop}")
        stats = value.get("stats")
        return ShardRow(
            value["name"],
            value["block"],
            start,
            stop,
            value["samples"],
            value["bytes"],
            value["sha256"],
            tuple(value["bad"]),
            ShardStats.from_json(stats, stop - start) if stats else None,
        )


ROW = {
    **{"name": str, "block": int, "start": int, "stop": int},
    **{"samples": int, "bytes": int, "sha256": str, "bad": [str]},
}


def missing(
    spans: Iterable[tuple[int, int, int]], num_blocks: int, views: int
) -> list[tuple[int, int, int]]:
    """What is left of views [0, views) once (block, start, stop) are there, as such triples."""
    stops, gaps = [0] * num_blocks, []
    for block, start, stop in sorted(spans):
        before = min(start, views)
        if stops[block] < before:
            gaps.append((block, stops[block], before))
        stops[block] = max(stops[block], stop)
    gaps += [(block, stop, views) for block, stop in enumerate(stops) if stop < views]
    return sorted(gaps)
