"""`fgkd predict`: a model's classes of any images."""

from __future__ import annotations

import sys

from fgkd.commands import predict as library
from fgkd.config import PredictConfig
from fgkd.errors import UnreadableImages
from fgkd.report import tables

from . import console
from .next_step import after_prediction


def predict(options: PredictConfig, words: list[str]) -> None:
    """Print the classes of each image; exit 1, after that, if an image was unreadable."""
    example = "fgkd predict runs/student photos/"
    console.require(words, "RUN", example)
    run, *paths = words
    console.require(paths, "PATH", example)
    given = [line for path in paths for line in (_listed() if path == "-" else [path])]
    progress = console.ConsoleProgress()
    found = library.run(options, [run], given, progress)
    progress.close()
    if options.output:
        console.echo(f"{len(found):,} images written to {options.output}")
    else:
        console.echo(tables.predictions_table(found, many_models=False))
    failed = [one for one in found if one.error]
    if failed:
        if options.output:
            console.echo(tables.predictions_table(failed, many_models=False))
        message = f"{len(failed)} of {len(found)} images could not be read"
        raise UnreadableImages(message, paths=[one.image for one in failed])
    if options.output or sys.stdout.isatty():  # a table in a pipe is for another program
        console.next_step(after_prediction(run))


def _listed() -> list[str]:
    """The paths on standard input, one per line."""
    return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
