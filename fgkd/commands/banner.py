"""The lines that say, at the start of a command, what it will do and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping

from fgkd.config import ModelSpec, OptimSpec, RunSpec
from fgkd.data import Dataset
from fgkd.data.image_store import ImageStore
from fgkd.loading.schedule import Schedule
from fgkd.models import Classifier
from fgkd.training import schedules
from fgkd.views.recipes import ViewRecipe


def banner(title: str, lines: Mapping[str, str]) -> list[str]:
    """A title, and `name text` lines in columns."""
    return [title, *(f"  {name:<8} {text}" for name, text in lines.items()), ""]


def describe_data(dataset: Dataset) -> str:
    """`icons: 85 classes; 5,114 train, 715 val, 1,433 test images`, and the dataset's notes."""
    notes = "".join(f"\n           {note_line(note)}" for note in dataset.notes)
    return f"{dataset}{notes}"


def note_line(note: str) -> str:
    """A note of a dataset as a line; a warning is marked already."""
    return note if note.startswith("warning: ") else f"note: {note}"


def describe_recipe(recipe: ViewRecipe) -> str:
    """The augmentations that are on, on one line."""
    whole = "bounding box" if recipe.bbox_crop else "area"
    parts = [f"crop {recipe.crop_scale[0]:g}-{recipe.crop_scale[1]:g} of the {whole}"]
    for name in ("hflip", "color_jitter", "erasing", "mixup", "cutmix"):
        if value := getattr(recipe, name):
            parts.append(f"{name} {value:g}")
    if recipe.rand_aug_ops:
        magnitude = f"{recipe.rand_aug_magnitude:g}"
        parts.append(f"RandAugment n{recipe.rand_aug_ops} m{magnitude}")
    return ", ".join(parts)


def describe_images(store: ImageStore | None, short_side: int | None) -> str:
    """What views are cropped from, to follow a line on views; "" for full-size images."""
    if short_side is None:
        return ""
    how = f"kept in {store.folder}" if store else "resized as they are read"
    return f"; from images with a shorter side of at most {short_side} px, {how}"


def describe_model(spec: ModelSpec, model: Classifier, notes: list[str]) -> str:
    """Name, parameters, what is trained, input size, and how the weights began."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    size = model.config["input_size"][-1]
    frozen = f" ({trained:.2f} M trained: only the heads)" if spec.freeze else ""
    return f"{spec.model}, {millions:.2f} M parameters{frozen}, {size} px; {'; '.join(notes)}"


def describe_plan(spec: OptimSpec, lr: float, schedule: Schedule, dataset: Dataset) -> str:
    """Epochs, steps, optimizer and learning rate on one line, and what is unusual about them."""
    layer_decay = f", layer decay {spec.layer_decay:g}" if spec.layer_decay else ""
    accum = f" in {spec.grad_accum_steps} micro-batches" if spec.grad_accum_steps > 1 else ""
    kwargs = f" ({', '.join(spec.opt_kwargs)})" if spec.opt_kwargs else ""
    notes = []
    if schedule.num_samples < spec.batch_size:
        notes.append(f"a step takes all {schedule.num_samples} images: there are no more")
    if "val" not in dataset.splits:
        notes.append("there is no val split: the model of the last epoch is kept")
    return (
        f"{spec.epochs} epochs x {schedule.steps_per_epoch} steps of {spec.batch_size} "
        f"images{accum}; "
        f"{spec.opt}{kwargs}, lr {lr:g} -> {spec.min_lr:g} {spec.sched} after "
        f"{schedules.warmup_epochs(spec):g} epochs of warmup, weight decay {spec.weight_decay:g}"
        f"{layer_decay}" + "".join(f"\n           {note_line(note)}" for note in notes)
    )


def describe_device(run: RunSpec, optim: OptimSpec, model: ModelSpec, device_line: str) -> str:
    """Device, number type, memory format and workers: what was chosen and why."""
    dtype = f"autocast {optim.amp_dtype}" if optim.amp else "float32"
    if optim.amp and optim.amp_dtype == "float16":
        dtype += " with loss scaling"
    layout = "channels last" if run.channels_last else "channels first"
    extra = "; compiled" if run.compile == "on" else ""
    extra += "; gradient checkpointing" if model.grad_checkpointing else ""
    if device_line.startswith("cuda"):
        extra += f"; {'deterministic' if run.deterministic else 'any'} kernels"
    loads = f"{run.workers} worker processes" if run.workers else "this process"
    return f"{device_line}; {dtype}; {layout}{extra}; images loaded by {loads}"
