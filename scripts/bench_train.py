"""A student's steps from a cache, on labels, and beside timm's live teacher; and capture."""

from __future__ import annotations

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
    child,
    identity_of,
    interleave,
    peak_mib,
    ratio,
    samples_of,
    write_cache,
)

from fgkd import engine, models
from fgkd import plan as plans
from fgkd.cache.reader import Reader
from fgkd.cache.store import Writer
from fgkd.config import CacheLogitsConfig, TrainStudentConfig
from fgkd.data import Dataset, Samples
from fgkd.fetch import KeyedView
from fgkd.loader import TrainLoader
from stages import assembly, capture, session, train_student

CPU = torch.device("cpu")
CLASSES, VIEWS = 320, 2
STUDENT, TEACHER = "deit_tiny_distilled_patch16_224", "convnext_tiny"


class Pair:
    """A student, a teacher and their data: at 224 pixels, or small for --quick."""

    def __init__(self, quick: bool) -> None:
        self.size, self.batch = (32, 4) if quick else (224, 16)
        small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
        tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "patch_size": 2}
        self.student_kwargs = small if quick else {}
        self.teacher_kwargs = tiny if quick else {}

    def student(self, uses_dist: bool) -> models.Classifier:
        names = [str(i) for i in range(CLASSES)]
        made, _ = models.create(
            *(STUDENT,),
            class_names=names,
            kwargs=self.student_kwargs,
            img_size=self.size,
            uses_dist=uses_dist,
        )
        return made

    def teacher(self) -> models.Classifier:
        names = [str(i) for i in range(CLASSES)]
        made, _ = models.create(
            TEACHER, class_names=names, kwargs=self.teacher_kwargs, img_size=self.size
        )
        return made.eval()

    def loader(self, samples: Samples, cache: Reader | None) -> TrainLoader:
        """Endless for our purposes; images are rendered by one worker."""
        return TrainLoader(
            samples=samples,
            schedule=plans.Schedule(0, len(samples), self.batch, 10_000, VIEWS),
            recipe=LIGHT,
            view_seed=0,
            size=self.size,
            workers=1,
            skip_bad=False,
            block_size=1024,
            cache=cache,
        )


def fitting(pair: Pair, samples: Samples, cache: Reader | None) -> Iterator[engine.Report]:
    """The stage's own loop: from the cache, or on labels alone."""
    options = TrainStudentConfig(lr=1e-4, batch_size=pair.batch, epochs=10_000)
    model, loader = pair.student(cache is not None), pair.loader(samples, cache)
    return engine.fit(
        assembly.make_state(options, model, CPU),
        batches=loader.batches(0),
        step_fn=train_student.make_step(options, None, cache is not None, CPU),
        steps_per_epoch=loader.schedule.steps_per_epoch,
        lr_at=lambda step: 1e-4,
        seed=0,
        device=CPU,
    )


def normalised(image_u8_BHW3: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, H, W] by ImageNet's mean and std, as timm's prefetcher gives."""
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return ((image_u8_BHW3.float() - mean) / std).permute(0, 3, 1, 2)


def beside_teacher(pair: Pair, samples: Samples) -> Iterator[float]:
    """timm's task with a live teacher, on the batches that the cached student has too."""
    from timm.task import LogitDistillationTask

    kwargs = {"num_classes": CLASSES}
    student = timm.create_model(STUDENT, img_size=pair.size, **kwargs, **pair.student_kwargs)
    teacher = timm.create_model(TEACHER, **kwargs, **pair.teacher_kwargs).eval()
    task = LogitDistillationTask(
        student, teacher, torch.nn.CrossEntropyLoss(label_smoothing=0.1), device=CPU, verbose=False
    ).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for batch in pair.loader(samples, None).batches(0):
        task(normalised(batch.image_u8_BHW3), batch.labels_B)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        yield 0.0


