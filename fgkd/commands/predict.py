"""Predicting the classes of any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgkd import device as devices
from fgkd import distributed, files
from fgkd.commands import sources
from fgkd.commands.sources import Source, Sources
from fgkd.config import PredictConfig, build
from fgkd.errors import MissingOption, OptionError
from fgkd.evaluation import prediction
from fgkd.evaluation.prediction import Prediction
from fgkd.progress import SILENT, Progress


@devices.settings_kept()
def predict(
    models: Sources,
    images: files.PathLike | Sequence[files.PathLike],
    *,
    progress: Progress = SILENT,
    **options: object,
) -> list[Prediction]:
    """The classes that trained models see in images, the most probable first.

    models: one or more, each a `Classifier` or in any form that `load_classifier` takes; each one's
    predictions follow those of the one before. images: files, folders, whose images of any depth
    are taken, and patterns (`photos/**/*.jpg`). options: those of `fgkd predict` by name: `top_k`,
    `output`, `tta` and others. Paths without an image come last, with the reason. Raises: as
    `load_classifier`; NotLocal for an image's URL; ModelError for a model with a wrong number of
    class names; OptionError; WriteError.
    """
    spec = build(PredictConfig, options, "predict()")
    known = sources.given(models)
    with sources.borrowed(known):
        return run(spec, known, files.paths(images), progress)


def run(
    options: PredictConfig,
    models: Sequence[Source],
    images: Sequence[str | Path],
    progress: Progress = SILENT,
) -> list[Prediction]:
    """`predict` with its config."""
    if not models:
        raise MissingOption("RUN is required", option="RUN", suggestion="runs/student")
    if options.output and prediction.writer(options.output) is None:
        message = f"{options.output} ends neither in .csv nor in .jsonl"
        suggestion = f"{options.output}.csv"
        raise OptionError(message, option="output", value=options.output, suggestion=suggestion)
    files.claim_option(options.output, "output")
    sources.check(models, options.architecture)
    hardware, _ = devices.set_up(options.device)
    loaded = [sources.load(name, options.architecture) for name in models]
    paths, missing = prediction.find_images(images)
    found = []
    for name, model in zip(models, loaded, strict=True):
        found += prediction.predict(
            model,
            paths,
            name=sources.name_of(name),
            device=hardware,
            top_k=options.top_k,
            tta=options.tta,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=progress,
        )
    found += missing
    if options.output and distributed.rank() == 0:
        prediction.write(found, Path(options.output))
    return found
