"""Capture with a teacher in memory: any classifier's logits, written as a cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgkd import config, device
from fgkd.commands.cache_logits import CapturedCache, CaptureInputs, write_cache
from fgkd.config import CacheLogitsConfig
from fgkd.data import Dataset, open_dataset
from fgkd.distillation.targets import DEFAULT_VAL_FRACTION
from fgkd.errors import MissingOption
from fgkd.estimate.capture import CaptureEstimate
from fgkd.models import Classifier
from fgkd.models.loading import load_classifier
from fgkd.progress import SILENT, Progress

TAKEN = ("teacher", "data")  # options of `cache_logits` that are arguments here


def capture(
    teacher: Classifier | str | Path | Sequence[Classifier | str | Path],
    *,
    dataset: Dataset | str | Sequence[str],
    output: str | Path,
    views: int,
    progress: Progress = SILENT,
    **options: Any,
) -> CapturedCache | CaptureEstimate:
    """Write a cache of a teacher's logits for `views` augmented views of every training image.

    teacher: a `Classifier`, or a source of `load_classifier`; several are averaged. For a model
    that is not timm's, or a function, see `as_classifier`. Its classes must be the dataset's, in
    order. dataset: of `open_dataset`, or its specs, which the cache records. options: the others of
    `fgkd cache-logits` by name, such as `encoding`, `format`, `batch_size`, `dtype`, `aug_recipe`.

    The same call continues a cache that was interrupted; with more `views` it adds them. Raises:
    DataMismatch for other classes, or a cache of another teacher, other images or other views.
    """
    started = time.monotonic()
    for name in TAKEN:
        if name in options:
            raise TypeError(f"capture() got an unexpected keyword argument {name!r}")
    given = options | {"views": views, "output": str(output)}
    spec = config.build(CacheLogitsConfig, given, "capture()")
    is_several = isinstance(teacher, Sequence) and not isinstance(teacher, str)
    several: Any = teacher if is_several else [teacher]
    if not several:
        raise MissingOption("teacher is required", option="teacher", suggestion="runs/teacher")
    known = [one if isinstance(one, Classifier) else load_classifier(one) for one in several]
    names = [o.architecture if isinstance(o, Classifier) else str(o) for o in several]
    if not isinstance(dataset, Dataset):
        fraction = spec.data.val_fraction
        dataset = open_dataset(dataset, DEFAULT_VAL_FRACTION if fraction is None else fraction)
    hardware, device_line = device.set_up(spec.capture.device)
    inputs = CaptureInputs(known, names, dataset, list(dataset.specs), dataset.val_fraction)
    return write_cache(inputs, spec, hardware, device_line, started, progress)
