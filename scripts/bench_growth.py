"""What ten times the samples or views cost, what stage two holds in memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bench_common import (
    LIGHT,
    Plan,
    Row,
    anonymous_mib,
    grown,
    interleave,
    samples_of,
    write_cache,
)

from fgkd.cache.reader import Reader
from fgkd.data import Samples
from fgkd.loading import schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.views.rendering import KeyedView, Request, ViewRenderer
from fgkd.views.view_set import ViewSet

CLASSES, VIEWS, SIZE, BATCH = 100, 2, 32, 256
SLACK = 16  # MiB: HDF5 itself, the manifest, the targets of a few batches


def loader_of(samples: Samples, cache: Reader | None, epochs: int, workers: int) -> TrainLoader:
    """Stage two's batches; the made-up cache has no digests to compare pixels with."""
    loader = TrainLoader(
        ViewSet(samples, LIGHT, 0, SIZE, 1024),
        schedule.Schedule(0, len(samples), BATCH, epochs, VIEWS),
        workers=workers,
        cache=cache,
    )
    loader.check_pixels = False
    return loader


def rows(plan: Plan) -> Iterator[Row]:
    """The lines of the table about growth, memory and start-up."""
    sizes = [plan.pick(full, quick) for full, quick in ((1000, 20), (10_000, 200), (100_000, 600))]
    tiny = plan.folder / "photos/tiny"
    caches = {
        n: write_cache(
            *(plan.folder / f"growth{n}", samples_of(tiny, n, 4, 48, 48)),
            *(VIEWS, CLASSES, SIZE, False),
        )
        for n in sizes
    }
    yield from memory(plan, caches, sizes)
    yield start_up(plan, tiny)

    def epoch(n: int) -> Callable[[], float]:
        def measure() -> float:
            clock = time.perf_counter()
            cache = Reader(caches[n])
            loader = loader_of(samples_of(tiny, n, 4, 48, 48), cache, 1, plan.workers)
            num = sum(batch.count for batch in loader.batches(0))
            assert num == n
            return time.perf_counter() - clock

        return measure

    took = interleave({str(n): epoch(n) for n in sizes}, plan.pick(3, 1))
    for a, b in itertools.pairwise(sizes):
        yield grown("time of 10x samples, an epoch of stage two", took[str(a)], took[str(b)], a, b)
    yield of_views(plan)


def of_views(plan: Plan) -> Row:
    """Rendering for capture: an image is decoded once for all its views."""
    samples = samples_of(plan.folder / "photos/a", 8, plan.pick(64, 4))
    renderer = ViewRenderer(KeyedView(samples, LIGHT, 0), [224])
    many = plan.pick(64, 4)

    def render(views: int) -> Callable[[], float]:
        def measure() -> float:
            clock = time.perf_counter()
            for row in range(8):
                renderer[Request(np.array([row]), range(views))]
            return time.perf_counter() - clock

        return measure

    took = interleave({"one": render(1), "many": render(many)}, plan.pick(7, 1))
    shares = took["many"] / took["one"] / many
    low, middle, high = np.percentile(shares, [25, 50, 75]).tolist()
    note = f"{np.median(took['many']) / 8 / many * 1e6:.0f} us per view, its digest included"
    against = f"as many times one view, {many} views per image"
    return Row("time of rendering more views", against, middle, 1.05, True, (low, high), note)


def memory(plan: Plan, caches: dict[int, Path], sizes: list[int]) -> list[Row]:
    """Memory of stage two's loop with and without the cache, files aside, over an epoch's end."""
    used = {
        n: {how: plan.child(peak_memory, how, caches[n], n) for how in ("labels", "cache")}
        for n in sizes[1:]
    }
    many, few = sizes[-1], sizes[-2]
    more = used[many]["cache"] - used[many]["labels"]
    rest = used[many]["cache"] - used[few]["cache"]
    columns = used[many]["labels"] - used[few]["labels"]
    return [
        Row(
            *("memory of stage two, MiB more", "the labels-only loop", more),
            *(SLACK, True),
            note=f"{many:,} samples: {many * (2 * CLASSES + 8) >> 20} MiB of targets per view",
        ),
        Row(
            *("memory of 10x samples, MiB more", f"{few:,} samples"),
            *(rest, 18.0, True),
            note=f"of which the labels-only loop grows by {columns:.1f}: keys and labels",
        ),
    ]


def peak_memory(plan: Plan, how: str, cache: str, num: str) -> float:
    """Most MiB, files aside, at the last batches of one epoch and the first of the next."""
    samples = samples_of(Path(cache).parent / "photos/tiny", int(num), 4, 48, 48)
    reader = Reader(Path(cache)) if how == "cache" else None
    loader = loader_of(samples, reader, 2, 0)
    first = max(0, loader.schedule.steps_per_epoch - 3)
    return max(anonymous_mib() for _ in itertools.islice(loader.batches(first), 6))


def start_up(plan: Plan, tiny: Path) -> Row:
    """Opening a cache of ten million views: manifest, shard hashes, a view's targets."""
    num, views = plan.pick(100_000, 200), plan.pick(100, 4)
    samples = samples_of(tiny, num, 4, 48, 48)
    cache = write_cache(plan.folder / "large", samples, views, CLASSES, SIZE, digests=False)

    def opened() -> float:
        clock = time.perf_counter()
        Reader(cache).arrays_of_view(0)
        return time.perf_counter() - clock

    took = interleave({"open": opened}, plan.pick(3, 1))["open"]
    low, middle, high = np.percentile(took, [25, 50, 75]).tolist()
    gib = Reader(cache).num_bytes / 2**30
    note = f"{gib:.2f} GiB of {CLASSES} classes, files in memory"
    against = f"{num * views:,} views"
    return Row("start-up of stage two, s", against, middle, 5.0, True, (low, high), note)
