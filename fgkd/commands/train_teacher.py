"""Finetuning a teacher on fresh augmented views of labelled images."""

from __future__ import annotations

import functools
from typing import Any

from fgkd import config, device, rng
from fgkd.commands import banner, dry_run, image_stores
from fgkd.commands.training import Prepared
from fgkd.config import TrainTeacherConfig
from fgkd.data import absolute_specs, duplicates, open_chosen, specs_of, unlabeled, with_boxes
from fgkd.distillation.step import label_step
from fgkd.errors import MissingOption
from fgkd.estimate.training import TrainingEstimate, shapes_only
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.progress import SILENT, Progress
from fgkd.training import run_folder, setup, trackers
from fgkd.training.train import TrainedRun
from fgkd.views import recipes
from fgkd.views.view_set import ViewSet


@device.settings_kept()
def train_teacher(*, progress: Progress = SILENT, **options: Any) -> TrainedRun | TrainingEstimate:
    """Finetune a timm model on a dataset, with the options of `fgkd train-teacher` by name.

    `train_teacher(data="folder:/data/birds", model="convnext_tiny", pretrained=True,
    output="runs/teacher")` leaves RUN/model, from which a cache is captured. With `dry_run=True`
    nothing is written, and the cost is estimated. Raises: FgkdError of many types.
    """
    return run(config.of_call(TrainTeacherConfig, options, "train_teacher()"), progress)


def run(options: TrainTeacherConfig, progress: Progress = SILENT) -> TrainedRun | TrainingEstimate:
    """`train_teacher` with its config."""
    options = run_folder.keep_warmup(options)
    spec, optim, model_spec, data = options.run, options.optim, options.model, options.data
    require_options(options)
    hardware, device_line = device.set_up(spec.device, spec.deterministic)
    unlabeled.refuse(data.data)
    dataset = open_chosen(data, specs_of(data))
    recipe = recipes.resolve(options.view, None, dataset.chiral)
    if recipe.bbox_crop:
        dataset = with_boxes(dataset)
    build = functools.partial(
        setup.build_model,
        *(model_spec, dataset.classes),
        seed=spec.seed,
        uses_dist=False,
        img_size=model_spec.img_size,
        load_weights=not spec.dry_run,
    )
    with shapes_only(spec.dry_run):
        model, notes = build()
    size = model.config["input_size"][-1]
    samples = dataset.train
    schedule = Schedule(spec.seed, len(samples), optim.batch_size, optim.epochs, optim.epochs)
    lr = setup.peak_lr(optim, model_spec)
    lr_at = setup.lr_schedule(optim, lr, schedule.steps_per_epoch)
    store = image_stores.open_store(data, samples, data.image_store_side)
    # Not the views that a cache holds: a teacher is overconfident on those it was trained on.
    view_seed = rng.hash64("teacher", spec.seed)
    views = ViewSet(samples, recipe, view_seed, size, len(samples), data.image_store_side)
    loader = TrainLoader(
        views,
        schedule,
        workers=spec.workers,
        skip_unreadable=data.skip_bad_images,
        store=store,
    )
    if not spec.dry_run:
        setup.check_last_batch(model, schedule, optim.grad_accum_steps)
    options = setup.decide_compilation(options, model, loader, hardware)
    spec = options.run
    lines = banner.banner(
        "fgkd train-teacher",
        {
            "data": banner.describe_data(duplicates.with_warnings(dataset)),
            "model": banner.describe_model(model_spec, model, notes),
            "views": f"a fresh one each epoch: {banner.describe_recipe(recipe)}"
            + banner.describe_images(store, data.image_store_side),
            "loss": f"CE(head, label; smoothing {options.loss.smoothing:g})",
            "plan": banner.describe_plan(optim, lr, schedule, dataset),
            "device": banner.describe_device(spec, optim, model_spec, device_line),
            "output": spec.output,
        },
    )
    step = label_step(options.loss.smoothing)
    prepared = Prepared(
        stage="train-teacher",
        options=options,
        banner=lines,
        device=hardware,
        device_line=device_line,
        dataset=dataset,
        specs=absolute_specs(specs_of(data)),
        val_fraction=dataset.val_fraction,
        build=build,
        model=model,
        loader=loader,
        lr=lr,
        lr_at=lr_at,
        step_fn=step,
        counted_step_fn=step,
    )
    return prepared.carry_out(progress)


def require_options(options: TrainTeacherConfig) -> None:
    """Raise MissingOption or MissingPackage before any work is done."""
    example = "convnext_base.fb_in22k_ft_in1k"
    if not options.data.data:
        raise MissingOption("data is required", option="data", suggestion="icons")
    if not options.model.model:
        raise MissingOption("model is required", option="model", suggestion=example)
    trackers.names_of(options.run)
    dry_run.check_json(options.run)
