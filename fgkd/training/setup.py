"""Model, optimizer, learning-rate schedule and training state of the specs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fgkd import compilation, config, distributed, models, rng
from fgkd.config import ModelSpec, OptimSpec, RunSpec, TrainStudentConfig, TrainTeacherConfig
from fgkd.errors import OptionError
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop, optim, schedules

C = TypeVar("C", TrainTeacherConfig, TrainStudentConfig)


def build_model(
    spec: ModelSpec,
    classes: Sequence[str],
    *,
    seed: int,
    uses_dist: bool,
    uses_head: bool = True,
    img_size: int | None,
    load_weights: bool = True,
) -> tuple[models.Classifier, list[str]]:
    """The model of the spec for these classes, and lines that say how its weights began.

    uses_dist, uses_head: train the distillation head and the class head of a distilled DeiT.
    img_size: side of the input, which overrides the spec's. load_weights False: estimates of memory
    need neither hub nor file.
    """
    rng.seed_torch("init", seed)
    model, notes = models.create(
        spec.model,
        class_names=list(classes),
        kwargs=config.parse_kwargs(spec.model_kwargs, "model_kwargs"),
        img_size=img_size,
        crop_pct=spec.crop_pct,
        pretrained=spec.pretrained and load_weights,
        initial_checkpoint=spec.initial_checkpoint if load_weights else None,
        drop=spec.drop,
        drop_path=spec.drop_path,
        head_init_scale=spec.head_init_scale,
        uses_dist=uses_dist,
        uses_head=uses_head,
    )
    if spec.freeze:
        model.freeze()
    if spec.grad_checkpointing:
        model.recompute_activations(spec.model)
    return model, notes if load_weights else ["weights are not loaded"]


def check_last_batch(model: models.Classifier, schedule: Schedule, accumulated: int) -> None:
    """Raise OptionError for a last batch of one image that the model's batch norm cannot take.

    accumulated: micro-batches per step. A single image has no batch statistics where a feature map
    is one pixel.
    """
    last = schedule.num_samples % schedule.batch_size or schedule.batch_size
    has_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    if last // (accumulated * distributed.world()) > 1 or not has_norm:
        return
    side = model.input_size[-1]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copy.deepcopy(model).train()(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    except ValueError as error:
        size = schedule.batch_size
        steps = range(size + 1, schedule.num_samples + 2)
        other = next((n for n in steps if schedule.num_samples % n != 1), size + 1)
        raise OptionError(
            f"the last batch of an epoch has one image of {schedule.num_samples}, of which batch "
            f"norm has no statistics: {str(error).splitlines()[0]}",
            option="batch_size",
            value=size,
            suggestion=other,
        ) from None


def eval_batch_size(run: RunSpec, optim: OptimSpec, loader: TrainLoader) -> int:
    """Images per evaluation step: by default no more than fit, since those of a step do."""
    return run.eval_batch_size or min(256, max(loader.usual_sizes(optim.grad_accum_steps)))


def decide_compilation(
    options: C, model: models.Classifier, loader: TrainLoader, device: torch.device
) -> C:
    """A run's options with `compile` on or off; see `compilation`. auto is off in a dry run."""
    run, optim = options.run, options.optim
    parts = optim.grad_accum_steps

    def saved_s() -> float:
        work = _blank_step(model, max(loader.usual_sizes(parts)), device, autocast_dtype(optim))
        num_passes = loader.schedule.total_steps * parts
        return compilation.TRAINING_SAVES * num_passes * compilation.seconds(work, device)

    begun = None if run.overwrite else Path(run.output)
    asked = "off" if run.dry_run and run.compile == "auto" else run.compile
    on = compilation.chosen(asked, begun, device, saved_s)
    return config.replaced(options, compile="on" if on else "off")


def _blank_step(
    model: models.Classifier, rows: int, device: torch.device, amp_dtype: torch.dtype | None
) -> Callable[[], None]:
    """A forward and a backward pass of a copy of the model, of so many images without pixels."""
    copied = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
    height, width = model.input_size[1:]
    image_u8_BHW3 = torch.zeros(rows, height, width, 3, dtype=torch.uint8, device=device)

    def work() -> None:
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            total = copied(image_u8_BHW3).answer_BK.float().sum()
        total.backward()

    return work


def peak_lr(spec: OptimSpec, model: ModelSpec) -> float:
    """Peak learning rate; by default 1e-3 from scratch, 1e-4 from given weights."""
    has_weights = model.pretrained or model.initial_checkpoint
    return float(spec.lr or (1e-4 if has_weights else 1e-3))


def lr_schedule(spec: OptimSpec, lr: float, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a pure function of the step.

    Raises: OptionError for a schedule that rises or never reaches its peak.
    """

    def lr_at(step: int) -> float:
        return schedules.lr_at(
            step=step,
            total_steps=spec.epochs * steps_per_epoch,
            warmup_steps=round(schedules.warmup_epochs(spec) * steps_per_epoch),
            lr=lr,
            min_lr=spec.min_lr,
            warmup_lr=spec.warmup_lr,
            schedule=spec.sched,
            decay_steps=max(1, round(spec.decay_epochs * steps_per_epoch)),
            decay_rate=spec.decay_rate,
        )

    lr_at(0)  # raises before anything is written
    return lr_at


def make_optimizer(spec: OptimSpec, lr: float, model: models.Classifier) -> torch.optim.Optimizer:
    """The optimizer of the spec over the model's trained parameters."""
    groups = optim.param_groups(
        model=model.net,
        weight_decay=spec.weight_decay,
        layer_decay=spec.layer_decay,
        layer_decay_style=spec.layer_decay_style,
    )
    return optim.create_optimizer(
        name=spec.opt,
        groups=groups,
        lr=lr,
        momentum=spec.momentum,
        kwargs=config.parse_kwargs(spec.opt_kwargs, "opt_kwargs"),
    )


def make_state(
    spec: OptimSpec,
    lr: float,
    model: models.Classifier,
    device: torch.device,
    channels_last: bool = True,
) -> loop.State:
    """Training state of a new model on the device: optimizer, loss scaler and, if asked, EMA."""
    from timm.utils import ModelEmaV3

    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    decay = math.exp(-spec.batch_size / spec.model_ema_samples)
    return loop.State(
        model,
        make_optimizer(spec, lr, model),
        torch.amp.GradScaler(device.type, enabled=spec.amp and spec.amp_dtype == "float16"),
        ModelEmaV3(model, decay=decay, use_warmup=True) if spec.model_ema else None,
    )


def autocast_dtype(spec: OptimSpec) -> torch.dtype | None:
    """The type to autocast to; None without autocast."""
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[spec.amp_dtype] if spec.amp else None
