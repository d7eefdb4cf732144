"""A student's steps from a cache, on labels, and beside timm's live teachers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from bench_common import (
    LIGHT,
    Plan,
    Row,
    interleave,
    peak_mib,
    ratio,
    samples_of,
    write_cache,
)

from fgkd import device, models
from fgkd.cache.reader import Reader
from fgkd.config import LossSpec, OptimSpec
from fgkd.data import Samples
from fgkd.data.image_store import ImageStore
from fgkd.distillation.step import student_step
from fgkd.loading import schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop, setup
from fgkd.views.view_set import ViewSet

CLASSES, VIEWS, STORE_SIDE = 320, 2, 256
TEACHER, LARGER = "convnext_tiny", "convnext_base"

# Which of `rows`' measures is held against which; bars on a CPU and on a GPU.
SHARE = "student step from the cache, share of the limit"
STEPS = (
    (
        "cache",
        "labels",
        "student step from the cache",
        "the same loop with labels only",
        0.98,
        0.99,
    ),
    ("cache", "bare", SHARE, "its model on one batch", None, None),
    ("any kernels", "bare", f"{SHARE}, any kernels", "its model on one batch", None, 0.97),
    ("compiled", "bare compiled", f"{SHARE}, compiled", "its model on one batch", None, 0.93),
    ("cache", "any kernels", "student step that repeats bit for bit", "any kernels", None, None),
    ("cache", "decoded", "student step, images from the store", "decoded each step", None, None),
)


class Pair:
    """A student, a teacher and their data: at 224 pixels, or small for --quick."""

    def __init__(self, plan: Plan) -> None:
        self.size, self.batch = plan.pick(224, 32), plan.pick(16, 4, 128)
        self.plan, self.device, self.amp_dtype = plan, plan.device, plan.amp_dtype
        self.on_cuda = plan.device.type == "cuda"
        self.student_name = f"deit_{'base' if self.on_cuda else 'tiny'}_distilled_patch16_224"
        # Two cores decode faster than they train; sixteen are no match for a GPU.
        self.short_side = STORE_SIDE if self.on_cuda else None
        small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
        tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "patch_size": 2}
        self.student_kwargs = small if plan.quick else {}
        self.teacher_kwargs = tiny if plan.quick else {}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 on a GPU."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def student(self, uses_dist: bool) -> models.Classifier:
        names = [str(i) for i in range(CLASSES)]
        made, _ = models.create(
            *(self.student_name,),
            class_names=names,
            kwargs=self.student_kwargs,
            img_size=self.size,
            uses_dist=uses_dist,
        )
        return made

    def teacher(self, name: str) -> models.Classifier:
        names = [str(i) for i in range(CLASSES)]
        made, _ = models.create(
            name, class_names=names, kwargs=self.teacher_kwargs, img_size=self.size
        )
        return made.eval()

    def store(self, samples: Samples) -> ImageStore | None:
        """The images decoded and shrunk, where they are."""
        if self.short_side is None:
            return None
        store = ImageStore(self.plan.folder / "store", samples, self.short_side)
        if not store.is_complete:
            store.build(self.plan.workers)
        return store

    def loader(self, samples: Samples, cache: Reader | None, stored: bool = True) -> TrainLoader:
        """Endless for our purposes; beside a CPU that computes, one worker renders the images."""
        return TrainLoader(
            ViewSet(samples, LIGHT, 0, self.size, 1024, self.short_side),
            schedule.Schedule(0, len(samples), self.batch, 10_000, VIEWS),
            workers=self.plan.workers if self.on_cuda else 1,
            cache=cache,
            store=self.store(samples) if stored else None,
        )


def fitting(
    pair: Pair,
    samples: Samples,
    cache: Reader | None,
    stored: bool = True,
    compiled: bool = False,
) -> Iterator[loop.Report]:
    """The stage's own loop: from the cache, or on labels alone."""
    optim = OptimSpec(lr=1e-4, batch_size=pair.batch, epochs=10_000)
    loss = LossSpec() if cache is not None else LossSpec(distillation="none")
    model, loader = pair.student(cache is not None), pair.loader(samples, cache, stored)
    return loop.fit(
        setup.make_state(optim, 1e-4, model, pair.device),
        batches=loader.batches(0),
        step_fn=student_step(loss),
        steps_per_epoch=loader.schedule.steps_per_epoch,
        lr_at=lambda step: 1e-4,
        seed=0,
        device=pair.device,
        amp_dtype=pair.amp_dtype,
        compiled_sizes=loader.usual_sizes(1) if compiled else (),
    )


