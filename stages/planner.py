"""`cache-logits --dry-run`: what a cache would cost, measured; nothing is written."""

from __future__ import annotations

import io
import itertools
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import fsio, plan, targets
from fgkd.cache import manifest
from fgkd.cache.manifest import Shard, ShardJob
from fgkd.cache.store import BACKENDS
from fgkd.config import ENCODING_NAMES, CacheLogitsConfig
from fgkd.fetch import Fetcher, KeyedView, fetch

from . import session
from .capture import Capture

DEFAULT_TOP_K, DEFAULT_TEMPERATURES = 50, (1.0, 2.0, 4.0)  # shown where topk was not asked for
MEASURE_S = 8.0  # seconds of teacher time to measure its speed by


def measure(capture: Capture, jobs: list[ShardJob]) -> float:
    """Views a second of the real pipeline, over the first batches of the plan after a warm-up."""
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


def encoding_bytes(identity: dict[str, Any], views: int, name: str) -> int:
    """Bytes of shards/ in one encoding, from shards of zeros written to memory."""
    own = identity["encoding"]
    encoding = targets.describe(
        name,
        own["top_k"] or DEFAULT_TOP_K,
        tuple(own["temperatures"]) or DEFAULT_TEMPERATURES,
        len(identity["dataset"]["classes"]),
    )
    codec = targets.Codec.of({**identity, "encoding": encoding})
    train = identity["train"]
    blocks = plan.blocks(identity["views"]["seed"], len(train["keys"]), identity["shard_size"])
    backend = BACKENDS[identity["format"]]
    total = 0
    for length, count in Counter(map(len, blocks)).items():
        rows = next(block for block in blocks if len(block) == length)
        sink = io.BytesIO()
        backend.write(sink, _blank_shard(identity, codec, views, rows))
        total += count * sink.getbuffer().nbytes
    if backend.HOLDS_IMAGES:
        total += sum(-(-max(size, 0) // 512) * 512 for size in train["sizes"])
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
    seconds = setup_s + (num_targets + num_val) / rate
    folder = Path(options.output).resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    sizes = {name: encoding_bytes(identity, options.views, name) for name in ENCODING_NAMES}
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
