"""Where a student's views and targets come from: a cache, a live teacher, or plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fgkd import comparison, files, losses, models
from fgkd.cache.reader import Reader
from fgkd.cache.remote import is_url, open_cache
from fgkd.config import TrainStudentConfig, args_file
from fgkd.data import Dataset, open_dataset, with_boxes
from fgkd.errors import FgkdError, quoted
from fgkd.evaluation import inference
from fgkd.training import run_folder
from fgkd.views import recipes
from fgkd.views.rendering import clean_renderer

from . import session


@dataclass
class Source:
    """Where the student's views and targets come from."""

    dataset: Dataset
    specs: list[str]
    val_fraction: float
    recipe: recipes.ViewRecipe
    view_seed: int
    num_views: int
    block_size: int
    img_size: int | None
    text: str
    parents: dict[str, Any]
    short_side: int | None = None
    cache: Reader | None = None
    teacher: models.Classifier | None = None

    def close(self) -> None:
        """Close the cache's shards, and stop what is still being fetched."""
        if self.cache:
            self.cache.close()


def open_source(options: TrainStudentConfig) -> Source:
    """The cache, the live teacher or the plain data that the options name.

    Raises: FgkdError when they name none or several, or when the cache is of other data.
    """
    if options.cache and options.targets.teacher:
        raise FgkdError("--cache and --teacher exclude each other", "--cache DIR alone")
    if options.cache:
        if options.dry_run and not is_url(options.cache) and not Path(options.cache).exists():
            return _planned(options, options.cache)
        return _from_cache(options, options.cache)
    if options.targets.teacher:
        return _from_teacher(options, Path(options.targets.teacher[0]))
    if options.distillation == "logits":
        raise FgkdError(
            "nothing to distil from: neither --cache nor --teacher was given",
            "--cache DIR, or --distillation none --data NAME:PATH for the control",
        )
    session.require(options.data.data, "--data", "icons")
    return _from_data(options, options.data.data, options.val_fraction, None, "labels")


def _planned(options: TrainStudentConfig, folder: str) -> Source:
    """For a dry run before the cache is written: the data it will be of."""
    if not options.data.data:
        raise FgkdError(
            f"no cache at {folder}", "--data NAME:PATH as well, to plan before it is written"
        )
    text = f"cache {folder}, which is not there yet"
    return _from_data(options, options.data.data, options.val_fraction, None, text)


def _from_cache(options: TrainStudentConfig, folder: str) -> Source:
    overrides = ["aug_recipe"] if options.aug_recipe else []
    if overrides := overrides + list(session.view_overrides(options)):
        raise FgkdError(
            f"--cache fixes the views; --{overrides[0].replace('_', '-')} cannot change them",
            "leave the view options out, or write another cache with them",
        )
    if is_url(folder) and options.order != "shard":
        raise FgkdError(f"--cache {folder} is a URL, which is read shard by shard", "--order shard")
    reader = open_cache(folder)
    identity = reader.identity
    val_fraction = identity.dataset.val_fraction
    specs, dataset = _cached_data(options, reader)
    if (options.views or 1) > reader.views:
        raise FgkdError(
            f"--views {options.views}: cache {folder} has {reader.views}",
            f"fgkd cache-logits -c {quoted(folder)}/args.yaml --views {options.views} "
            f"--output {quoted(folder)}",
        )
    _refuse_losses(options, reader)
    if options.view_seed not in (None, identity.views.seed):
        raise FgkdError(
            f"--view-seed {options.view_seed}: cache {folder} was made with {identity.views.seed}",
            "leave --view-seed out",
        )
    _refuse_images(options, reader)
    return Source(
        dataset=dataset,
        specs=specs,
        val_fraction=val_fraction,
        recipe=identity.views.recipe,
        view_seed=identity.views.seed,
        num_views=options.views or reader.views,
        block_size=identity.shard_size,
        img_size=identity.views.img_size,
        short_side=identity.views.short_side,
        text=f"cache {folder}: {reader.codec.name} logits, {reader.views} views",
        parents={
            "cache": folder if is_url(folder) else str(Path(folder).resolve()),
            "identity_sha256": reader.manifest.identity_sha256,
            "teachers": [t.weights_sha256 for t in identity.teachers],
        },
        cache=reader,
    )


def _cached_data(options: TrainStudentConfig, reader: Reader) -> tuple[list[str], Dataset]:
    """The images a cache was made of: in its own shards, or a dataset that must match."""
    identity, folder = reader.identity, reader.folder
    if reader.holds_images and not options.data.data:
        args = folder / "args.yaml"
        dataset = reader.dataset()
        return (args_file.load_yaml(args)["data"] if args.exists() else []), dataset
    if is_url(reader.name):
        session.require(options.data.data, "--data", "NAME:PATH   # the shards hold no images")
    specs = session.absolute_specs(
        options.data.data or args_file.load_yaml(folder / "args.yaml")["data"]
    )
    val_fraction = identity.dataset.val_fraction
    dataset = open_dataset(specs, val_fraction)
    if identity.views.recipe.bbox_crop:
        dataset = with_boxes(dataset)
    reader.check_dataset(dataset)
    return specs, dataset