def normalised(image_u8_BHW3: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, H, W] by ImageNet's mean and std, as timm's prefetcher gives."""
    device = image_u8_BHW3.device
    mean = torch.tensor([123.675, 116.28, 103.53], device=device)
    std = torch.tensor([58.395, 57.12, 57.375], device=device)
    return ((image_u8_BHW3.float() - mean) / std).permute(0, 3, 1, 2)


def beside_teacher(pair: Pair, samples: Samples, name: str = TEACHER) -> Iterator[float]:
    """timm's task with a live teacher, on the batches that the cached student has too."""
    from timm.task import LogitDistillationTask

    kwargs = {"num_classes": CLASSES}
    student = timm.create_model(
        pair.student_name, img_size=pair.size, **kwargs, **pair.student_kwargs
    )
    teacher = timm.create_model(name, **kwargs, **pair.teacher_kwargs).eval()
    task = LogitDistillationTask(
        student.to(pair.device),
        teacher.to(pair.device),
        torch.nn.CrossEntropyLoss(label_smoothing=0.1),
        device=pair.device,
        verbose=False,
    ).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for batch in pair.loader(samples, None).batches(0):
        # (A GPU behind by more than a step may find a later batch's pixels there: it is but timed.)
        images = device.to_device(batch.image_u8_BHW3, pair.device)
        labels = device.to_device(batch.labels_B, pair.device)
        with pair.autocast():
            loss = task(normalised(images), labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield 0.0


def bare_student(pair: Pair, compiled: bool = False) -> Iterator[float]:
    """The student alone on one batch in memory."""
    student = timm.create_model(
        pair.student_name, img_size=pair.size, num_classes=CLASSES, **pair.student_kwargs
    ).train()
    student.to(pair.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    images = torch.randn(pair.batch, 3, pair.size, pair.size, device=pair.device)
    labels = torch.zeros(pair.batch, device=pair.device).long()
    run: Any = torch.compile(student) if compiled else student
    while True:
        with pair.autocast():
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield 0.0


def bare_teacher(pair: Pair, name: str = TEACHER) -> Iterator[float]:
    """The teacher's answers alone for one batch in memory."""
    teacher = timm.create_model(name, num_classes=CLASSES, **pair.teacher_kwargs).eval()
    teacher.to(pair.device)
    images = torch.randn(pair.batch, 3, pair.size, pair.size, device=pair.device)
    while True:
        with torch.inference_mode(), pair.autocast():
            teacher(images)
        yield 0.0


def stepping(
    pair: Pair, stream: Iterator[Any], steps: int, repeats_bits: bool = False
) -> Callable[[], float]:
    """Seconds per step, over the next few; of kernels that repeat bit for bit, as a stage takes."""

    def measure() -> float:
        torch.use_deterministic_algorithms(repeats_bits and pair.on_cuda)
        clock = time.perf_counter()
        for _ in range(steps):
            next(stream)
        if pair.on_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - clock) / steps

    next(stream)
    return measure


def rows(plan: Plan) -> Iterator[Row]:
    """The lines of the table about training."""
    pair, steps = Pair(plan), plan.pick(2, 1, 12)
    samples = samples_of(plan.folder / "photos/a", plan.pick(128, 8, 2048), plan.pick(64, 4))
    cache = write_cache(
        *(plan.folder / "steps", samples, VIEWS, CLASSES, pair.size),
        digests=True,
        short_side=pair.short_side,
    )
    if pair.on_cuda:
        device.set_up_gpu(True)
    stream = fitting(pair, samples, Reader(cache))
    cached = stepping(pair, stream, steps, True)
    bare = stepping(pair, bare_student(pair), steps)
    measures = {
        "cache": cached,
        "labels": stepping(pair, fitting(pair, samples, None), steps, True),
        "bare": bare,
    }
    if pair.on_cuda:
        measures["any kernels"] = stepping(pair, stream, steps)
        whole = fitting(pair, samples, Reader(cache), stored=False)
        measures["decoded"] = stepping(pair, whole, steps, True)
        fast = fitting(pair, samples, Reader(cache), compiled=True)
        measures["compiled"] = stepping(pair, fast, steps)
        measures["bare compiled"] = stepping(pair, bare_student(pair, compiled=True), steps)
    found = interleave(measures, plan.pick(14, 2, 5))
    for mine, other, what, text, *bars in STEPS:
        if mine in found and other in found:
            yield against(found, mine, other, what, text, bars[pair.on_cuda])
    teachers = ((LARGER, 5),) if pair.on_cuda else ((TEACHER, 8), (LARGER, 4))
    for name, repeats in teachers:
        measures = {
            "cache": cached,
            "timm": stepping(pair, beside_teacher(pair, samples, name), steps),
            "student": bare,
            "teacher": stepping(pair, bare_teacher(pair, name), steps),
        }
        yield beside(name, pair, interleave(measures, plan.pick(repeats, 2)))
        peak = {how: plan.child(peak_memory, how, cache) for how in ("cache", name)}
        note = f"{peak['cache']:,.0f} MiB against {peak[name]:,.0f}"
        value = peak["cache"] / max(peak[name], 1e-9)
        yield Row("peak memory of that epoch", "timm's, share", value, note=note)


def against(
    found: dict[str, np.ndarray], mine: str, other: str, what: str, text: str, bar: float | None
) -> Row:
    """A row on one kind of step beside another."""
    value, spread = ratio(found[other], found[mine])
    medians = [1e3 * float(np.median(found[how])) for how in (mine, other)]
    note = "{:.1f} ms against {:.1f}".format(*medians)
    return Row(what, text, value, bar, False, spread, note)


def beside(name: str, pair: Pair, found: dict[str, np.ndarray]) -> Row:
    """The cached epoch against timm's task with this teacher, and what is possible."""
    median = {how: float(np.median(values)) for how, values in found.items()}
    possible = (median["student"] + median["teacher"]) / median["student"]
    speedup, spread = ratio(found["timm"], found["cache"])
    note = (
        f"{name} -> {pair.student_name}, {pair.size} px, batches of {pair.batch}; "
        f"{median['cache']:.3f} s a step against {median['timm']:.3f}; "
        f"{possible:.2f} if the cache cost nothing"
    )
    against = "timm's LogitDistillationTask, live teacher"
    bar = 0.95 * possible
    return Row("student epoch from the cache", against, speedup, bar, False, spread, note)


def peak_memory(plan: Plan, how: str, cache: str) -> float:
    """Peak MiB, of the GPU if there is one, in three steps: from the cache, or beside a teacher."""
    pair, folder = Pair(plan), Path(cache).parent / "photos/a"
    num = len(Reader(Path(cache)).samples["train"])
    samples = samples_of(folder, num, len(list(folder.glob("*.jpg"))))
    loop: Iterator[Any] = (
        fitting(pair, samples, Reader(Path(cache)))
        if how == "cache"
        else beside_teacher(pair, samples, how)
    )
    for _ in range(3):
        next(loop)
    return peak_mib() if plan.device.type == "cpu" else torch.cuda.max_memory_allocated() / 2**20
