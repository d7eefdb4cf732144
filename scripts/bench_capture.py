"""Stage one's second half: against the bare teacher, against the bare decoder, and as it grows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import (
    LIGHT,
    Plan,
    Row,
    decoding,
    grown,
    identity_of,
    interleave,
    peak_mib,
    photo,
    ratio,
    samples_of,
)
from bench_train import CLASSES, LARGER, TEACHER, Pair, stepping

from fgkd import device, models
from fgkd.cache.stats import TARGET
from fgkd.cache.writer import Writer
from fgkd.data import Dataset, Samples
from fgkd.distillation.capture import Capture
from fgkd.distillation.teachers import Teachers
from fgkd.views.view_set import ViewSet
from stages import cli

SIDE, NUM_CLASSES, MANY_VIEWS = 32, 100, 64
FLAT = 4.0  # MiB: an answer being encoded (float64), and a shard being summed up
# Bytes a target of the open shard: logits, digest, what is known of it, eight columns to sum it up.
SHARD_TARGET = 2 * NUM_CLASSES + 8 + TARGET.itemsize + 8 * 8


def rows(plan: Plan) -> Iterator[Row]:
    """The lines of the table about capture but for `compute_bound`."""
    yield from decode_bound(plan)
    yield from growth(plan)


def tiny_teacher(num_classes: int, size: int) -> models.Classifier:
    """A ConvNeXt that costs next to nothing, so that all else shows."""
    kwargs = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "patch_size": size // 16}
    names = [f"{i:03d}" for i in range(num_classes)]
    return models.create(TEACHER, class_names=names, kwargs=kwargs, img_size=size)[0].eval()


@dataclasses.dataclass(frozen=True)
class How:
    """How a capture is run."""

    batch_size: int
    views: int
    workers: int
    dtype: str = "float32"
    compiled: bool = False


def capturing(
    plan: Plan, samples: Samples, teacher: models.Classifier, options: How
) -> Callable[[], float]:
    """Seconds of a whole capture into a new folder, its workers' start included."""
    size = teacher.config["input_size"][-1]
    dataset = Dataset("made up", [str(i) for i in range(CLASSES)], ["made up"], {"train": samples})
    device, dtype = plan.device, options.dtype
    teachers = Teachers([teacher], [], "logits", size, device, dtype, options.batch_size)
    teachers.to_device()
    if options.compiled:
        teachers = teachers.compiled()
    views, numbers = ViewSet(samples, LIGHT, 0, size, 1024), itertools.count()

    def measure() -> float:
        folder = plan.folder / f"capture{id(samples)}-{options.views}-{next(numbers)}"
        identity, tables = identity_of(views.view, CLASSES, 1024, size)
        writer = Writer(folder, identity, tables, options.views, lambda split, i: b"")
        writer.begin()
        clock = time.perf_counter()
        Capture(writer, teachers, dataset, views, workers=options.workers).write_train(
            writer.jobs()
        )
        return time.perf_counter() - clock

    return measure


def compute_load(plan: Plan, compiled: bool) -> tuple[str, int, How]:
    """A teacher that decides the time on this device, images to ask it about, and how."""
    if plan.device.type == "cuda":
        how = How(256, views=8, workers=plan.workers, dtype="bfloat16", compiled=compiled)
        return LARGER, 8192 if compiled else 4096, how
    how = How(plan.pick(32, 4), views=plan.pick(4, 2), workers=1, compiled=compiled)
    return TEACHER, plan.pick(96, 4), how


def compute_bound(plan: Plan) -> list[Row]:
    """Eager captures and, on a GPU, a compiled one."""
    return [
        *eager_compute_bound(plan),
        *([compiled_compute_bound(plan)] if plan.device.type == "cuda" else []),
    ]


