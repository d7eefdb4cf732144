"""Estimates of a training run: GPU memory and FLOPs from shapes alone, speed from real steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from fgkd import distributed, files, models
from fgkd.config import OptimSpec, RunSpec
from fgkd.estimate.image_store import StoreEstimate
from fgkd.evaluation.cost import inference_cost
from fgkd.loading.batch import Batch
from fgkd.loading.train_loader import TrainLoader
from fgkd.models import counting
from fgkd.training import loop, setup

MEASURE_S = 8.0  # seconds of real steps to measure the speed by
LONGEST_STEP_S = 10.0  # where a step would take longer, the speed is not measured

Build = Callable[[], tuple[models.Classifier, list[str]]]


@dataclass(frozen=True)
class PlannedTraining:
    """A training run that is prepared but not started.

    build: makes its model. step_fn: None if its targets are not there yet. counted_step_fn: the
    same without a live teacher, which is counted separately. num_val: validation images. size:
    side of the input. dtype: number type of the live teacher.
    """

    run: RunSpec
    optim: OptimSpec
    build: Build
    loader: TrainLoader
    step_fn: loop.Step | None
    counted_step_fn: loop.Step
    lr: float
    lr_at: Callable[[int], float]
    num_val: int
    size: int
    freeze: bool
    store: StoreEstimate
    teacher: models.Classifier | None = None
    dtype: str = "float32"

    @property
    def micro_batch(self) -> int:
        """The most images that one GPU holds at a time."""
        return -(-self.optim.batch_size // (distributed.world() * self.optim.grad_accum_steps))

    @property
    def total_batch(self) -> int:
        """Images of a step, over ranks and micro-batches."""
        return self.optim.batch_size


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a GPU when the backward pass begins, with room for all gradients."""

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Counts:
    """Parameters, FLOPs and bytes of one rank's step."""

    parameters: int
    flops_per_step: int
    forward_flops: int
    memory: MemoryEstimate


@dataclass(frozen=True)
class Measured:
    """The speed of real steps; images_per_s None, and why, where it was not measured."""

    images_per_s: float | None = None
    peak_bytes: int | None = None
    steps: int = 0
    why: str = ""


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training run would cost. hours include evaluation; None where not measured."""

    banner: list[str]
    images: int
    epochs: int
    steps: int
    batch_size: int
    micro_batch: int
    counts: Counts
    measured: Measured
    hours: float | None
    device: str
    store: StoreEstimate

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the commands write them."""
        memory = {**vars(self.counts.memory), "total": self.counts.memory.total}
        return {
            "images": self.images,
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "parameters": self.counts.parameters,
            "flops_per_step": self.counts.flops_per_step,
            "memory_bytes": memory,
            "images_per_s": self.measured.images_per_s,
            "hours": self.hours,
            "measured_memory_bytes": self.measured.peak_bytes,
            "image_store_bytes": self.store.num_bytes,
        }

    def lines(self) -> list[str]:
        """The estimate as text."""
        sizes = {name: size for name, size in vars(self.counts.memory).items() if size}
        parts = ", ".join(f"{name} {files.human_bytes(size)}" for name, size in sizes.items())
        total = files.human_bytes(self.counts.memory.total)
        tera, measured = self.counts.flops_per_step / 1e12, self.measured
        peak = measured.peak_bytes
        found = [
            "dry run: nothing was written",
            f"  compute  {tera:,.3g} TFLOP per step, {tera * self.steps / 1e3:,.3g} PFLOP in total",
            f"  memory   {total} of a GPU at {self.micro_batch} images: {parts}",
        ]
        if measured.images_per_s is None or self.hours is None:
            found.append(f"  speed    not measured: {measured.why}")
        else:
            said = f", peak {files.human_bytes(peak)}" if peak else ""
            found.append(
                f"  speed    {measured.images_per_s:,.1f} images/s in {measured.steps} steps on "
                f"{self.device}{said}; {files.human_time(self.hours * 3600)} in total, evaluation "
                "included"
            )
        if self.store.text:
            found.append(f"  store    {self.store.text}")
        return found


def shapes_only(dry_run: bool) -> contextlib.AbstractContextManager[None]:
    """Where a model is built: in a dry run without allocating memory."""
    return counting.imagined("cpu") if dry_run else contextlib.nullcontext()


def estimate_training(
    planned: PlannedTraining, banner: list[str], device: torch.device
) -> TrainingEstimate:
    """Count and, where this machine can take a step, measure a training run."""
    schedule, optim = planned.loader.schedule, planned.optim
    counts = count(planned)
    measured = measure(planned, counts, device)
    images = schedule.epochs * len(planned.loader.samples)
    evaluated = schedule.epochs * planned.num_val * (2 if optim.model_ema else 1)
    share = counts.forward_flops / counts.flops_per_step  # an evaluation has no backward pass
    rate = measured.images_per_s
    return TrainingEstimate(
        banner=banner,
        images=len(planned.loader.samples),
        epochs=schedule.epochs,
        steps=schedule.total_steps,
        batch_size=optim.batch_size,
        micro_batch=planned.micro_batch,
        counts=counts,
        measured=measured,
        hours=(images + evaluated * share) / rate / 3600 if rate else None,
        device=str(device),
        store=planned.store,
    )


