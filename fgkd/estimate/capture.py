"""Estimates of a cache: bytes in every encoding, and time from a measured teacher."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import files
from fgkd.cache import encodings
from fgkd.cache.shards import Shard, ShardHeader, ShardJob
from fgkd.cache.writer import Writer, stored_arrays
from fgkd.config import CacheSpec
from fgkd.config.specs import ENCODING_NAMES
from fgkd.distillation.capture import Capture
from fgkd.estimate.image_store import StoreEstimate
from fgkd.evaluation import inference
from fgkd.evaluation.cost import inference_cost
from fgkd.loading.workers import render
from fgkd.models import Classifier
from fgkd.views.clean import clean_renderer
from fgkd.views.rendering import RenderedViews, Request, ViewRenderer

MEASURE_S = 8.0  # seconds of teacher time to measure its speed by
WARMUP = 3  # batches before the measured ones: workers start, kernels are chosen
MIXING_BYTES = 8 + 4 + 4 * 2  # of a mixed view: partner, lambda and box


@dataclass(frozen=True)
class CaptureEstimate:
    """What a cache would cost.

    encodings: bytes in each. encoding: the one asked for. targets: views still to write.
    batch_size: views of a forward pass. None where there is no teacher to measure.
    """

    samples: int
    views: int
    targets: int
    encodings: dict[str, int]
    encoding: str
    free_bytes: int
    free_folder: Path
    store: StoreEstimate
    batch_size: int | None = None
    views_per_s: float | None = None
    hours: float | None = None
    memory_bytes: int | None = None
    flops_per_view: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the command writes them."""
        total = max(1, self.samples * self.views)
        each = {n: {"bytes": s, "bytes_per_view": s / total} for n, s in self.encodings.items()}
        return {
            "samples": self.samples,
            "views": self.views,
            "encodings": each,
            "images_per_s": self.views_per_s,
            "hours": self.hours,
            "memory_bytes": self.memory_bytes,
            "flops_per_view": self.flops_per_view,
            "image_store_bytes": self.store.num_bytes,
            "free_bytes": self.free_bytes,
        }

    def lines(self) -> list[str]:
        """The estimate as text."""
        found = [f"dry run: {self.targets:,} targets to write, nothing was written"]
        if self.views_per_s is None or self.hours is None:
            found.append("  teacher  not there yet: no speed, no memory; keys and headers excluded")
        else:
            took = files.human_time(self.hours * 3600)
            found.append(f"  teacher  {self.views_per_s:,.0f} views/s measured; {took} in total")
            memory, flops = files.human_bytes(self.memory_bytes or 0), self.flops_per_view or 0
            found.append(
                f"  memory   {memory} of a GPU at {self.batch_size} views; "
                f"{flops / 1e9:,.3g} GFLOP per view"
            )
        for name, size in self.encodings.items():
            chosen = "  <- chosen" if name == self.encoding else ""
            found.append(f"  {name:<8} {files.human_bytes(size)}{chosen}")
        if self.store.text:
            found.append(f"  store    {self.store.text}")
        free = files.human_bytes(self.free_bytes)
        return [*found, f"  free     {free} at {self.free_folder}"]


@dataclass(frozen=True)
class Speed:
    """A measured pass over images: seconds until it runs at full speed, then views per second."""

    start_s: float
    views_per_s: float

    def seconds(self, num_views: int) -> float:
        """How long so many views take."""
        return self.start_s + num_views / self.views_per_s if num_views else 0.0


