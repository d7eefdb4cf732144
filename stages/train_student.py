"""Stage two: train a student from a cache, its control on labels, or its live-teacher twin.

The three differ only in where a batch's targets come from: same views, same order, same losses.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import torch

from fgkd import distributed, losses, models
from fgkd.cache.remote import is_url
from fgkd.config import TrainStudentConfig
from fgkd.errors import FgkdError, quoted
from fgkd.loading.batch import Batch
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop
from fgkd.training.run_folder import RunFolder, describe_process

from . import assembly, board, dry_run, session, training
from .source import Source, check_live_size, open_source, val_targets


def train_student(options: TrainStudentConfig) -> None:
    """Train; leaves RUN/model."""
    session.require(options.model.model, "--model", "deit_base_distilled_patch16_384.fb_in1k")
    board.check(options.tensorboard)
    session.check_json(options)
    check_options(options)
    device, device_line = session.start_device(options.device, options.deterministic)
    with contextlib.closing(open_source(options)) as source:
        _check_val_fraction(source, options)
        _train_from(source, options, device, device_line)


def check_options(options: TrainStudentConfig) -> None:
    """Refuse options on the command line that do nothing beside the others."""
    drop = "leave it out"
    if options.distillation == "none":
        of_loss = ["kd_loss", "temperature", "logit_standardization", "distill_loss_weight"]
        session.refuse_typed(of_loss, "with --distillation none, which learns labels alone", drop)
    if options.distillation == "none" or not options.targets.teacher:
        session.refuse_typed(["dtype"], "without a live teacher to distil from", drop)
    if options.order != "shard":
        session.refuse_typed(["shard_buffer"], "without --order shard", f"{drop}, or --order shard")
    if options.cache and not (
        options.dry_run and options.data.data
    ):  # else planned before it is there
        session.refuse_typed(["shard_size"], "with --cache, which has blocks of its own", drop)


def _check_val_fraction(source: Source, options: TrainStudentConfig) -> None:
    if source.cache and options.val_fraction not in (None, source.val_fraction):
        raise FgkdError(
            f"--val-fraction {options.val_fraction:g}: cache {options.cache} was made with "
            f"{source.val_fraction:g}",
            "leave --val-fraction out: the cache knows it",
        )


def _distils(options: TrainStudentConfig) -> bool:
    return options.distillation == "logits" and options.distill_loss_weight > 0


def _train_from(
    source: Source, options: TrainStudentConfig, device: torch.device, device_line: str
) -> None:
    dataset = source.dataset
    distils = _distils(options)
    build = functools.partial(
        assembly.build_model,
        *(options, dataset.classes),
        uses_dist=distils,
        img_size=options.img_size or source.img_size,
    )
    with dry_run.imagined(options):
        model, said = build()
    size = model.config["input_size"][-1]
    train = dataset.splits["train"]
    schedule = Schedule(
        options.seed, len(train), options.batch_size, options.epochs, source.num_views
    )
    lr_at = assembly.schedule_lr(options, schedule.steps_per_epoch)
    check_live_size(source, size)
    hashes = source.cache.samples["train"].hashes if source.cache else None
    images = assembly.open_images(options, train, source.short_side, hashes)
    loader = TrainLoader(
        samples=train,
        schedule=schedule,
        recipe=source.recipe,
        view_seed=source.view_seed,
        size=size,
        workers=options.workers,
        skip_bad=options.skip_bad_images,
        block_size=source.block_size,
        # A control on labels has the images alone from the cache: behind a URL they come with it.
        cache=source.cache if distils or is_url(options.cache or "") else None,
        shard_buffer=options.shard_buffer if options.order == "shard" else 0,
        temperature=options.temperature if distils and options.kd_loss != "hard" else None,
        short_side=source.short_side,
        image_store=images,
    )
    banner = _describe(source, options, model, said, loader, device_line)
    teacher = source.teacher if distils else None
    step = make_step(options, teacher, distils, device)
    if options.dry_run:
        num_val, counted = (
            len(dataset.splits.get("val", ())),
            make_step(options, None, distils, device),
        )
        can_run = teacher is not None or source.cache is not None or not distils
        planned = dry_run.Training(
            *(options, build, loader, step if can_run else None, lr_at, num_val, size),
            counted_step_fn=counted,
            teacher=teacher,
        )
        dry_run.report(planned, banner, device)
        return

    state = assembly.make_state(options, model, device)
    run = RunFolder(Path(options.output), session.echo)
    facts = {
        **describe_process(sys.argv, device_line),
        "data": source.specs,
        "val_fraction": source.val_fraction,
        "views": loader.view.describe(size),
        "parents": source.parents,
    }
    resume = run.begin("train-student", options, facts)
    if training.is_finished(run, schedule.total_steps, resume):
        return
    for line in banner:
        run.log(line)
    assembly.fill_images(images, options)
    training.train(
        run,
        options,
        resume=resume,
        state=state,
        loader=loader,
        step_fn=step,
        validation=training.Validation(
            dataset, model.config, options, device, val_targets(source, options, device)
        ),
        lr_at=lr_at,
        device=device,
    )
    run.log(f"next: fgkd evaluate {quoted(options.output)} --split test")


def _describe(
    source: Source,
    options: TrainStudentConfig,
    model: models.Classifier,
    said: list[str],
    loader: TrainLoader,
    device_line: str,
) -> list[str]:
    """The start-up banner."""
    distils = _distils(options)
    equation = losses.equation(
        task_weight=options.task_loss_weight,
        distill_weight=options.distill_loss_weight,
        name=options.kd_loss,
        temperature=options.temperature,
        smoothing=options.smoothing,
        standardize=options.logit_standardization,
        has_dist_head=model.uses_dist,
        distillation=distils,
    )
    if options.kd_loss in losses.ACROSS_ROWS and distils and options.grad_accum_steps > 1:
        equation += "; DIST compares rows within a micro-batch (of all ranks), not a whole batch"
    digests = "" if loader.check_pixels or not loader.cache else "; another size, pixels unchecked"
    return session.banner(
        "fgkd train-student",
        {
            "data": session.describe_data(source.dataset),
            "model": assembly.describe_model(options, model, said),
            "targets": (source.text if distils else "labels alone (the control)") + digests,
            "views": f"{source.num_views}, view e mod {source.num_views} in epoch e: "
            + session.describe_recipe(source.recipe)
            + assembly.describe_images(loader.renderer.store, source.short_side),
            "loss": equation,
            "plan": assembly.describe_plan(options, loader.schedule.steps_per_epoch),
            "device": assembly.describe_device(options, device_line),
            "output": options.output,
        },
    )


def make_step(
    options: TrainStudentConfig, teacher: models.Classifier | None, distils: bool, device: Any
) -> loop.Step:
    """The step: class head to labels, distillation head (or the same one) to the teacher."""
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    amp = options.dtype == "bfloat16"
    if teacher is not None:
        teacher.to(device, dtype).eval()
        teacher.to(memory_format=torch.channels_last)

    def ask(images: torch.Tensor) -> torch.Tensor:
        assert teacher is not None
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=amp),
        ):
            return teacher(images).answer_BK.float()

    def step(net: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        def gather(rows_BK: torch.Tensor) -> torch.Tensor:
            return distributed.gather_rows(rows_BK[: batch.count])  # no rows that stand in

        out = net(batch.image_u8_BHW3)
        task = losses.task_loss(
            logits_BK=out.head_BK,
            labels_B=batch.labels_B,
            smoothing=options.smoothing,
            partner_labels_B=batch.partner_labels_B,
            lam_B=batch.lam_B,
        )
        task = task * batch.label_share
        if not distils:
            return {"loss": options.task_loss_weight * task}
        teacher_BK = batch.teacher_BK if teacher is None else ask(batch.image_u8_BHW3)
        assert teacher_BK is not None
        distill = losses.distill_loss(
            name=options.kd_loss,
            logits_BK=out.head_BK if out.dist_BK is None else out.dist_BK,
            teacher_BK=teacher_BK,
            labels_B=batch.labels_B,
            temperature=options.temperature,
            standardize=options.logit_standardization,
            gather=gather if distributed.world() > 1 and not options.dry_run else None,
        )
        distill = distill * batch.image_share
        loss = options.task_loss_weight * task + options.distill_loss_weight * distill
        return {"loss": loss, "task_loss": task, "distill_loss": distill}

    return step