def count(planned: PlannedTraining) -> Counts:
    """Count one rank's step from shapes alone."""
    optim = planned.optim
    with counting.imagined("cpu"):  # the only device whose backward pass works without it
        model = planned.build()[0]
        step = _make_step(planned, model, "cpu", None)
        once = counting.flops(lambda: step()["loss"].backward())
        held = counting.num_bytes([*model.parameters(), *model.buffers()])
        # DistributedDataParallel keeps a second copy of the gradients to send.
        gradients = counting.gradient_bytes(model) * (1 + (distributed.world() > 1))
        optimizer = counting.optimizer_bytes(setup.make_optimizer(optim, planned.lr, model))
    with counting.imagined("cuda"):
        model = planned.build()[0].train()
        step = _make_step(planned, model, "cuda", setup.autocast_dtype(optim))
        saved: list[int] = []
        forward = counting.flops(lambda: saved.append(counting.saved_bytes(model, step)))
        activations = saved[0]
        if planned.freeze:  # then the peak of the forward pass exceeds what is kept for backward
            activations = max(activations, counting.peak_bytes(step))
    teacher, asked = 0, 0
    if planned.teacher is not None:
        weights, peak, asked = inference_cost(
            *(planned.teacher, planned.micro_batch, planned.teacher.input_size[-1]),
            planned.dtype == "bfloat16",
        )
        teacher = weights + peak
    parts = distributed.world() * optim.grad_accum_steps
    ema = held if optim.model_ema else 0
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_step=(once + asked) * parts,
        forward_flops=forward * parts,
        memory=MemoryEstimate(held, gradients, optimizer, ema, activations, teacher),
    )


def _make_step(
    planned: PlannedTraining, model: models.Classifier, device: str, amp_dtype: torch.dtype | None
) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that takes one step's losses on a micro-batch without pixels."""
    batch = _blank_batch(planned, len(model.config["label_names"]))
    model.train()

    def step() -> dict[str, torch.Tensor]:
        model.set_drop_path_draws(0, 0, batch.row_ids)
        with counting.autocast(device, amp_dtype):
            return planned.counted_step_fn(model, batch)

    return step


def _blank_batch(planned: PlannedTraining, num_classes: int) -> Batch:
    count, loader = planned.micro_batch, planned.loader
    mixes = loader.unit == 2
    labels_B = torch.zeros(count, dtype=torch.int64)
    return Batch(
        spec=next(iter(loader.schedule.epoch_specs(0, 0, np.arange(len(loader.samples))))),
        count=count,
        row_ids=np.arange(count, dtype=np.uint64),
        image_u8_BHW3=torch.zeros(count, planned.size, planned.size, 3, dtype=torch.uint8),
        labels_B=labels_B,
        teacher_BK=torch.zeros(count, num_classes),
        partner_labels_B=labels_B if mixes else None,
        lam_B=torch.ones(count) if mixes else None,
        unreadable=[],
    )


def measure(planned: PlannedTraining, counts: Counts, device: torch.device) -> Measured:
    """The speed of real steps on the device, where it can take them."""
    why = _cannot_measure(planned, counts, device)
    if why or planned.step_fn is None:
        return Measured(why=why)
    optim, run = planned.optim, planned.run
    state = setup.make_state(optim, planned.lr, planned.build()[0], device, run.channels_last)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    sizes = planned.loader.usual_sizes(optim.grad_accum_steps) if run.compile == "on" else ()
    taken: list[tuple[int, float]] = []
    with contextlib.closing(cast(Any, planned.loader.batches(0))) as batches:
        for done in loop.fit(
            state,
            batches=batches,
            step_fn=planned.step_fn,
            steps_per_epoch=planned.loader.schedule.steps_per_epoch,
            lr_at=planned.lr_at,
            seed=run.seed,
            device=device,
            amp_dtype=setup.autocast_dtype(optim),
            grad_accum_steps=optim.grad_accum_steps,
            clip_grad=optim.clip_grad,
            clip_mode=optim.clip_mode,
            compiled_sizes=sizes,
        ):
            taken.append((done.num_images, done.times["step_s"]))
            if sum(seconds for _, seconds in taken) > MEASURE_S:
                break
    steady = taken[2:] or taken[-1:]  # the first steps start workers and choose kernels
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    rate = sum(n for n, _ in steady) / max(sum(s for _, s in steady), 1e-9)
    return Measured(rate, peak, len(steady))


def _cannot_measure(planned: PlannedTraining, counts: Counts, device: torch.device) -> str:
    """Why no real step is taken; "" if one can be."""
    import psutil

    if distributed.world() > 1:
        return "a dry run under several processes does not measure"
    if planned.step_fn is None:
        return "there is no cache yet; a baseline takes the same steps but for reading it"
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if counts.memory.total > free:
        return f"{device} has {files.human_bytes(free)} free; more micro-batches take less"
    images = min(planned.optim.batch_size, len(planned.loader.samples))
    share = images / planned.optim.batch_size
    seconds = counts.flops_per_step * share / flops_per_s(device)
    if seconds > LONGEST_STEP_S:
        return f"a step would take {files.human_time(seconds)} on {device}"
    return ""


def flops_per_s(device: torch.device) -> float:
    """The device's speed in float32 matrix products, an upper bound of any model's."""
    square = torch.ones(1024, 1024, device=device)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        (square @ square).sum().item()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best
