"""`--dry-run` of the two trainings: GPU memory, FLOPs and hours; nothing is written."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fgkd import distributed, files, models
from fgkd.estimate import counting
from fgkd.loading.batch import Batch
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop

from . import assembly, session

MEASURE_S = 8.0  # seconds of real steps to measure the speed by
LONGEST_STEP_S = 10.0  # a machine that would take longer for one is not the one to measure on

Build = Callable[[], tuple[models.Classifier, list[str]]]


@dataclasses.dataclass(frozen=True)
class Training:
    """What a stage has prepared before its first step; build: its model, again."""

    options: Any
    build: Build
    loader: TrainLoader
    step_fn: loop.Step | None  # None: its targets are not there yet
    lr_at: Callable[[int], float]
    num_val: int
    size: int
    counted_step_fn: loop.Step  # the same without a live teacher, which is counted by itself
    teacher: models.Classifier | None = None

    @property
    def micro_batch(self) -> int:
        """The most images that one GPU holds at a time."""
        parts = distributed.world() * self.options.grad_accum_steps
        return -(-self.options.batch_size // parts)


def imagined(options: Any) -> contextlib.AbstractContextManager[None]:
    """Where a stage builds its model: in a dry run, without a byte."""
    return counting.imagined("cpu") if options.dry_run else contextlib.nullcontext()


def report(training: Training, lines: list[str], device: torch.device) -> None:
    """Print, and with --json write, what the training costs; lines: its banner."""
    options, schedule = training.options, training.loader.schedule
    for line in lines:
        session.echo(line)
    found = count(training)
    rate, measured_bytes, steps, why = measure(training, found, device)
    images = schedule.epochs * len(training.loader.samples)
    evaluated = schedule.epochs * training.num_val * (2 if options.model_ema else 1)
    share = found.pop("forward_flops") / found["flops_per_step"]  # an evaluation has no backward
    hours = (images + evaluated * share) / rate / 3600 if rate else None
    loader = training.loader
    store_bytes, said = assembly.plan_images(
        loader.renderer.store, loader.samples, loader.view.short_side
    )
    result = {
        "images": len(training.loader.samples),
        "epochs": schedule.epochs,
        "steps": schedule.total_steps,
        **found,
        "images_per_s": rate,
        "hours": hours,
        "measured_memory_bytes": measured_bytes,
        "image_store_bytes": store_bytes,
    }
    memory = dict(found["memory_bytes"])
    total = files.human_bytes(memory.pop("total"))
    parts = ", ".join(f"{name} {files.human_bytes(size)}" for name, size in memory.items() if size)
    tera, steps_all = found["flops_per_step"] / 1e12, schedule.total_steps
    session.echo("dry run: nothing was written")
    session.echo(f"  compute  {tera:,.3g} TFLOP a step, {tera * steps_all / 1e3:,.3g} PFLOP in all")
    session.echo(f"  memory   {total} of a GPU at {training.micro_batch} images: {parts}")
    peak = f", peak {files.human_bytes(measured_bytes)}" if measured_bytes else ""
    session.echo(
        f"  speed    {rate:,.1f} images/s in {steps} steps on {device}{peak}; "
        f"{files.human_time(hours * 3600)} in all, evaluation included"
        if rate and hours is not None
        else f"  speed    not measured: {why}"
    )
    if said:
        session.echo(f"  store    {said}")
    if options.json and distributed.rank() == 0:
        files.write_json(Path(options.json), result)


def count(training: Training) -> dict[str, Any]:
    """Parameters, FLOPs and bytes of one rank's step, from shapes alone.

    The bytes are what is held when the backward pass begins, with room for all gradients.
    """
    options, amp_dtype = training.options, None
    if options.amp:
        amp_dtype = getattr(torch, options.amp_dtype)
    with counting.imagined("cpu"):  # the only device whose gradients can be imagined anywhere
        model = training.build()[0]
        step = _make_step(training, model, "cpu", None)
        once = counting.flops(lambda: step()["loss"].backward())
        held = counting.num_bytes([*model.parameters(), *model.buffers()])
        memory = {
            "parameters": held,
            # DistributedDataParallel holds a second copy to send.
            "gradients": counting.gradient_bytes(model) * (1 + (distributed.world() > 1)),
            "optimizer": counting.optimizer_bytes(assembly.make_optimizer(options, model)),
            "ema": held if options.model_ema else 0,
        }
    with counting.imagined("cuda"):
        model = training.build()[0].train()
        step = _make_step(training, model, "cuda", amp_dtype)
        saved: list[int] = []
        forward = counting.flops(lambda: saved.append(counting.saved_bytes(model, step)))
        memory["activations"] = saved[0]
        if options.freeze:  # then the widest moment of the forward pass is more than what is kept
            memory["activations"] = max(memory["activations"], counting.peak_bytes(step))
    memory["teacher"], asked = 0, 0
    if training.teacher is not None:
        held, widest, asked = inference_cost(
            training.teacher, training.micro_batch, training.size, options.dtype == "bfloat16"
        )
        memory["teacher"] = held + widest
    ranks = distributed.world() * options.grad_accum_steps
    return {
        "batch_size": options.batch_size,
        "micro_batch": training.micro_batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_step": (once + asked) * ranks,
        "forward_flops": forward * ranks,
        "memory_bytes": {**memory, "total": sum(memory.values())},
    }


def _make_step(
    training: Training, model: models.Classifier, device: str, amp_dtype: torch.dtype | None
) -> Callable[[], dict[str, torch.Tensor]]:
    """One step's losses on a micro-batch without pixels; to be called where it is imagined."""
    batch = _blank_batch(training, len(model.config["label_names"]))
    model.train()

    def step() -> dict[str, torch.Tensor]:
        model.set_drop_path_draws(0, 0, batch.row_ids)
        with counting.autocast(device, amp_dtype):
            return training.counted_step_fn(model, batch)

    return step


