"""Printing what the training commands and the dry runs return."""

from __future__ import annotations

from collections.abc import Callable

from fgkd.config import RunSpec
from fgkd.estimate.capture import CaptureEstimate
from fgkd.estimate.training import TrainingEstimate
from fgkd.training.train import TrainedRun

from . import console


def show_training(
    found: TrainedRun | TrainingEstimate,
    spec: RunSpec,
    progress: console.ConsoleProgress,
    next_command: Callable[[TrainedRun], str],
) -> None:
    """An estimate, or the next command. Raises: Interrupted for a run that was stopped."""
    progress.close()
    if isinstance(found, TrainingEstimate):
        for line in found.banner:
            console.echo(line)
        show_estimate(found, spec.json)
    elif not found.finished:
        raise progress.stop.interrupted("saved")
    else:
        console.next_step(next_command(found))


def show_estimate(found: TrainingEstimate | CaptureEstimate, json: str | None) -> None:
    """The lines of an estimate; its JSON where asked."""
    for line in found.lines():
        console.echo(line)
    console.write_json(json, found.to_json())
