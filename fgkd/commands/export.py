"""Exporting a trained model as one file for other runtimes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fgkd import distributed, files
from fgkd.commands import sources
from fgkd.commands.sources import Source
from fgkd.config import ExportConfig, build
from fgkd.errors import MissingOption, OutputExists
from fgkd.models import Classifier
from fgkd.models import export as formats
from fgkd.models.loading import LOCAL_DIR, is_checkpoint, is_remote, located


@dataclass(frozen=True)
class ExportedModel:
    """A model in a file. difference: the largest one between a logit of the file and torch's."""

    path: Path
    architecture: str
    num_classes: int
    num_bytes: int
    difference: float

    def __fspath__(self) -> str:
        return str(self.path)


def export(source: files.PathLike | Classifier, **options: object) -> ExportedModel:
    """Write a model as `model.FORMAT` into a folder, and check its logits against torch's.

    source: a `Classifier`, or in any form that `load_classifier` takes. options: those of
    `fgkd export` by name: `format` ("onnx", "torchscript" or "pt2"), `output` (the folder; by
    default RUN/export, or `export` next to a file of weights), `overwrite` (rename a file that
    exists) and others. Raises: OptionError, OutputExists, WriteError, MissingPackage; MissingOption
    without `output` for fetched weights and a `Classifier`; ExportError for a model that the format
    cannot express.
    """
    return run(build(ExportConfig, options, "export()"), sources.given_one(source))


def run(options: ExportConfig, source: Source) -> ExportedModel:
    """`export` with its config."""
    format = options.format
    if not format:
        names = ", ".join(formats.FORMATS)
        raise MissingOption(f"format is required: {names}", option="format", suggestion="onnx")
    sources.check([source], options.architecture)
    path = Path(options.output or _default_folder(source)) / f"model.{format}"
    model = sources.load(source, options.architecture)
    if distributed.rank() == 0:
        _claim(path, options.overwrite)
    data, worst = formats.convert(model, format, sources.name_of(source))
    if distributed.rank() == 0:
        new = path.with_name(f"{path.name}.new")
        files.write_bytes(new, data)
        if path.exists():  # only once the new file is complete
            os.replace(path, files.free_name(path))
        os.replace(new, path)
    return ExportedModel(path, model.architecture, model.num_classes, len(data), worst)


def _default_folder(source: Source) -> Path:
    """The folder of a model that is on disk. Raises: MissingOption for another."""
    if isinstance(source, Classifier) or is_remote(run := located(source)):
        message = f"{sources.name_of(source)} has no folder of its own to export to"
        raise MissingOption(message, option="output", suggestion="runs/export")
    path = Path(run.removeprefix(LOCAL_DIR))
    return (path.parent if is_checkpoint(run) else path) / "export"


def _claim(path: Path, overwrite: bool) -> None:
    """Raise OutputExists or WriteError if the file cannot be written."""
    try:
        files.claim(path)
    except OSError as error:
        raise files.write_error(path, error) from error
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists", path=path, renamed=files.free_name(path))
