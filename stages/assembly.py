"""From options to the parts of a training: model, optimizer, schedule, and what to say of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import files, models, rng
from fgkd.data import Samples
from fgkd.data.image_store import ImageStore, estimate_bytes
from fgkd.errors import FgkdError
from fgkd.training import loop, optim, schedules

from . import session


def build_model(
    options: Any, class_names: list[str], *, uses_dist: bool, img_size: int | None
) -> tuple[models.Classifier, list[str]]:
    """The model of the options, initialised from --seed; also what to say of its weights.

    A dry run loads none: costs do not depend on them, and neither hub nor file need be there.
    """
    rng.seed_torch("init", options.seed)
    model, said = models.create(
        options.model.model,
        class_names=class_names,
        kwargs=models.parse_kwargs(options.model_kwargs),
        img_size=img_size,
        crop_pct=options.crop_pct,
        pretrained=options.pretrained and not options.dry_run,
        initial_checkpoint=None if options.dry_run else options.initial_checkpoint,
        drop=options.drop,
        drop_path=options.drop_path,
        head_init_scale=options.head_init_scale,
        uses_dist=uses_dist,
    )
    if options.freeze:
        model.freeze()
    if options.grad_checkpointing:
        model.recompute_activations(options.model.model)
    return model, ["weights are not loaded"] if options.dry_run else said


def resolve_warmup(options: Any) -> float:
    """--warmup-epochs, or the default: 2, but at most a quarter of the epochs."""
    given = options.warmup_epochs
    return min(2.0, options.epochs / 4) if given is None else float(given)


def resolve_lr(options: Any) -> float:
    """--lr, or the default: 1e-3 from scratch, 1e-4 from given weights."""
    given = options.pretrained or options.initial_checkpoint
    return float(options.lr or (1e-4 if given else 1e-3))


def schedule_lr(options: Any, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a pure function of the step."""

    def lr_at(step: int) -> float:
        return schedules.lr_at(
            step=step,
            total_steps=options.epochs * steps_per_epoch,
            warmup_steps=round(resolve_warmup(options) * steps_per_epoch),
            lr=resolve_lr(options),
            min_lr=options.min_lr,
            warmup_lr=options.warmup_lr,
            schedule=options.sched,
            decay_steps=max(1, round(options.decay_epochs * steps_per_epoch)),
            decay_rate=options.decay_rate,
        )

    lr_at(0)  # refuses a schedule that rises before anything is written
    return lr_at


def describe_plan(options: Any, steps_per_epoch: int) -> str:
    """Epochs, steps, optimizer and learning rate on one line."""
    layer_decay = f", layer decay {options.layer_decay:g}" if options.layer_decay else ""
    accum = f" in {options.grad_accum_steps} micro-batches" if options.grad_accum_steps > 1 else ""
    return (
        f"{options.epochs} epochs x {steps_per_epoch} steps of {options.batch_size} images{accum}; "
        f"{options.opt}, lr {resolve_lr(options):g} -> {options.min_lr:g} {options.sched} after "
        f"{resolve_warmup(options):g} epochs of warmup, weight decay {options.weight_decay:g}"
        f"{layer_decay}"
    )


def make_optimizer(options: Any, model: models.Classifier) -> torch.optim.Optimizer:
    """The optimizer of the options over the model's trained parameters."""
    groups = optim.param_groups(
        model=model.net,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        layer_decay_style=options.layer_decay_style,
    )
    return optim.create_optimizer(
        name=options.opt, groups=groups, lr=resolve_lr(options), momentum=options.momentum
    )


def loop_options(options: Any) -> dict[str, Any]:
    """What `loop.fit` takes straight from the options."""
    return {
        "seed": options.seed,
        "amp_dtype": getattr(torch, options.amp_dtype) if options.amp else None,
        "grad_accum_steps": options.grad_accum_steps,
        "clip_grad": options.clip_grad,
        "clip_mode": options.clip_mode,
        "compiled": options.compile,
    }


