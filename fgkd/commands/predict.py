"""Predicting the classes of any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgkd import device as devices
from fgkd.commands import sources
from fgkd.config import SourceSpec
from fgkd.errors import MissingOption
from fgkd.evaluation import prediction
from fgkd.evaluation.prediction import Prediction


def predict(
    models: str | Path | Sequence[str | Path],
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    tta: str = "none",
    batch_size: int = 256,
    workers: int = 2,
    device: str = "auto",
    source: SourceSpec | None = None,
) -> list[Prediction]:
    """The classes that trained models see in image files and folders of them, most probable first.

    models: one or more, in any form that `load_classifier` takes; each model's predictions follow
    those of the one before. source: the architecture of a file of weights. Paths without an image
    come last, with the reason. Raises: as `load_classifier`; ModelError for a model without class
    names; OptionError.
    """
    names = [models] if isinstance(models, str | Path) else list(models)
    given = [images] if isinstance(images, str | Path) else list(images)
    if not names:
        raise MissingOption("RUN is required", option="RUN", suggestion="runs/student")
    hardware, _ = devices.set_up(device)
    loaded = [sources.load(name, source or SourceSpec()) for name in names]
    paths, missing = prediction.find_images(given)
    found = [
        one
        for name, model in zip(names, loaded, strict=True)
        for one in prediction.predict(
            model,
            paths,
            name=str(name),
            device=hardware,
            top=top,
            tta=tta,
            batch_size=batch_size,
            workers=workers,
        )
    ]
    return found + missing
