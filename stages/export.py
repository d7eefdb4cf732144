"""`fgkd export`: a model as one file for another runtime."""

from __future__ import annotations

from fgkd import files
from fgkd.commands import export as library
from fgkd.config import ExportConfig
from fgkd.errors import OptionError

from . import console
from .next_step import after_export


def export(options: ExportConfig, runs: list[str]) -> None:
    """Write each run's model as a file, and print its path."""
    console.require(runs, "RUN", "fgkd export runs/student --format onnx")
    if options.output and len(runs) > 1:
        message = f"--output is for one RUN, not {len(runs)}"
        raise OptionError(message, option="output", value=options.output)
    for run in runs:
        found = library.run(options, run)
        console.echo(
            f"{found.path}: {found.architecture}, {found.num_classes} classes, "
            f"{files.human_bytes(found.num_bytes)}; logits within {found.difference:.0e} of torch's"
        )
    console.next_step(after_export(runs[-1]))