def measure(
    renderer: ViewRenderer,
    requests: Iterable[Request],
    forward: Callable[[RenderedViews], object],
    workers: int,
) -> Speed:
    """The speed of rendering views and passing them to `forward`, after a warm-up."""
    clock = began = time.perf_counter()
    warm = views = number = 0
    for number, answer in enumerate(render(renderer, requests, workers), start=1):
        forward(answer)
        now = time.perf_counter()
        if number <= WARMUP:
            began, warm = now, warm + answer.digests_BV.size
            continue
        views += answer.digests_BV.size
        if now - began > MEASURE_S:
            break
    if not views:  # so few batches that they were all warm-up
        return Speed(0.0, warm / max(began - clock, 1e-9))
    rate = views / max(now - began, 1e-9)
    return Speed(max(0.0, began - clock - warm / rate), rate)


def capture_seconds(capture: Capture, jobs: Sequence[ShardJob]) -> tuple[float, float]:
    """(seconds to write these shards, views per second while the teacher runs), both measured."""
    if not jobs:
        return 0.0, 0.0
    teachers, writer = capture.teachers, capture.writer
    renderer = capture.views.renderer(
        teachers.sizes, skip_unreadable=capture.skip_unreadable, store=capture.images
    )
    logits: deque[np.ndarray] = deque(maxlen=64)
    requests = (request for job in jobs for request, _ in capture.requests(job))
    speed = measure(
        renderer, requests, lambda a: logits.append(teachers.logits(a.images)), capture.workers
    )
    sizes = [len(writer.block_rows[job.block]) * (job.stop - job.start) for job in jobs]
    publish_s = time_publish(capture, jobs[0], np.concatenate(logits))
    return speed.seconds(sum(sizes)) + publish_s * sum(sizes) / sizes[0], speed.views_per_s


def time_publish(capture: Capture, job: ShardJob, logits_NK: np.ndarray) -> float:
    """Seconds to encode, sum up, write and hash a shard of such logits, in a temporary folder."""
    own, num_classes = capture.writer, logits_NK.shape[1]
    with tempfile.TemporaryDirectory(prefix="fgkd-plan-") as folder:
        writer = Writer(Path(folder), own.identity, own.samples, own.views, own.read)
        began = time.perf_counter()
        captured = writer.captured(job)
        for request, places in capture.requests(job):
            shape = (len(places), len(request.views))
            digests_BV, lams_BV = np.zeros(shape, np.uint64), np.ones(shape, np.float32)
            logits_BVK = np.resize(logits_NK, (*shape, num_classes))
            mixed = (request.partners, lams_BV, np.zeros((*shape, 4), np.int16))
            captured.put(places, request.views, logits_BVK, digests_BV, *mixed)
        writer.publish(captured)
        return time.perf_counter() - began


def val_seconds(capture: Capture) -> float:
    """Seconds for every teacher to classify the clean validation images."""
    if not capture.writer.needs_val():
        return 0.0
    teachers, samples, total = capture.teachers, capture.dataset.splits["val"], 0.0
    for model, compiled in teachers.passes():
        renderer = clean_renderer(samples, model.eval_transform, capture.skip_unreadable)
        requests = inference.clean_requests(np.arange(len(samples)), teachers.max_batch)

        def forward(
            answer: RenderedViews,
            model: Classifier = model,
            compiled: inference.Compiled | None = compiled,
        ) -> None:
            inference.logits(
                *(model, answer.images[0]),
                device=teachers.device,
                max_batch=teachers.max_batch,
                amp_dtype=teachers.amp_dtype,
                compiled=compiled,
            )

        total += measure(renderer, requests, forward, capture.workers).seconds(len(samples))
    return total


