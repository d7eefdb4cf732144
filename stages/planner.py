"""`cache-logits --dry-run`: what a cache would cost, measured; nothing is written."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import files, models
from fgkd.cache import encodings
from fgkd.cache.shards import Shard, ShardHeader, ShardJob
from fgkd.cache.writer import Writer, stored_arrays
from fgkd.config import CacheLogitsConfig
from fgkd.config.specs import ENCODING_NAMES
from fgkd.data import open_dataset
from fgkd.evaluation import inference
from fgkd.loading.workers import render
from fgkd.views.rendering import RenderedViews, Request, ViewRenderer, clean_renderer

from . import assembly, session
from .capture import Capture
from .dry_run import inference_cost

MEASURE_S = 8.0  # seconds of teacher time to measure its speed by
WARM = 3  # answers that come before the measured ones: workers starting, kernels being chosen


@dataclass(frozen=True)
class Speed:
    """A measured pass over images: seconds before it is at speed, then views a second."""

    start_s: float
    views_per_s: float

    def seconds(self, num_views: int) -> float:
        """How long so many views take."""
        return self.start_s + num_views / self.views_per_s if num_views else 0.0


def measure(
    renderer: ViewRenderer,
    requests: Iterable[Request],
    ask: Callable[[RenderedViews], None],
    workers: int,
) -> Speed:
    """The speed of fetching and asking, over the first requests (two or more) after a warm-up."""
    clock = began = time.perf_counter()
    warm = views = number = 0
    for number, answer in enumerate(render(renderer, requests, workers), start=1):
        ask(answer)
        now = time.perf_counter()
        if number <= WARM:
            began, warm = now, warm + answer.digests_BV.size
            continue
        views += answer.digests_BV.size
        if now - began > MEASURE_S:
            break
    if not views:  # so few that starting is all there is
        return Speed(0.0, warm / max(began - clock, 1e-9))
    rate = views / max(now - began, 1e-9)
    return Speed(max(0.0, began - clock - warm / rate), rate)


def capture_seconds(capture: Capture, jobs: list[ShardJob]) -> tuple[float, float]:
    """(seconds to write these shards, views a second while the teacher runs), both measured."""
    if not jobs:
        return 0.0, 0.0
    options, teachers, writer = capture.options, capture.teachers, capture.writer
    renderer = ViewRenderer(
        capture.view, teachers.sizes, None, options.skip_bad_images, capture.images
    )
    answers: deque[np.ndarray] = deque(maxlen=64)
    requests = (request for job in jobs for request, _ in capture.requests(job))
    speed = measure(
        renderer, requests, lambda a: answers.append(teachers.logits_of(a.images)), options.workers
    )
    sizes = [len(writer.block_rows[job.block]) * (job.stop - job.start) for job in jobs]
    publish_s = time_publish(capture, jobs[0], np.concatenate(answers))
    return speed.seconds(sum(sizes)) + publish_s * sum(sizes) / sizes[0], speed.views_per_s


def time_publish(capture: Capture, job: ShardJob, logits_NK: np.ndarray) -> float:
    """Seconds to encode, sum up, write and hash a shard of such logits, in the temporary folder."""
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
    """Seconds to ask every teacher for the clean validation images."""
    if not capture.writer.needs_val():
        return 0.0
    options, samples = capture.options, capture.dataset.splits["val"]
    total = 0.0
    for model in capture.teachers.models:
        renderer = clean_renderer(samples, model.config, options.skip_bad_images)
        requests = inference.clean_requests(np.arange(len(samples)), options.batch_size)

        def ask(answer: RenderedViews, model: models.Classifier = model) -> None:
            inference.logits_of(
                model,
                answer.images[0],
                device=capture.teachers.device,
                max_batch=options.batch_size,
            )

        total += measure(renderer, requests, ask, options.workers).seconds(len(samples))
    return total


def encoding_bytes(writer: Writer, options: CacheLogitsConfig, name: str) -> int:
    """Bytes of shards/ once complete, in one encoding: those there and those to come.

    From shards of zeros in the system's temporary folder; in memory HDF5 lays them out otherwise.
    """
    identity, block_rows = writer.identity, writer.block_rows
    num_classes = len(identity.dataset.classes)
    encoding = encodings.describe(name, options.top_k, options.temperatures, num_classes)
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


def dry_run(capture: Capture, jobs: list[ShardJob], started: float) -> None:
    """Print, and with --json write, the plan; started: time.monotonic() of the command."""
    identity, options = capture.writer.identity, capture.options
    setup_s = time.monotonic() - started
    num_targets = sum(len(capture.writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
    seconds, rate = capture_seconds(capture, jobs)
    seconds += val_seconds(capture)
    seconds += setup_s if seconds else 0.0
    sizes = {name: encoding_bytes(capture.writer, options, name) for name in ENCODING_NAMES}
    memory, flops = teacher_costs(capture, options)
    session.echo(f"dry run: {num_targets:,} targets to write, nothing was written")
    session.echo(
        f"  teacher  {rate:,.0f} views/s measured here; {files.human_time(seconds)} in all"
    )
    session.echo(
        f"  memory   {files.human_bytes(memory)} of a GPU at {options.batch_size} views; "
        f"{flops / 1e9:,.3g} GFLOP a view"
    )
    figures = {
        "images_per_s": rate,
        "hours": seconds / 3600,
        "memory_bytes": memory,
        "flops_per_view": flops,
    }
    planned = assembly.plan_images(capture.images, capture.view.samples, capture.view.short_side)
    num_samples = len(capture.writer.samples["train"])
    _report(options, sizes, num_samples, identity.encoding.name, figures, planned)


def teacher_costs(capture: Capture, options: CacheLogitsConfig) -> tuple[int, float]:
    """(bytes of a GPU that holds the teachers and asks one after another, FLOPs a view)."""
    amp = options.dtype == "bfloat16"
    each = [
        inference_cost(model, options.batch_size, model.config["input_size"][-1], amp)
        for model in capture.teachers.models
    ]
    memory = sum(held for held, _, _ in each) + max(widest for _, widest, _ in each)
    return memory, sum(flops for _, _, flops in each) / options.batch_size


def without_teacher(options: CacheLogitsConfig) -> None:
    """The plan before there is a teacher: the bytes of its targets, by the formula of each."""
    val_fraction = 0.1 if options.val_fraction is None else options.val_fraction
    dataset = open_dataset(session.absolute_specs(options.data.data), val_fraction)
    recipe = session.resolve_recipe(options, None, dataset.chiral)
    num_samples, num_classes = len(dataset.splits["train"]), len(dataset.classes)
    sizes = {}
    for name in ENCODING_NAMES:
        encoding = encodings.describe(name, options.top_k, options.temperatures, num_classes)
        codec = encodings.Codec.of(encoding, num_classes, recipe.mixes)
        mixed = 8 + 4 + 4 * 2 if recipe.mixes else 0  # a partner, lambda and a box
        sizes[name] = num_samples * options.views * (codec.bytes_per_view() + mixed)
    session.echo(f"fgkd cache-logits\n  data     {session.describe_data(dataset)}\n")
    session.echo(f"dry run: {num_samples * options.views:,} targets, nothing was written")
    session.echo("  teacher  not there yet: no speed, no memory; keys and headers not counted")
    unknown = dict.fromkeys(("images_per_s", "hours", "memory_bytes", "flops_per_view"))
    samples, side = dataset.splits["train"], options.image_store_side
    planned = assembly.plan_images(assembly.open_images(options, samples, side), samples, side)
    _report(options, sizes, num_samples, options.encoding, unknown, planned)


def _report(
    options: CacheLogitsConfig,
    sizes: dict[str, int],
    num_samples: int,
    encoding: str,
    figures: dict[str, Any],
    images: tuple[int | None, str],
) -> None:
    free, existing = files.free(Path(options.output))
    for name, size in sizes.items():
        chosen = "  <- --encoding" if name == encoding else ""
        session.echo(f"  {name:<8} {files.human_bytes(size)}{chosen}")
    if images[1]:
        session.echo(f"  store    {images[1]}")
    session.echo(f"  free     {files.human_bytes(free)} at {existing}")
    num_targets = max(1, num_samples * options.views)
    each = {n: {"bytes": size, "bytes_per_view": size / num_targets} for n, size in sizes.items()}
    report = {"samples": num_samples, "views": options.views, "encodings": each, **figures}
    report["image_store_bytes"] = images[0]
    if options.json:
        files.write_json(Path(options.json), {**report, "free_bytes": free})