def compiled_compute_bound(plan: Plan) -> Row:
    """A capture by a compiled teacher beside the compiled model alone, compilation aside."""
    bare, whole = plan.child(measure_compute, plan.folder / "compiled", 1, 1)
    name, num, how = compute_load(plan, True)
    note = f"{name}, {how.dtype}; {num * how.views / whole:,.1f} views/s, workers' start included"
    what = "the compiled teacher on tensors in memory"
    return Row("cache-logits --compile, compute-bound", what, bare / whole, 0.92, note=note)


def eager_compute_bound(plan: Plan) -> list[Row]:
    """Whole captures beside the bare teacher, each in a process that begins as the command does."""
    seconds: dict[int, list[Any]] = {1: [], 0: []}
    on_cpu = plan.device.type == "cpu"
    for kept in [1] * plan.pick(4, 1, 2) + [0] * on_cpu:  # is freed memory kept, as it is?
        folder = plan.folder / f"compute{kept}-{len(seconds[kept])}"
        seconds[kept].append(plan.child(measure_compute, folder, kept, 0))
    bare, whole = np.array(seconds[1]).T
    value, spread = ratio(bare, whole)
    name, num, how = compute_load(plan, False)
    rates = num * how.views / np.array([bare, whole])
    note = (
        f"{name}, {how.dtype}, {how.views} views per image; {np.median(rates[1]):,.1f} views/s, "
        "workers' start and first touch of memory included"
    )
    out = [
        Row(
            *("cache-logits, compute-bound", "the bare teacher on tensors in memory", value, 0.95),
            *(False, spread, note),
        )
    ]
    if on_cpu:
        kept_rate, given_back = np.median(rates[0]), num * how.views / seconds[0][0][0]
        what = "the bare teacher where freed memory is kept"
        note = f"{kept_rate:.1f} views/s against {given_back:.1f}"
        out.append(Row(what, "given back to the system", kept_rate / given_back, note=note))
    return out


def measure_compute(plan: Plan, folder: str, kept: str, compiled: str) -> tuple[float, float]:
    """Seconds of the bare teacher on tensors in memory, and of a whole capture before it.

    The workers are forked from a process that has asked nothing yet, as the command's are.
    """
    if plan.device.type == "cuda":
        device.set_up_gpu(None)  # as the command does
    elif int(kept):
        device.keep_memory()
    name, num, how = compute_load(plan, bool(int(compiled)))
    pair, place = Pair(plan), dataclasses.replace(plan, folder=Path(folder))
    teacher = pair.teacher(name)
    samples = samples_of(plan.folder / "photos/a", num, plan.pick(64, 4))
    whole = capturing(place, samples, teacher, how)()
    steps = num * how.views // how.batch_size
    if how.compiled:
        teacher.forward = torch.compile(teacher.forward, dynamic=False)  # type: ignore[method-assign]
    return stepping(pair, answers(pair, teacher, how.batch_size), steps)() * steps, whole


def answers(pair: Pair, teacher: models.Classifier, batch: int) -> Iterator[float]:
    """The teacher's, to one batch in memory again and again."""
    shape = (batch, pair.size, pair.size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=pair.device)
    while True:
        with torch.inference_mode(), pair.autocast():
            teacher(images)
        yield 0.0


class Blind(models.Classifier):
    """A teacher that does not look: to normalise a view costs a CPU more than to decode it."""

    def forward(self, image_u8_BHW3: torch.Tensor) -> models.Logits:
        return models.Logits(torch.zeros(len(image_u8_BHW3), CLASSES))