def bare_student(pair: Pair) -> Iterator[float]:
    """The student alone on one batch in memory."""
    student = timm.create_model(
        STUDENT, img_size=pair.size, num_classes=CLASSES, **pair.student_kwargs
    ).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    images, labels = (
        torch.randn(pair.batch, 3, pair.size, pair.size),
        torch.zeros(pair.batch).long(),
    )
    while True:
        torch.nn.functional.cross_entropy(student(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield 0.0


def bare_teacher(pair: Pair) -> Iterator[float]:
    """The teacher's answers alone for one batch in memory."""
    teacher = timm.create_model(TEACHER, num_classes=CLASSES, **pair.teacher_kwargs).eval()
    images = torch.randn(pair.batch, 3, pair.size, pair.size)
    while True:
        with torch.inference_mode():
            teacher(images)
        yield 0.0


def stepping(stream: Iterator[Any], steps: int) -> Callable[[], float]:
    """Seconds a step, over the next few."""
    next(stream)

    def measure() -> float:
        clock = time.perf_counter()
        for _ in range(steps):
            next(stream)
        return (time.perf_counter() - clock) / steps

    return measure


def rows(plan: Plan) -> list[Row]:
    """The lines of the table that are about training and capture."""
    pair, steps = Pair(plan.quick), plan.pick(2, 1)
    samples = samples_of(plan.folder / "photos/a", plan.pick(128, 8), plan.pick(64, 4))
    cache = write_cache(plan.folder / "steps", samples, VIEWS, CLASSES, pair.size, digests=True)
    measures = {
        "cache": stepping(fitting(pair, samples, Reader(cache)), steps),
        "labels": stepping(fitting(pair, samples, None), steps),
        "timm": stepping(beside_teacher(pair, samples), steps),
        "student": stepping(bare_student(pair), steps),
        "teacher": stepping(bare_teacher(pair), steps),
    }
    found = interleave(measures, plan.pick(14, 2))
    median = {name: float(np.median(values)) for name, values in found.items()}
    step, step_spread = ratio(found["labels"], found["cache"])
    speedup, epoch_spread = ratio(found["timm"], found["cache"])
    possible = (median["student"] + median["teacher"]) / median["student"]
    peaks = {how: 0.0 if plan.quick else child("epoch", how, cache, 0) for how in ("cache", "timm")}
    models_note = f"{TEACHER} -> {STUDENT}, {pair.size} px, batches of {pair.batch}"
    return [
        Row(
            *("student step from the cache", "the same loop with labels only", step, 0.98, False),
            step_spread,
            f"{median['cache']:.3f} s a step against {median['labels']:.3f}",
        ),
        Row(
            *("student epoch from the cache", "timm's LogitDistillationTask, live teacher"),
            *(speedup, 0.95 * possible, False, epoch_spread),
            f"{models_note}; {median['cache']:.3f} s a step against {median['timm']:.3f}; "
            f"{possible:.2f} if the cache cost nothing",
        ),
        Row(
            *(
                "peak memory of that epoch",
                "timm's, share",
                peaks["cache"] / max(peaks["timm"], 1e-9),
            ),
            note=f"{peaks['cache']:,.0f} MiB against {peaks['timm']:,.0f}",
        ),
        captured(plan, pair),
    ]


def peak_memory(how: str, cache: str, quick: str) -> float:
    """Peak resident MiB of three steps of one of the two loops, in this process."""
    pair = Pair(bool(int(quick)))
    folder = Path(cache).parent / "photos/a"
    num = len(Reader(Path(cache)).identity["train"]["keys"])
    samples = samples_of(folder, num, len(list(folder.glob("*.jpg"))))
    reader = Reader(Path(cache))
    loop: Iterator[Any] = (
        fitting(pair, samples, reader) if how == "cache" else beside_teacher(pair, samples)
    )
    for _ in range(3):
        next(loop)
    return peak_mib()


def captured(plan: Plan, pair: Pair) -> Row:
    """Whole captures against the bare teacher on as many tensors in memory, in turn."""
    num, views = plan.pick(48, 4), plan.pick(4, 2)
    samples = samples_of(plan.folder / "photos/a", num, plan.pick(64, 4))
    dataset = Dataset("made up", [str(i) for i in range(CLASSES)], ["made up"], {"train": samples})
    teacher = pair.teacher()
    batch = plan.pick(32, 4)
    options = CacheLogitsConfig(batch_size=batch, views=views, workers=1)
    teachers = capture.Teachers([teacher], [], "logits", pair.size, CPU, "float32", batch)
    teachers.ready()
    counter = iter(range(1000))
    view = KeyedView(dataset.splits["train"], LIGHT, 0)

    def capture_all() -> float:
        folder = plan.folder / f"capture{next(counter)}"
        identity = identity_of(samples, CLASSES, 1024, pair.size)
        writer = Writer(folder, identity, views, lambda split, i: b"")
        writer.begin()
        with session.StopSignal(False) as stop:
            clock = time.perf_counter()
            made = capture.Capture(writer, teachers, dataset, view, options)
            made.write_train(writer.jobs(), stop)
            return time.perf_counter() - clock

    images = torch.zeros(batch, 1, pair.size, pair.size, 3, dtype=torch.uint8)

    def bare() -> float:
        clock = time.perf_counter()
        for _ in range(num * views // batch):
            engine.logits_of(teacher, images, device=CPU, max_batch=batch)
        return time.perf_counter() - clock

    bare()
    found = interleave({"bare": bare, "capture": capture_all}, plan.pick(5, 1))
    value, spread = ratio(found["bare"], found["capture"])
    rate = num * views / float(np.median(found["capture"]))
    note = f"{TEACHER}, {views} views an image; {rate:.1f} views/s, workers' start included"
    against = "the bare teacher on tensors in memory"
    return Row("cache-logits, compute-bound", against, value, 0.95, False, spread, note)