def make_state(options: Any, model: models.Classifier, device: torch.device) -> loop.State:
    """Optimizer, loss scaler and averaged weights around a new model."""
    from timm.utils import ModelEmaV3

    model.to(device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    decay = math.exp(-options.batch_size / options.model_ema_samples)
    scaled = options.amp and options.amp_dtype == "float16"
    return loop.State(
        model,
        make_optimizer(options, model),
        torch.amp.GradScaler(device.type, enabled=scaled),
        ModelEmaV3(model, decay=decay, use_warmup=True) if options.model_ema else None,
    )


def describe_model(options: Any, model: models.Classifier, said: list[str]) -> str:
    """Name, size in parameters, what of it is trained, input side, and how its weights began."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    size = model.config["input_size"][-1]
    frozen = f" ({trained:.2f} M trained: the heads alone, --freeze)" if options.freeze else ""
    return (
        f"{options.model.model}, {millions:.2f} M parameters{frozen}, {size} px; {'; '.join(said)}"
    )


def describe_device(options: Any, device_line: str) -> str:
    """Device, number type, layout, workers: what was chosen and why."""
    dtype = f"autocast {options.amp_dtype} (--amp)" if options.amp else "float32 (no --amp)"
    if options.amp and options.amp_dtype == "float16":
        dtype += " with loss scaling"
    given = "default, fastest for convolutions" if options.channels_last else "--no-channels-last"
    layout = f"{'channels last' if options.channels_last else 'channels first'} ({given})"
    extra = "; compiled (--compile)" if options.compile else ""
    extra += "; activations recomputed (--grad-checkpointing)" if options.grad_checkpointing else ""
    if device_line.startswith("cuda"):
        own = "that repeat bit for bit (default)" if options.deterministic else "of any kind"
        extra += f"; kernels {own}{'' if options.deterministic else ' (--no-deterministic)'}"
    where = f"{options.workers} processes" if options.workers else "this process"
    return f"{device_line}; {dtype}; {layout}{extra}; images loaded by {where} (--workers)"


def open_images(
    options: Any, samples: Samples, short_side: int | None, hashes: Any = None
) -> ImageStore | None:
    """The image store of --image-store, as far as it is written; None without the option.

    hashes: the content hashes of a cache, as text or as bytes.
    """
    if not options.image_store:
        return None
    if short_side is None:
        raise FgkdError(
            "--image-store holds shrunk images, but no --image-store-side is given",
            "--image-store-side 256   # a good choice is 1.15 to 1.25 times --img-size",
        )
    known = None if hashes is None else np.asarray(hashes).astype(str).tolist()
    return ImageStore(Path(options.image_store), samples, short_side, known)


def fill_images(store: ImageStore | None, options: Any) -> None:
    """Write the image store, unless it is there; other ranks and commands wait for the first."""
    if store is None or store.is_complete:
        return
    count = len(store.samples)
    about = files.human_bytes(estimate_bytes(store.samples, store.short_side))
    session.echo(f"writing image store {store.folder}: {count:,} images, about {about}")
    with session.counting(count) as progress:
        store.build(options.workers, options.skip_bad_images, progress)


def plan_images(
    store: ImageStore | None, samples: Samples, short_side: int | None
) -> tuple[int | None, str]:
    """(bytes of an image store's pixels, what to say of them) for a dry run; None: not known.

    Without a store, they are those that one would take; of whole images there is nothing to say.
    """
    if short_side is None:
        return None, ""
    if store and store.is_complete:
        size = store.pixels_bytes
        return size, f"{files.human_bytes(size)} in {store.folder}, written already"
    size = estimate_bytes(samples, short_side)
    if not size:
        return None, "not known, for no image can be read here"
    about = f"about {files.human_bytes(size)}"
    if store is None:
        return size, f"none; with --image-store it would take {about}"
    free, where = files.free(store.folder)
    return size, f"{about} in {store.folder}; {files.human_bytes(free)} free at {where}"


def describe_images(store: ImageStore | None, short_side: int | None) -> str:
    """What views are cropped from, to follow a line on views; nothing for whole images."""
    if short_side is None:
        return ""
    how = f"kept in {store.folder}" if store else "shrunk as they are read (--image-store keeps it)"
    return f"; of images with a shorter side of {short_side} px, {how}"