def _refuse_losses(options: TrainStudentConfig, reader: Reader) -> None:
    """Refuse what a truncated target cannot give: all logits, or another temperature."""
    if reader.codec.name != "topk" or options.distillation == "none":
        return
    if options.kd_loss in losses.NEEDS_ALL_LOGITS or options.logit_standardization:
        wanted = options.kd_loss if not options.logit_standardization else "--logit-standardization"
        raise FgkdError(
            f"{wanted} needs all logits, but cache {reader.folder} keeps the top "
            f"{reader.codec.top_k} of {reader.codec.num_classes}",
            "--kd-loss kl, or write the cache with --encoding dense",
        )
    if options.kd_loss != "hard":
        reader.codec.refuse_temperature(options.temperature)


def _refuse_images(options: TrainStudentConfig, reader: Reader) -> None:
    """Refuse an image store whose images are not those that the cache's views were cropped from."""
    side = reader.identity.views.short_side
    if options.image_store_side not in (None, side):
        raise FgkdError(
            f"--image-store-side {options.image_store_side}: the views of cache {reader.name} were "
            + ("cropped from whole images" if side is None else f"made with {side}"),
            "leave --image-store-side out: the cache knows it",
        )
    if options.image_store and side is None:
        raise FgkdError(
            f"--image-store: the views of cache {reader.name} were cropped from whole images",
            "leave --image-store out, or write a cache with cache-logits --image-store-side",
        )
    if options.image_store and is_url(options.cache or "") and not options.data.data:
        raise FgkdError(
            "--image-store cannot keep images that come with the shards of a URL",
            "leave it out: the images are shrunk as they come",
        )


def _from_teacher(options: TrainStudentConfig, run_dir: Path) -> Source:
    run = run_folder.read(run_dir)
    teacher = models.load(run_dir / "model")
    val_fraction = run["val_fraction"] if options.val_fraction is None else options.val_fraction
    text = f"live teacher {run_dir}, {options.dtype}"
    source = _from_data(
        options, options.data.data or run["data"], val_fraction, run["views"]["recipe"], text
    )
    known = list(teacher.config.get("label_names") or [])
    comparison.refuse(
        f"the data's classes are not those of {run_dir}",
        comparison.differences(known, source.dataset.classes, "classes"),
        "classes",
    )
    source.teacher, source.img_size = teacher, teacher.config["input_size"][-1]
    config_sha = files.fingerprint(args_file.load_yaml(run_dir / "args.yaml"))
    source.parents = {"teacher": str(run_dir.resolve()), "args_sha256": config_sha}
    return source


def _from_data(
    options: TrainStudentConfig,
    data: Any,
    val_fraction: float | None,
    recipe: dict[str, Any] | None,
    text: str,
) -> Source:
    specs = session.absolute_specs(data)
    fraction = 0.1 if val_fraction is None else val_fraction
    dataset = open_dataset(specs, fraction)
    chosen = session.resolve_recipe(options, recipe, dataset.chiral)
    if chosen.bbox_crop:
        dataset = with_boxes(dataset)
    return Source(
        dataset=dataset,
        specs=specs,
        val_fraction=fraction,
        recipe=chosen,
        view_seed=options.view_seed or 0,
        num_views=options.views or options.epochs,
        block_size=options.shard_size,
        img_size=None,
        short_side=options.image_store_side,
        text=text,
        parents={},
    )


def check_live_size(source: Source, size: int) -> None:
    """A live teacher sees the student's pixels, so both must have one size."""
    if source.teacher is not None and size != source.img_size:
        raise FgkdError(
            f"the live teacher takes {source.img_size} px and the student {size} px",
            f"--img-size {source.img_size}, or distil from a cache, which allows two sizes",
        )


def val_targets(source: Source, options: Any, device: torch.device) -> torch.Tensor | None:
    """The teacher's clean logits of the val split [N, K], stored or asked for once; or None."""
    if source.cache is not None:
        stored = source.cache.val_logits()
        return None if stored is None else torch.from_numpy(stored)
    if source.teacher is None or "val" not in source.dataset.splits:
        return None
    renderer = clean_renderer(source.dataset.splits["val"], source.teacher.config, False)
    source.teacher.to(device)
    _, logits_NK, _ = inference.evaluate(
        source.teacher,
        renderer,
        batch_size=options.eval_batch_size,
        workers=options.workers,
        device=device,
    )
    return logits_NK
