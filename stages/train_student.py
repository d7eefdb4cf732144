"""`fgkd train-student`: trains a student or a baseline."""

from __future__ import annotations

from fgkd.commands import train_student as library
from fgkd.config import TrainStudentConfig
from fgkd.training.train import TrainedRun

from . import console, results
from .next_step import after_student


def train_student(options: TrainStudentConfig) -> None:
    """Train a student, and print the next command."""
    console.require(options.model.model, "model", "deit_base_distilled_patch16_384.fb_in1k")
    progress = console.ConsoleProgress(resume=True)
    found = library.run(options, progress)
    results.show_training(found, progress, next_command)


def next_command(run: TrainedRun) -> str:
    """To compare the run with others on data that it has not seen."""
    return after_student(run.path, run.splits)
