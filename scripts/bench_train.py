"""A student's steps from a cache, on labels, and beside timm's live teachers."""

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
    interleave,
    peak_mib,
    ratio,
    samples_of,
    write_cache,
)

from fgkd import engine, models
from fgkd import plan as plans
from fgkd.cache.reader import Reader
from fgkd.config import TrainStudentConfig
from fgkd.data import Samples
from fgkd.loader import TrainLoader
from stages import assembly, train_student

CPU = torch.device("cpu")
CLASSES, VIEWS = 320, 2
STUDENT, TEACHER, LARGER = "deit_tiny_distilled_patch16_224", "convnext_tiny", "convnext_base"


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


def beside_teacher(pair: Pair, samples: Samples, name: str = TEACHER) -> Iterator[float]:
    """timm's task with a live teacher, on the batches that the cached student has too."""
    from timm.task import LogitDistillationTask

    kwargs = {"num_classes": CLASSES}
    student = timm.create_model(STUDENT, img_size=pair.size, **kwargs, **pair.student_kwargs)
    teacher = timm.create_model(name, **kwargs, **pair.teacher_kwargs).eval()
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


def bare_teacher(pair: Pair, name: str = TEACHER) -> Iterator[float]:
    """The teacher's answers alone for one batch in memory."""
    teacher = timm.create_model(name, num_classes=CLASSES, **pair.teacher_kwargs).eval()
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
    """The lines of the table about training."""
    pair, steps = Pair(plan.quick), plan.pick(2, 1)
    samples = samples_of(plan.folder / "photos/a", plan.pick(128, 8), plan.pick(64, 4))
    cache = write_cache(plan.folder / "steps", samples, VIEWS, CLASSES, pair.size, digests=True)
    cached = stepping(fitting(pair, samples, Reader(cache)), steps)
    student = stepping(bare_student(pair), steps)
    labels = stepping(fitting(pair, samples, None), steps)
    found = interleave({"cache": cached, "labels": labels}, plan.pick(14, 2))
    step, spread = ratio(found["labels"], found["cache"])
    median = {name: float(np.median(values)) for name, values in found.items()}
    note = f"{median['cache']:.3f} s a step against {median['labels']:.3f}"
    out = [
        Row(
            *("student step from the cache", "the same loop with labels only", step, 0.98, False),
            *(spread, note),
        )
    ]
    for name, repeats in ((TEACHER, plan.pick(8, 2)), (LARGER, plan.pick(4, 1))):
        measures = {
            "cache": cached,
            "timm": stepping(beside_teacher(pair, samples, name), steps),
            "student": student,
            "teacher": stepping(bare_teacher(pair, name), steps),
        }
        out += beside(name, pair, interleave(measures, repeats))
        peak = {how: 0.0 if plan.quick else child("epoch", how, cache) for how in ("cache", name)}
        note = f"{peak['cache']:,.0f} MiB against {peak[name]:,.0f}"
        value = peak["cache"] / max(peak[name], 1e-9)
        out.append(Row("peak memory of that epoch", "timm's, share", value, note=note))
    return out


def beside(name: str, pair: Pair, found: dict[str, np.ndarray]) -> list[Row]:
    """The cached epoch against timm's task with this teacher, and what is possible."""
    median = {how: float(np.median(values)) for how, values in found.items()}
    possible = (median["student"] + median["teacher"]) / median["student"]
    speedup, spread = ratio(found["timm"], found["cache"])
    note = (
        f"{name} -> {STUDENT}, {pair.size} px, batches of {pair.batch}; "
        f"{median['cache']:.3f} s a step against {median['timm']:.3f}; "
        f"{possible:.2f} if the cache cost nothing"
    )
    against = "timm's LogitDistillationTask, live teacher"
    bar = 0.95 * possible
    return [Row("student epoch from the cache", against, speedup, bar, False, spread, note)]


def peak_memory(how: str, cache: str) -> float:
    """Peak resident MiB of three steps from the cache, or beside the teacher of that name."""
    pair, folder = Pair(quick=False), Path(cache).parent / "photos/a"
    num = len(Reader(Path(cache)).identity["train"]["keys"])
    samples = samples_of(folder, num, len(list(folder.glob("*.jpg"))))
    loop: Iterator[Any] = (
        fitting(pair, samples, Reader(Path(cache)))
        if how == "cache"
        else beside_teacher(pair, samples, how)
    )
    for _ in range(3):
        next(loop)
    return peak_mib()
