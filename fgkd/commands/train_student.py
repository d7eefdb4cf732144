"""Training a student from a cache, with a live teacher, or (the baseline) on labels alone.

The three differ only in where a batch's targets come from: views, order and losses are the same.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np
import torch

from fgkd import config, device, losses
from fgkd.commands import banner, dry_run, image_stores, sources
from fgkd.commands.training import Prepared
from fgkd.config import LossSpec, TrainStudentConfig
from fgkd.data import Dataset
from fgkd.distillation.step import distils, student_step
from fgkd.distillation.targets import (
    TargetSource,
    open_source,
    reads_by_shard,
    val_targets,
)
from fgkd.errors import MissingOption, OptionError
from fgkd.estimate.training import TrainingEstimate, shapes_only
from fgkd.files import is_url
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.models import Classifier
from fgkd.progress import SILENT, Progress
from fgkd.training import run_folder, setup, trackers
from fgkd.training.train import TrainedRun


@device.settings_kept()
def train_student(*, progress: Progress = SILENT, **options: Any) -> TrainedRun | TrainingEstimate:
    """Train a student, with the options of `fgkd train-student` by name.

    `train_student(cache="runs/cache", model="deit_tiny_distilled_patch16_224", epochs=30,
    output="runs/student")` leaves RUN/model. With `dry_run=True` nothing is written, and the cost
    is estimated. Raises: FgkdError of many types.
    """
    return run(config.of_call(TrainStudentConfig, options, "train_student()"), progress)


def run(options: TrainStudentConfig, progress: Progress = SILENT) -> TrainedRun | TrainingEstimate:
    """`train_student` with its config."""
    options = run_folder.keep_warmup(options)
    spec = options.run
    if not options.model.model:
        example = "deit_base_distilled_patch16_384.fb_in1k"
        raise MissingOption("model is required", option="model", suggestion=example)
    dry_run.check_json(spec)
    if not (options.loss.task_loss_weight or distils(options.loss)):
        message = "nothing is to be learned: the weights of all losses are 0"
        raise OptionError(message, option="task_loss_weight", value=0, suggestion=1)
    trackers.names_of(spec)
    if options.targets.teacher and not options.targets.cache:
        sources.check(options.targets.teacher, options.source)
    hardware, device_line = device.set_up(spec.device, spec.deterministic)
    source = open_source(
        *(options.targets, options.loss, options.data, options.view),
        epochs=options.optim.epochs,
        source=options.source,
        dry_run=spec.dry_run,
    )
    with contextlib.closing(source):
        return _train_from(source, options, hardware, device_line, progress)


def _train_from(
    source: TargetSource,
    options: TrainStudentConfig,
    hardware: torch.device,
    device_line: str,
    progress: Progress,
) -> TrainedRun | TrainingEstimate:
    spec, optim, model_spec, data = options.run, options.optim, options.model, options.data
    targets, dataset, learns = options.targets, source.dataset, distils(options.loss)
    build = functools.partial(
        setup.build_model,
        *(model_spec, dataset.classes),
        seed=spec.seed,
        uses_dist=learns,
        uses_head=options.loss.task_loss_weight > 0,
        img_size=model_spec.img_size or source.img_size,
        load_weights=not spec.dry_run,
    )
    with shapes_only(spec.dry_run):
        model, notes = build()
    size = model.config["input_size"][-1]
    samples = dataset.train
    schedule = Schedule(spec.seed, len(samples), optim.batch_size, optim.epochs, source.num_views)
    lr = setup.peak_lr(optim, model_spec)
    lr_at = setup.lr_schedule(optim, lr, schedule.steps_per_epoch)
    store = image_stores.open_store(data, samples, source.short_side, source.hashes)
    loader = TrainLoader(
        source.view_set(size),
        schedule,
        workers=spec.workers,
        skip_unreadable=data.skip_bad_images,
        # A baseline takes only the images from a cache, which behind a URL come with the shards.
        cache=source.cache if learns or is_url(targets.cache or "") else None,
        shard_buffer=targets.shard_buffer if reads_by_shard(targets) else 0,
        temperature=options.loss.temperature if learns and options.loss.kd_loss != "hard" else None,
        store=store,
        teacher_size=source.teacher.input_size[-1] if source.teacher and learns else None,
    )
    if not spec.dry_run:
        setup.check_last_batch(model, schedule, optim.grad_accum_steps)
    options = setup.decide_compilation(options, model, loader, hardware)
    spec = options.run
    lines = _banner(source, options, model, notes, loader, lr, device_line)
    teacher = _ready(source.teacher, targets.dtype, hardware) if learns else None
    gather = not spec.dry_run
    step = student_step(
        options.loss,
        teacher,
        dtype=targets.dtype,
        gather=gather,
        class_weights_K=class_weights(options.loss, dataset, hardware),
    )
    has_targets = teacher is not None or source.cache is not None or not learns
    prepared = Prepared(
        stage="train-student",
        options=options,
        banner=lines,
        device=hardware,
        device_line=device_line,
        dataset=dataset,
        specs=source.specs,
        val_fraction=source.val_fraction,
        build=build,
        model=model,
        loader=loader,
        lr=lr,
        lr_at=lr_at,
        step_fn=step if has_targets else None,
        counted_step_fn=student_step(options.loss, gather=False),
        teacher=teacher,
        dtype=targets.dtype,
        parents=source.parents,
        taught_by=source.teacher_text if learns else "none: learned from labels",
        val_targets=lambda size: val_targets(source, size, spec.workers, hardware),
    )
    return prepared.carry_out(progress)


def _ready(teacher: Classifier | None, dtype: str, hardware: torch.device) -> Classifier | None:
    """A live teacher on the device, in its number type."""
    if teacher is not None:
        teacher.to(hardware, torch.float64 if dtype == "float64" else torch.float32).eval()
        teacher.to(memory_format=torch.channels_last)
    return teacher


def class_weights(spec: LossSpec, dataset: Dataset, hardware: torch.device) -> torch.Tensor | None:
    """Float32 weights [K] by the classes' labelled training images; None for other losses."""
    if spec.kd_loss not in losses.BY_CLASS:
        return None
    labels_N = dataset.train.labels
    counts_K = np.bincount(labels_N[labels_N >= 0], minlength=len(dataset.classes))
    return losses.class_balanced_weights(torch.from_numpy(counts_K)).float().to(hardware)


