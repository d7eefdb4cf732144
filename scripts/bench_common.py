"""What the measurements share: rows of the table, pictures, made-up caches, interleaving."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from fgkd import files
from fgkd.cache import hdf5, samples_file
from fgkd.cache.identity import (
    DatasetIdentity,
    EncodingIdentity,
    Identity,
    TeacherIdentity,
    ViewIdentity,
)
from fgkd.cache.samples import HASH_TYPE, SampleTable, SampleTables
from fgkd.cache.shards import Shard, ShardHeader, ShardJob, ShardRow
from fgkd.cache.writer import Writer
from fgkd.data import (
    Samples,
    content,
)
from fgkd.data.keys import Keys
from fgkd.views import recipes
from fgkd.views.rendering import KeyedView, Request, ViewRenderer

LIGHT = recipes.RECIPES["light"]


@dataclass(frozen=True)
class Row:
    """One line of the table. bar None: for comparison only; spread: quartiles over repeats."""

    what: str
    against: str
    value: float | None
    bar: float | None = None
    at_most: bool = False
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; what was not measured does not meet it."""
        if self.bar is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class Plan:
    """Where to work, and how much: `quick` shows that everything runs, and measures nothing."""

    folder: Path
    quick: bool
    device: torch.device
    workers: int

    def pick(self, full: int, quick: int, on_cuda: int | None = None) -> int:
        """One of these amounts; a GPU takes more of most to show anything."""
        if self.quick:
            return quick
        return on_cuda if on_cuda is not None and self.device.type == "cuda" else full

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """What every model computes in: bfloat16 where autocast is what everybody uses."""
        return torch.bfloat16 if self.device.type == "cuda" else None

    def child(self, measure: Callable[..., Any], *args: object) -> Any:
        """measure(plan, *args) in a process of its own, which begins as a command does.

        Of a quick run in this one. Arguments are text, the answer is JSON.
        """
        if self.quick:
            return measure(self, *map(str, args))
        name = f"{measure.__module__}:{measure.__name__}"
        where = ("--device", self.device, "--workers", self.workers, "--child", self.folder, name)
        command = [sys.executable, str(ROOT / "scripts/bench.py"), *map(str, (*where, *args))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def interleave(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds (or whatever they return) of each, taken in turn, so that drift touches all alike."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: np.array(values) for name, values in found.items()}


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median and quartiles of paired ratios."""
    low, middle, high = np.percentile(over / under, [25, 50, 75]).tolist()
    return middle, (low, high)


def photo(seed: int, width: int = 500, height: int = 375) -> bytes:
    """A JPEG with the 1/f spectrum of photographs: about 99 KB, CUB-200's average is 97 KB."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / width

    def field(power: float) -> np.ndarray:
        noise = draw.normal(size=(2, *frequency.shape))
        image = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**power, (height, width))
        return (image - image.mean()) / image.std()

    planes = [128 + 50 * field(1.15), 128 + 18 * field(1.5), 128 + 18 * field(1.5)]
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def samples_of(folder: Path, num: int, files: int, width: int = 500, height: int = 375) -> Samples:
    """`num` samples over `files` different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.jpg" for i in range(files)]
    for i, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(photo(i, width, height))
    zeros = np.zeros(num, np.int64)
    keys = Keys.of(f"{i:07d}.jpg" for i in range(num))
    return Samples(keys, zeros, zeros, Keys.of(str(paths[i % files]) for i in range(num)))


def identity_of(
    view: KeyedView, num_classes: int, shard_size: int, size: int
) -> tuple[Identity, SampleTables]:
    """A cache's identity and samples, as cache-logits describes these images and views."""
    samples = view.samples
    seen = {path: Path(path).read_bytes() for path in set(samples.paths)}
    sizes = {path: len(data) for path, data in seen.items()}
    hashes = {path: content.content_hash(data) for path, data in seen.items()}
    train = SampleTable(
        Keys.of(samples.keys),
        samples.labels,
        samples.domains,
        np.array([sizes[path] for path in samples.paths]),
        np.array([hashes[path].encode() for path in samples.paths], HASH_TYPE),
    )
    tables = {"train": train, "val": SampleTable.empty()}
    identity = Identity(
        format="hdf5",
        encoding=EncodingIdentity("dense"),
        shard_size=shard_size,
        dtype="float32",
        teachers=(TeacherIdentity("made up", "", size),),
        ensemble=None,
        views=ViewIdentity(view.recipe, view.seed, size, view.short_side),
        dataset=DatasetIdentity(
            "made up", tuple(map(str, range(num_classes))), ("made up",), False, 0.0
        ),
        samples_sha256=samples_file.fingerprint(tables),
    )
    return identity, tables


def write_cache(
    folder: Path,
    samples: Samples,
    num_views: int,
    num_classes: int,
    size: int,
    digests: bool,
    short_side: int | None = None,
) -> Path:
    """A complete cache of random logits in shards of 1,024 samples; the same logits in each."""
    view = KeyedView(samples, LIGHT, 0, short_side)
    identity, tables = identity_of(view, num_classes, 1024, size)
    writer = Writer(folder, identity, tables, num_views, lambda split, row: b"")
    writer.begin()
    full = np.random.default_rng(0).normal(size=(num_views, 1024, num_classes)).astype(np.float16)
    renderer = ViewRenderer(view, [size])
    for job in writer.jobs():
        rows = writer.block_rows[job.block]
        found = np.zeros((num_views, len(rows)), np.uint64)
        if digests:
            found = renderer[Request(rows, range(num_views))].digests_BV.T
        _publish(writer, job, {"logits": full[:, : len(rows)], "digests": found})
    writer.finish()
    return folder


def _publish(writer: Writer, job: ShardJob, arrays: dict[str, np.ndarray]) -> None:
    """What Writer.publish does, without the statistics of a teacher that there is not."""
    rows, path = writer.block_rows[job.block], writer.folder / "shards" / job.name
    header = ShardHeader(writer.identity_sha256, job.block, job.start, job.stop)
    keys = [writer.samples["train"].keys[i] for i in rows]
    labels = np.zeros(len(rows), np.int64)
    shard = Shard(header, keys, labels, rows, [], arrays, lambda i: b"")
    with files.replacing(path) as partial:
        hdf5.write(partial, shard)
    row = ShardRow(
        *(f"shards/{job.name}", job.block, job.start, job.stop, len(rows)),
        num_bytes=path.stat().st_size,
        sha256=files.sha256(path),
    )
    files.append_line(writer.folder / "shards.jsonl", row.to_json())


def peak_mib() -> float:
    """Peak resident MiB of this process (getrusage would count the parent's before exec, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def anonymous_mib() -> float:
    """Resident MiB of this process that are not of files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def grown(what: str, less: np.ndarray, more: np.ndarray, few: int, many: int) -> Row:
    """A row on the time of `many` beside `few`, as if that were ten times as many."""
    tenfold = more / less * (10 * few / many)
    low, middle, high = np.percentile(tenfold, [25, 50, 75]).tolist()
    note = f"{np.median(less):.2f} s, then {np.median(more):.2f}; start-up included"
    return Row(what, f"{few:,} to {many:,}", middle, 10.5, True, (low, high), note)


class Decoded(Dataset[int]):
    """Batches that are decoded, and dropped."""

    def __init__(self, samples: Samples, batch: int) -> None:
        self.samples, self.batch = samples, batch

    def __len__(self) -> int:
        return len(self.samples) // self.batch

    def __getitem__(self, i: int) -> int:
        for row in range(i * self.batch, (i + 1) * self.batch):
            simplejpeg.decode_jpeg(self.samples.read(row), "RGB")
        return i


def decoding(samples: Samples, workers: int, batch: int) -> DataLoader[int]:
    """Every file decoded by libjpeg-turbo in workers, batch by batch; nothing else."""
    return DataLoader(Decoded(samples, batch), None, num_workers=workers)