def _blank_batch(training: Training, num_classes: int) -> Batch:
    count, loader = training.micro_batch, training.loader
    mixes = loader.unit == 2
    labels_B = torch.zeros(count, dtype=torch.int64)
    return Batch(
        spec=next(iter(loader.schedule.epoch_specs(0, 0, np.arange(len(loader.samples))))),
        count=count,
        row_ids=np.arange(count, dtype=np.uint64),
        image_u8_BHW3=torch.zeros(count, training.size, training.size, 3, dtype=torch.uint8),
        labels_B=labels_B,
        teacher_BK=torch.zeros(count, num_classes),
        partner_labels_B=labels_B if mixes else None,
        lam_B=torch.ones(count) if mixes else None,
        bad=[],
    )


def inference_cost(
    model: models.Classifier, batch: int, size: int, amp: bool
) -> tuple[int, int, int]:
    """(bytes of the weights, bytes at the widest moment, FLOPs) of a model that answers a batch."""
    device = model.mean.device.type
    with counting.imagined(device):
        images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)

        def ask() -> Any:
            with counting.autocast(device, torch.bfloat16 if amp else None):
                return model(images).answer_BK

        peak, asked = counting.peak_bytes(ask), counting.flops(ask)
    return counting.num_bytes([*model.parameters(), *model.buffers()]), peak, asked


def measure(
    training: Training, found: dict[str, Any], device: torch.device
) -> tuple[float | None, int | None, int, str]:
    """(images/s of real steps, peak bytes on CUDA, steps taken, else why none was)."""
    why = _too_much(training, found, device)
    if why or training.step_fn is None:
        return None, None, 0, why
    options = training.options
    state = assembly.make_state(options, training.build()[0], device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken: list[tuple[int, float]] = []
    with contextlib.closing(cast(Any, training.loader.batches(0))) as batches:
        for done in loop.fit(
            state,
            batches=batches,
            step_fn=training.step_fn,
            steps_per_epoch=training.loader.schedule.steps_per_epoch,
            lr_at=training.lr_at,
            device=device,
            **assembly.loop_options(options),
        ):
            taken.append((done.num_images, done.times["step_s"]))
            if sum(seconds for _, seconds in taken) > MEASURE_S:
                break
    steady = taken[2:] or taken[-1:]  # workers starting, kernels being chosen
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    rate = sum(n for n, _ in steady) / max(sum(s for _, s in steady), 1e-9)
    return rate, peak, len(steady), ""


def _too_much(training: Training, found: dict[str, Any], device: torch.device) -> str:
    """Why real steps are not to be tried here; "" if they may be."""
    import psutil

    if distributed.world() > 1:
        return "one process measures one device; leave torchrun out"
    if training.step_fn is None:
        return "there is no cache yet; --distillation none takes the same steps but for its reading"
    need = found["memory_bytes"]["total"]
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if need > free:
        return f"{device} has {files.human_bytes(free)} free; more --grad-accum-steps take less"
    images = min(training.options.batch_size, len(training.loader.samples))
    share = images / training.options.batch_size
    seconds = found["flops_per_step"] * share / flops_per_s(device)
    if seconds > LONGEST_STEP_S:
        return f"a step would take {files.human_time(seconds)} on {device}"
    return ""


def flops_per_s(device: torch.device) -> float:
    """The device's speed in float32 matrix products: more than any model reaches."""
    square = torch.ones(1024, 1024, device=device)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        (square @ square).sum().item()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best
