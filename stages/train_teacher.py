"""`fgkd train-teacher`: finetunes a teacher."""

from __future__ import annotations

from fgkd.commands import train_teacher as library
from fgkd.config import TrainTeacherConfig
from fgkd.errors import quoted
from fgkd.training.train import TrainedRun

from . import console, results


def train_teacher(options: TrainTeacherConfig) -> None:
    """Finetune a teacher, and print the next command."""
    library.require_options(options)
    console.check_json(options.run)
    progress = console.ConsoleProgress(resume=True)
    found = library.run(options, progress)
    results.show_training(found, options.run, progress, next_command)


def next_command(run: TrainedRun) -> str:
    """To write the teacher's logits."""
    return f"fgkd cache-logits --teacher {quoted(run.path)} --views 8 --output CACHE"