def encoding_bytes(writer: Writer, spec: CacheSpec, name: str) -> int:
    """Bytes of shards/ once complete, in one encoding: those written and those to come.

    Measured on shards of zeros in the system's temporary folder.
    """
    identity, block_rows = writer.identity, writer.block_rows
    num_classes = len(identity.dataset.classes)
    encoding = encodings.describe(name, spec.top_k, spec.temperatures, num_classes)
    codec = encodings.Codec.of(encoding, num_classes, identity.views.recipe.mixes)
    spans = [(job.block, job.stop - job.start) for job in writer.jobs()]
    there = [row for row in writer.published() if row.block >= 0]
    spans += [(row.block, row.stop - row.start) for row in there]
    total = 0
    with tempfile.TemporaryDirectory(prefix="fgkd-plan-") as folder:
        blank = Path(folder) / "shard"
        for (length, views), count in Counter((len(block_rows[b]), v) for b, v in spans).items():
            rows = next(rows for rows in block_rows if len(rows) == length)
            writer.backend.write(blank, _blank_shard(writer, codec, views, rows))
            total += count * blank.stat().st_size
    if writer.backend.HOLDS_IMAGES:
        padded = -(-np.maximum(writer.samples["train"].sizes, 0) // 512) * 512
        total += sum(int(padded[block_rows[block]].sum()) for block, _ in spans)
    return total


def _blank_shard(writer: Writer, codec: encodings.Codec, views: int, rows: np.ndarray) -> Shard:
    shapes, train = stored_arrays(codec), writer.samples["train"]
    return Shard(
        header=ShardHeader("0" * 64, 0, 0, views),
        keys=[train.keys[i] for i in rows],
        labels=train.labels[rows],
        rows=rows,
        classes=writer.identity.dataset.classes,
        arrays={n: np.zeros((views, len(rows), *s), d) for n, (d, s) in shapes.items()},
        read=lambda i: b"",
    )


def estimate_capture(
    capture: Capture,
    jobs: Sequence[ShardJob],
    spec: CacheSpec,
    store: StoreEstimate,
    setup_s: float = 0.0,
) -> CaptureEstimate:
    """The bytes, time and GPU memory of these shards.

    setup_s: seconds that the command takes before its first batch.
    """
    writer = capture.writer
    seconds, rate = capture_seconds(capture, jobs)
    seconds += val_seconds(capture)
    seconds += setup_s if seconds else 0.0
    memory, flops = teacher_cost(capture)
    free, folder = files.free(writer.folder)
    return CaptureEstimate(
        samples=len(writer.samples["train"]),
        views=spec.views,
        targets=sum(len(writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs),
        encodings={name: encoding_bytes(writer, spec, name) for name in ENCODING_NAMES},
        encoding=writer.codec.name,
        free_bytes=free,
        free_folder=folder,
        batch_size=capture.teachers.max_batch,
        store=store,
        views_per_s=rate,
        hours=seconds / 3600,
        memory_bytes=memory,
        flops_per_view=flops,
    )


def teacher_cost(capture: Capture) -> tuple[int, float]:
    """(bytes of a GPU that holds all teachers and runs one at a time, FLOPs per view)."""
    teachers = capture.teachers
    amp = teachers.dtype == "bfloat16"
    each = [
        inference_cost(model, teachers.max_batch, model.config["input_size"][-1], amp)
        for model in teachers.models
    ]
    memory = sum(held for held, _, _ in each) + max(peak for _, peak, _ in each)
    return memory, sum(flops for _, _, flops in each) / teachers.max_batch


def estimate_without_teacher(
    spec: CacheSpec,
    output: Path,
    *,
    num_samples: int,
    num_classes: int,
    mixes: bool,
    store: StoreEstimate,
) -> CaptureEstimate:
    """The bytes of the targets by formula, before there is a teacher."""
    sizes = {}
    for name in ENCODING_NAMES:
        encoding = encodings.describe(name, spec.top_k, spec.temperatures, num_classes)
        codec = encodings.Codec.of(encoding, num_classes, mixes)
        each = codec.bytes_per_view() + (MIXING_BYTES if mixes else 0)
        sizes[name] = num_samples * spec.views * each
    free, folder = files.free(output)
    return CaptureEstimate(
        samples=num_samples,
        views=spec.views,
        targets=num_samples * spec.views,
        encodings=sizes,
        encoding=spec.encoding,
        free_bytes=free,
        free_folder=folder,
        store=store,
    )
