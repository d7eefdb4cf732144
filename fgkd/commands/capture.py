"""Capture with a teacher in memory: any classifier's logits, written as a cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fgkd import config, device, files
from fgkd.commands import dry_run, sources
from fgkd.commands.cache_logits import CapturedCache, CaptureInputs, write_cache
from fgkd.commands.sources import Sources
from fgkd.config import CacheLogitsConfig, DataSpec
from fgkd.data import OPTIONS, Dataset, open_chosen, specs_of
from fgkd.errors import MissingOption, UnusedOption
from fgkd.estimate.capture import CaptureEstimate
from fgkd.models import Classifier
from fgkd.progress import SILENT, Progress

TAKEN = ("teacher", "data")  # options of `cache_logits` that are arguments here


@device.settings_kept()
def capture(
    teacher: Sources,
    *,
    dataset: Dataset | files.PathLike | Sequence[files.PathLike],
    output: files.PathLike,
    views: int,
    progress: Progress = SILENT,
    **options: Any,
) -> CapturedCache | CaptureEstimate:
    """Write a cache of a teacher's logits for `views` augmented views of every training image.

    teacher: a `Classifier`, or a source of `load_classifier`; several are averaged. For a model
    that is not timm's, or a function, see `as_classifier`. Its classes must be the dataset's, in
    order. dataset: of `open_dataset`, or its specs, which the cache records. options: the others of
    `fgkd cache-logits` by name, such as `encoding`, `format`, `batch_size`, `dtype`, `aug_recipe`.

    The same call continues a cache that was interrupted; with more `views` it adds them. A teacher
    in memory is hashed as it is now, and left as it was. Raises: DataMismatch for other classes, or
    a cache of another teacher, other images or other views.
    """
    started = time.monotonic()
    for name in TAKEN:
        if name in options:
            raise TypeError(f"capture() got an unexpected keyword argument {name!r}")
    given = options | {"views": views, "output": files.text_of(output)}
    spec = config.of_call(CacheLogitsConfig, given, "capture()")
    dry_run.check_json(spec.capture)
    several = sources.given(teacher)
    if not several:
        raise MissingOption("teacher is required", option="teacher", suggestion="runs/teacher")
    sources.check(several, spec.source)
    known = [sources.load(one, spec.source) for one in several]
    names = [o.architecture if isinstance(o, Classifier) else str(o) for o in several]
    if isinstance(dataset, Dataset):
        _refuse_reading(spec.data)
    else:
        data = replace(spec.data, data=tuple(files.paths(dataset)))
        dataset = open_chosen(data, specs_of(data))
    hardware, device_line = device.set_up(spec.capture.device)
    for one in several:
        if isinstance(one, Classifier):
            one.rehash()
    inputs = CaptureInputs(known, names, dataset, list(dataset.specs))
    with sources.borrowed(several):
        return write_cache(inputs, spec, hardware, device_line, started, progress)


def _refuse_reading(spec: DataSpec) -> None:
    """Refuse options of how data are read where a dataset is open already."""
    for name in ("val_fraction", *OPTIONS):
        if (value := getattr(spec, name, None)) is not None:
            message = f"{name} has no effect on a dataset that is open"
            raise UnusedOption(message, option=name, value=value, advice="open it with the option")
