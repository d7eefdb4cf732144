"""`cache-logits --dry-run`: what a cache would cost, measured; nothing is written."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import fsio, targets
from fgkd.cache import manifest
from fgkd.cache.manifest import Shard, ShardJob
from fgkd.cache.store import Writer
from fgkd.config import ENCODING_NAMES, CacheLogitsConfig
from fgkd.fetch import Fetcher, KeyedView, fetch

from . import session
from .capture import Capture

MEASURE_S = 8.0  # seconds of teacher time to measure its speed by


def measure(capture: Capture, jobs: list[ShardJob]) -> float:
    """Views a second of the real pipeline, over the first batches of the plan after a warm-up.

    0 where nothing is left to write.
    """
    if not jobs:
        return 0.0
    options, teachers = capture.options, capture.teachers
    view = KeyedView(capture.dataset.splits["train"], capture.recipe, options.seed)
    fetcher = Fetcher(view, teachers.sizes, None, options.skip_bad_images)
    planned = (request for job in jobs for request, _ in capture.requests(job))
    started, views = 0.0, 0
    requests = itertools.islice(planned, 4000)
    for number, answer in enumerate(fetch(fetcher, requests, options.workers)):
        teachers.ask(answer.images)
        if number < 3:  # workers starting, kernels being chosen
            started = time.perf_counter()
            continue
        views += answer.digests_BV.size
        if time.perf_counter() - started > MEASURE_S:
            break
    seconds = time.perf_counter() - started
    if not views:  # a plan of three batches: measure again from a warm start
        started = time.perf_counter()
        views = answer.digests_BV.size
        teachers.ask(answer.images)
        seconds = time.perf_counter() - started
    return views / max(seconds, 1e-9)


def encoding_bytes(writer: Writer, options: CacheLogitsConfig, name: str) -> int:
    """Bytes of shards/ once complete, in one encoding: those there and those to come.

    From shards of zeros in the system's temporary folder; in memory HDF5 lays them out otherwise.
    """
    identity, block_rows = writer.identity, writer.block_rows
    num_classes = len(identity["dataset"]["classes"])
    encoding = targets.describe(name, options.top_k, options.temperatures, num_classes)
    codec = targets.Codec.of({**identity, "encoding": encoding})
    spans = [(job.block, job.stop - job.start) for job in writer.jobs()]
    there = [row for row in writer.published() if row["block"] >= 0]
    spans += [(row["block"], row["stop"] - row["start"]) for row in there]
    total = 0
    with tempfile.TemporaryDirectory(prefix="fgkd-plan-") as folder:
        blank = Path(folder) / "shard"
        for (length, views), count in Counter((len(block_rows[b]), v) for b, v in spans).items():
            rows = next(rows for rows in block_rows if len(rows) == length)
            writer.backend.write(blank, _blank_shard(identity, codec, views, rows))
            total += count * blank.stat().st_size
    if writer.backend.HOLDS_IMAGES:
        padded = -(-np.maximum(identity["train"]["sizes"], 0) // 512) * 512
        total += sum(int(padded[block_rows[block]].sum()) for block, _ in spans)
    return total


def _blank_shard(
    identity: dict[str, Any], codec: targets.Codec, views: int, rows: np.ndarray
) -> Shard:
    shapes = {**codec.arrays(), "digests": ("uint64", ())}
    if codec.num_labels == 2:
        shapes |= {"partners": ("int64", ()), "lams": ("float32", ()), "boxes": ("int16", (4,))}
    train = identity["train"]
    return Shard(
        header={
            "format_version": manifest.FORMAT_VERSION,
            "identity_sha256": "0" * 64,
            "block": 0,
            "start": 0,
            "stop": views,
        },
        keys=[train["keys"][i] for i in rows],
        labels=np.array([train["labels"][i] for i in rows], np.int64),
        rows=rows,
        classes=identity["dataset"]["classes"],
        arrays={n: np.zeros((views, len(rows), *s), d) for n, (d, s) in shapes.items()},
        read=lambda i: b"",
    )


def dry_run(
    capture: Capture, jobs: list[ShardJob], num_val: int, started: float, json_path: str | None
) -> None:
    """Print, and with json_path write, the plan; started: time.monotonic() of the command."""
    identity, options = capture.writer.identity, capture.options
    setup_s = time.monotonic() - started
    rate = measure(capture, jobs)
    num_targets = sum(len(capture.writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
    seconds = setup_s + (num_targets + num_val) / rate if rate else 0.0
    folder = Path(options.output).resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    sizes = {name: encoding_bytes(capture.writer, options, name) for name in ENCODING_NAMES}
    free = shutil.disk_usage(existing).free
    report = {
        "samples": len(identity["train"]["keys"]),
        "views": options.views,
        "encodings": {
            name: {"bytes": size, "bytes_per_view": size / max(1, num_all(identity, options))}
            for name, size in sizes.items()
        },
        "images_per_s": rate,
        "hours": seconds / 3600,
        "free_bytes": free,
    }
    session.echo(f"dry run: {num_targets:,} targets to write, nothing was written")
    session.echo(f"  teacher  {rate:,.0f} views/s measured here; {fsio.human_time(seconds)} in all")
    for name, size in sizes.items():
        chosen = "  <- --encoding" if name == identity["encoding"]["name"] else ""
        session.echo(f"  {name:<8} {fsio.human_bytes(size)}{chosen}")
    session.echo(f"  free     {fsio.human_bytes(free)} at {existing}")
    if json_path:
        fsio.write_json(Path(json_path), report)


def num_all(identity: dict[str, Any], options: CacheLogitsConfig) -> int:
    """Targets of the finished cache."""
    return len(identity["train"]["keys"]) * options.views
