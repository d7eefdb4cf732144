"""Printing what the training commands and the dry runs return."""

from __future__ import annotations

from collections.abc import Callable

from fgkd.estimate.capture import CaptureEstimate
from fgkd.estimate.training import TrainingEstimate
from fgkd.training.train import TrainedRun

from . import console


def show_training(
    found: TrainedRun | TrainingEstimate,
    progress: console.ConsoleProgress,
    next_command: Callable[[TrainedRun], str],
) -> None:
    """An estimate, or the next command. Raises: Interrupted for a run that was stopped."""
    progress.close()
    if isinstance(found, TrainingEstimate):
        for line in found.banner:
            console.echo(line)
        show_estimate(found)
    elif not found.finished:
        raise progress.stop.interrupted("saved")
    else:
        console.next_step(next_command(found))


def show_estimate(found: TrainingEstimate | CaptureEstimate) -> None:
    """The lines of an estimate."""
    for line in found.lines():
        console.echo(line)
