"""Stage one, first half: finetune a teacher on fresh views of the labelled images."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch

from fgkd import losses, rng
from fgkd.config import TrainTeacherConfig
from fgkd.data import open_dataset, with_boxes
from fgkd.errors import quoted
from fgkd.loading.batch import Batch
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop
from fgkd.training.run_folder import RunFolder, describe_process

from . import assembly, board, dry_run, session, training


def train_teacher(options: TrainTeacherConfig) -> None:
    """Train; leaves RUN/model, whose folder tells cache-logits all it needs."""
    session.require(options.data.data, "--data", "icons")
    session.require(options.model.model, "--model", "convnext_base.fb_in22k_ft_in1k")
    board.check(options.tensorboard)
    session.check_json(options)
    device, device_line = session.start_device(options.device, options.deterministic)
    val_fraction = 0.1 if options.val_fraction is None else options.val_fraction
    dataset = open_dataset(options.data.data, val_fraction)
    recipe = session.resolve_recipe(options, None, dataset.chiral)
    if recipe.bbox_crop:
        dataset = with_boxes(dataset)
    build = functools.partial(
        assembly.build_model,
        *(options, dataset.classes),
        uses_dist=False,
        img_size=options.img_size,
    )
    with dry_run.imagined(options):
        model, said = build()
    size = model.config["input_size"][-1]
    # Not the views that the cache will hold: a teacher is overconfident on what it trained on.
    view_seed = rng.hash64("teacher", options.seed)
    train = dataset.splits["train"]
    schedule = Schedule(
        options.seed, len(train), options.batch_size, options.epochs, options.epochs
    )
    lr_at = assembly.schedule_lr(options, schedule.steps_per_epoch)
    images = assembly.open_images(options, train, options.image_store_side)
    loader = TrainLoader(
        samples=train,
        schedule=schedule,
        recipe=recipe,
        view_seed=view_seed,
        size=size,
        workers=options.workers,
        skip_bad=options.skip_bad_images,
        block_size=len(train),
        short_side=options.image_store_side,
        image_store=images,
    )
    banner = session.banner(
        "fgkd train-teacher",
        {
            "data": session.describe_data(session.with_leaks(dataset)),
            "model": assembly.describe_model(options, model, said),
            "views": f"a fresh one each epoch: {session.describe_recipe(recipe)}"
            + assembly.describe_images(images, options.image_store_side),
            "loss": f"CE(head, label; smoothing {options.smoothing:g})",
            "plan": assembly.describe_plan(options, schedule.steps_per_epoch),
            "device": assembly.describe_device(options, device_line),
            "output": options.output,
        },
    )
    step, num_val = make_step(options), len(dataset.splits.get("val", ()))
    if options.dry_run:
        planned = dry_run.Training(options, build, loader, step, lr_at, num_val, size, step)
        dry_run.report(planned, banner, device)
        return

    state = assembly.make_state(options, model, device)
    run = RunFolder(Path(options.output), session.echo)
    facts = {
        **describe_process(sys.argv, device_line),
        "data": session.absolute_specs(options.data.data),
        "val_fraction": val_fraction,
        "views": loader.view.describe(size),
        "parents": {},
    }
    resume = run.begin("train-teacher", options, facts)
    if training.is_finished(run, schedule.total_steps, resume):
        return
    for line in banner:
        run.log(line)
    assembly.fill_images(images, options)
    validation = training.Validation(dataset, model.config, options, device, None)
    training.train(
        run,
        options,
        resume=resume,
        state=state,
        loader=loader,
        step_fn=step,
        validation=validation,
        lr_at=lr_at,
        device=device,
    )
    run.log(f"next: fgkd cache-logits --teacher {quoted(options.output)} --views 8 --output CACHE")


def make_step(options: TrainTeacherConfig) -> loop.Step:
    """The step: cross entropy to the labels."""

    def step(net: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits_BK = net(batch.image_u8_BHW3).answer_BK
        loss = losses.task_loss(
            logits_BK=logits_BK,
            labels_B=batch.labels_B,
            smoothing=options.smoothing,
            partner_labels_B=batch.partner_labels_B,
            lam_B=batch.lam_B,
        )
        return {"loss": loss * batch.label_share}

    return step
