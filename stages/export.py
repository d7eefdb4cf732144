"""`evaluate --export`: a run's model as one file for other runtimes."""

from __future__ import annotations

import os
from pathlib import Path

from fgkd import distributed, files, models
from fgkd.config import EvaluateConfig
from fgkd.errors import FgkdError
from fgkd.models import export as formats

from . import session


def export(options: EvaluateConfig, runs: list[str]) -> None:
    """Write RUN/export/model.FORMAT (or into --export-dir) and say how it was checked."""
    assert options.export
    if options.export_dir and len(runs) > 1:
        raise FgkdError(
            f"--export-dir is for one RUN, not {len(runs)}",
            f"fgkd evaluate {runs[0]} --export {options.export} --export-dir {options.export_dir}",
        )
    if distributed.rank() != 0:
        return
    for run in runs:
        folder = session.model_folder(run)
        path = Path(options.export_dir or Path(run) / "export") / f"model.{options.export}"
        model = models.load(folder)
        try:
            files.claim(path)
        except OSError as error:
            raise files.write_error(path, error) from error
        if path.exists() and not options.overwrite:
            raise FgkdError(
                f"{path} exists",
                f"--overwrite to move it to {files.aside(path)}, or another --export-dir",
            )
        names = session.class_names(model.config, folder)
        data, worst = formats.convert(model, options.export, names)
        new = path.with_name(f"{path.name}.new")
        files.write_bytes(new, data)
        if path.exists():  # not before the new one is whole on this disk
            os.replace(path, files.aside(path))
        os.replace(new, path)
        session.echo(
            f"{path}: {model.config['architecture']}, {len(names)} classes, "
            f"{files.human_bytes(len(data))}; logits within {worst:.0e} of torch's"
        )
