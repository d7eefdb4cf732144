"""Exporting a trained model as one file for other runtimes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fgkd import distributed, files
from fgkd.commands import sources
from fgkd.config import SourceSpec
from fgkd.errors import MissingOption, OutputExists, UnknownName
from fgkd.models import export as formats
from fgkd.models.loading import LOCAL_DIR, is_checkpoint, is_remote


@dataclass(frozen=True)
class ExportedModel:
    """A model in a file. difference: the largest one between a logit of the file and torch's."""

    path: Path
    architecture: str
    num_classes: int
    num_bytes: int
    difference: float


def export(
    run: str | Path,
    *,
    format: str,
    output: str | Path | None = None,
    overwrite: bool = False,
    source: SourceSpec | None = None,
) -> ExportedModel:
    """Write a model as `model.FORMAT` into a folder, and check its logits against torch's.

    run: in any form that `load_classifier` takes. format: "onnx", "torchscript" or "pt2". output:
    the folder; None: RUN/export, or `export` beside a file of weights. source: the architecture of
    a file of weights. overwrite: rename a file that exists. Raises: UnknownName, OutputExists,
    WriteError, MissingPackage; MissingOption for fetched weights without `output`; ExportError for
    a model that the format cannot express.
    """
    if format not in formats.FORMATS:
        known = list(formats.FORMATS)
        message = f"format {format!r} is not one of {', '.join(known)}"
        raise UnknownName(message, option="export", value=format, known=known)
    path = Path(output or _default_folder(str(run))) / f"model.{format}"
    model = sources.load(run, source or SourceSpec())
    if distributed.rank() == 0:
        _claim(path, overwrite)
    data, worst = formats.convert(model, format, str(run))
    if distributed.rank() == 0:
        new = path.with_name(f"{path.name}.new")
        files.write_bytes(new, data)
        if path.exists():  # only once the new file is complete
            os.replace(path, files.free_name(path))
        os.replace(new, path)
    return ExportedModel(path, model.architecture, model.num_classes, len(data), worst)


def _default_folder(run: str) -> Path:
    """The folder of a model that is on disk. Raises: MissingOption for one that is fetched."""
    if is_remote(run):
        message = f"{run} has no folder of its own to export to"
        raise MissingOption(message, option="export_dir", suggestion="runs/export")
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