def _banner(
    source: TargetSource,
    options: TrainStudentConfig,
    model: Classifier,
    notes: list[str],
    loader: TrainLoader,
    lr: float,
    device_line: str,
) -> list[str]:
    loss, optim, learns = options.loss, options.optim, distils(options.loss)
    equation = losses.equation(
        task_weight=loss.task_loss_weight,
        distill_weight=loss.distill_loss_weight,
        name=loss.kd_loss,
        temperature=loss.temperature,
        smoothing=loss.smoothing,
        standardize=loss.logit_standardization,
        has_dist_head=model.uses_dist,
        distillation=learns,
    )
    if loss.kd_loss in losses.ACROSS_ROWS and learns and optim.grad_accum_steps > 1:
        equation += "; DIST compares rows within a micro-batch (of all ranks), not a whole batch"
    text = source.text if learns else "labels alone (the baseline)"
    if loader.cache and not loader.check_pixels:
        text += "; at another size, pixels unchecked"
    if len(loader.renderer.sizes) > 1:
        text += f"; the teacher sees the views at {loader.renderer.sizes[1]} px"
    return banner.banner(
        "fgkd train-student",
        {
            "data": banner.describe_data(source.dataset),
            "model": banner.describe_model(options.model, model, notes),
            "targets": text,
            "views": f"{source.num_views}, view e mod {source.num_views} in epoch e: "
            + banner.describe_recipe(source.recipe)
            + banner.describe_images(loader.renderer.store, source.short_side),
            "loss": equation,
            "plan": banner.describe_plan(optim, lr, loader.schedule, source.dataset),
            "device": banner.describe_device(options.run, optim, options.model, device_line),
            "output": options.run.output,
        },
    )
