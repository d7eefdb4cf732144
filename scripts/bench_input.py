"""Images to batches, against timm's loader, the bare decoder, and Pillow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import (
    LIGHT,
    Plan,
    Row,
    decoding,
    interleave,
    ratio,
    samples_of,
    write_cache,
)
from torch.utils.data import DataLoader

from fgkd.cache.reader import Reader
from fgkd.data import Dataset, Samples
from fgkd.data.image_store import ImageStore
from fgkd.loading import schedule
from fgkd.loading.cached_views import CachedViews
from fgkd.loading.train_loader import TrainLoader
from fgkd.views import recipes
from fgkd.views.view_set import ViewSet

BATCH, SIZE, STORE_SIDE, CLASSES = 64, 224, 256, 100


def per_image(batches: Iterable[Any], skip: int, count: int) -> float:
    """Seconds per image in the steady state: the workers' start and first batches do not count."""
    stream = iter(batches)
    for _ in range(skip):
        next(stream)
    clock = time.perf_counter()
    for _ in range(count):
        next(stream)
    return (time.perf_counter() - clock) / count / BATCH


def ours(
    samples: Samples, recipe: recipes.ViewRecipe, workers: int, store: ImageStore | None = None
) -> Iterable[Any]:
    """Batches of the project's own loader, from the files or from an image store."""
    loader = TrainLoader(
        ViewSet(samples, recipe, 0, SIZE, len(samples), store.short_side if store else None),
        schedule.Schedule(0, len(samples), BATCH, 1, 1),
        workers=workers,
        store=store,
    )
    return loader.batches(0)


def timms(samples: Samples, recipe: recipes.ViewRecipe, workers: int, folder: str) -> Iterable[Any]:
    """uint8 batches of timm's loader: its prefetcher's transforms and fast_collate."""
    from PIL import ImageOps
    from timm.data import ImageDataset, auto_augment, create_loader

    # timm asks for 0 bits at times, which Pillow refuses since version 13.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **how: ImageOps.posterize(
        image, max(1, min(8, bits))
    )
    dataset = ImageDataset(folder)
    dataset.reader.samples = [(path, 0) for path in samples.paths]
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.hflip,
        color_jitter=0.0,
        auto_augment="rand-m9-mstd0.5-inc1" if recipe.rand_aug_ops else None,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
        pin_memory=False,
    )
    return loader.loader  # before the prefetcher's conversion to float


def from_cache(samples: Samples, cache: Path, workers: int, is_own: bool) -> Iterable[Any]:
    """Batches with targets: of the project's own loader, or of a DataLoader over CachedViews."""
    reader = Reader(cache)
    dataset = Dataset("made up", reader.classes, ["made up"], {"train": samples}, val_fraction=0.0)
    views = CachedViews(reader, dataset)
    if not is_own:
        return DataLoader(views, BATCH, shuffle=True, num_workers=workers)
    steps = schedule.Schedule(0, len(samples), BATCH, 1, 1)
    return TrainLoader(views.view_set, steps, workers=workers, cache=reader).batches(0)


def rows(plan: Plan) -> list[Row]:
    """The input pipeline's lines of the table."""
    skip, count = plan.pick(3, 1), plan.pick(16, 1)
    folder = plan.folder / "photos"
    num = BATCH * (skip + count + 2 * plan.workers)
    samples = samples_of(folder / "a", num, plan.pick(64, 4))
    everything = recipes.ViewRecipe.from_dict(
        recipes.RECIPES["randaug"].to_dict() | {"erasing": 0.0}
    )

    def bare() -> float:
        return per_image(decoding(samples, plan.workers, BATCH), skip, count)

    def measure(make: Callable[..., Iterable[Any]], *args: Any) -> Callable[[], float]:
        return lambda: per_image(make(samples, *args), skip, count)

    store = ImageStore(plan.folder / "store", samples, STORE_SIDE)
    store.build(plan.workers)
    measures = {"bare": bare, "stored light": measure(ours, LIGHT, plan.workers, store)}
    for name, recipe in (("light", LIGHT), ("randaug", everything)):
        measures[f"ours {name}"] = measure(ours, recipe, plan.workers)
        measures[f"timm {name}"] = measure(timms, recipe, plan.workers, str(folder))
    cache = write_cache(plan.folder / "cached", samples, 1, CLASSES, SIZE, digests=True)
    for name, is_own in (("own loader", True), ("CachedViews", False)):
        measures[name] = measure(from_cache, cache, plan.workers, is_own)
    seconds = interleave(measures, plan.pick(7, 1))
    rate = {name: float(1 / np.median(values)) for name, values in seconds.items()}
    value, spread = ratio(seconds["timm light"], seconds["ours light"])
    of_bare, bare_spread = ratio(seconds["bare"], seconds["ours light"])
    stored, stored_spread = ratio(seconds["timm light"], seconds["stored light"])
    all_ops, ops_spread = ratio(seconds["timm randaug"], seconds["ours randaug"])
    cached, cached_spread = ratio(seconds["own loader"], seconds["CachedViews"])
    what, against = "input pipeline, 500x375 JPEG to uint8 at 224", "timm create_loader, uint8"
    return [
        Row(
            *(what, against, value, 1.8, False, spread),
            f"{rate['ours light']:,.0f} images/s against {rate['timm light']:,.0f}, "
            f"{plan.workers} workers",
        ),
        Row(
            *(what, "libjpeg-turbo alone", of_bare, 0.5, False, bare_spread),
            f"{rate['bare']:,.0f} images/s decoded",
        ),
        Row(
            *(f"{what}, from the image store", against, stored, 4.0, False, stored_spread),
            f"{rate['stored light']:,.0f} images/s, shorter side {STORE_SIDE} px, "
            f"{store.pixels_bytes / len(samples) / 1e3:,.0f} kB per image",
        ),
        Row(
            *("DataLoader over fgkd.CachedViews, images and targets", "the project's own loader"),
            *(cached, 0.9, False, cached_spread),
            f"{rate['CachedViews']:,.0f} images/s against {rate['own loader']:,.0f}",
        ),
        Row(
            *(f"{what}, RandAugment too", against, all_ops, None, False, ops_spread),
            "both move pixels with Pillow's bicubic affine",
        ),
    ]