def decode_bound(plan: Plan) -> list[Row]:
    """Captures by a teacher that costs nothing: images per second against those only decoded."""
    num, batch = plan.pick(2048, 8), plan.pick(256, 4)
    samples = samples_of(plan.folder / "photos/a", num, plan.pick(64, 4))
    teacher = Blind(tiny_teacher(CLASSES, 224).net, uses_dist=True)

    def decoded() -> float:
        clock = time.perf_counter()
        for _ in decoding(samples, plan.workers, plan.pick(64, 4)):
            pass
        return time.perf_counter() - clock

    measures = {"bare": decoded}
    for views in (1, 8):
        options = How(batch_size=batch, views=views, workers=plan.workers)
        measures[str(views)] = capturing(plan, samples, teacher, options)
    found = interleave(measures, plan.pick(5, 1))
    out = []
    for views in (1, 8):
        value, spread = ratio(found["bare"], found[str(views)])
        rate = num * views / float(np.median(found[str(views)]))
        what = f"cache-logits, decode-bound, {views} view(s) an image"
        note = f"{rate:,.0f} views/s by a teacher that does not look; digests included"
        against = "the same files through libjpeg-turbo alone"
        out.append(Row(what, against, value, None, False, spread, note))
    return out


def growth(plan: Plan) -> list[Row]:
    """Whole commands: ten times the images, and up to 64 times the views."""
    teacher = plan.folder / "teacher"
    models.save(tiny_teacher(NUM_CLASSES, SIDE), teacher)
    sizes = [plan.pick(full, quick) for full, quick in ((1000, 200), (10_000, 300), (100_000, 400))]
    folders = {n: images_folder(plan.folder / f"images{n}", n) for n in sizes}
    numbers = itertools.count()
    peaks: dict[tuple[int, int], list[float]] = {}

    def command(num: int, views: int) -> Callable[[], float]:
        def measure() -> float:
            args = (folders[num], teacher, views, plan.folder / f"grown{next(numbers)}")
            clock = time.perf_counter()
            peak = plan.child(peak_memory, *args)
            peaks.setdefault((num, views), []).append(peak)
            return time.perf_counter() - clock

        return measure

    asked = [(n, 1) for n in sizes] + [(sizes[0], 8), (sizes[0], MANY_VIEWS)]
    took = interleave({str(one): command(*one) for one in asked}, plan.pick(3, 1))
    peak = {one: float(np.median(found)) for one, found in peaks.items()}
    out = [
        grown("time of 10x images, cache-logits", took[str((a, 1))], took[str((b, 1))], a, b)
        for a, b in itertools.pairwise(sizes)
    ]
    few, some, many = sizes
    out.append(
        grown("time of 8x views, cache-logits", *(took[str((few, v))] for v in (8, 64)), 8, 64)
    )
    shard = 0.9 * few * (MANY_VIEWS - 1) * SHARD_TARGET / 2**20
    more = peak[few, MANY_VIEWS] - peak[few, 1] - shard
    note = f"the open shard of {MANY_VIEWS} views is {shard:.1f} MiB more; {few:,} images"
    out.append(
        Row(
            "memory of 64x views but for the shard, MiB more",
            "1 view",
            more,
            FLAT,
            True,
            None,
            note,
        )
    )
    each = (peak[many, 1] - peak[some, 1]) * 2**20 / (many - some)
    note = f"{peak[some, 1]:,.0f} MiB for {some:,} images, {peak[many, 1]:,.0f} for {many:,}"
    what = "memory of cache-logits, bytes more an image"
    out.append(Row(what, "keys, labels, sizes, hashes as JSON", each, None, True, None, note))
    return out


def images_folder(folder: Path, num: int) -> Path:
    """`num` small JPEGs of different bytes and sizes in NUM_CLASSES classes, as `folder:` reads."""
    pictures = [photo(i, 48, 48) for i in range(16)]
    for i in range(num):
        path = folder / f"train/{i % NUM_CLASSES:03d}/{i:07d}.jpg"
        if i < NUM_CLASSES:
            path.parent.mkdir(parents=True)
        path.write_bytes(pictures[i % 16] + i.to_bytes(8, "big") * (1 + i // 16 % 512))
    return folder


def peak_memory(plan: Plan, images: str, teacher: str, views: str, output: str) -> float:
    """Peak resident MiB of the main process of a whole cache-logits."""
    given = ("--data", f"folder:{images}", "--teacher", teacher, "--views", views)
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(["cache-logits", *given, "--output", output, "--workers", "2"])
    return peak_mib()
