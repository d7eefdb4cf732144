"""`fgkd train-teacher`: finetunes a teacher."""

from __future__ import annotations

from fgkd.commands import train_teacher as library
from fgkd.config import TrainTeacherConfig
from fgkd.errors import quoted

from . import console, results


def train_teacher(options: TrainTeacherConfig) -> None:
    """Finetune a teacher, and print the next command."""
    library.require_options(options)
    console.check_json(options.run)
    progress = console.ConsoleProgress(resume=True)
    found = library.run(options, progress)
    output = quoted(options.run.output)
    next_command = f"fgkd cache-logits --teacher {output} --views 8 --output CACHE"
    results.show_training(found, options.run, progress, next_command)
