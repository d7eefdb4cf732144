"""`fgkd train-teacher`: finetunes a teacher."""

from __future__ import annotations

from fgkd.commands import train_teacher as library
from fgkd.config import TrainTeacherConfig

from . import console, results
from .next_step import after_teacher


def train_teacher(options: TrainTeacherConfig) -> None:
    """Finetune a teacher, and print the next command."""
    library.require_options(options)
    progress = console.ConsoleProgress(resume=True)
    found = library.run(options, progress)
    results.show_training(found, progress, lambda run: after_teacher(run.path))
