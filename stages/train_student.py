"""`fgkd train-student`: trains a student or a baseline."""

from __future__ import annotations

from fgkd.commands import train_student as library
from fgkd.config import TrainStudentConfig
from fgkd.files import is_url
from fgkd.training.train import TrainedRun

from . import console, results
from .next_step import after_student


def train_student(options: TrainStudentConfig) -> None:
    """Train a student, and print the next command."""
    console.require(options.model.model, "model", "deit_base_distilled_patch16_384.fb_in1k")
    console.check_json(options.run)
    check_options(options)
    progress = console.ConsoleProgress(resume=True)
    found = library.run(options, progress)
    results.show_training(found, options.run, progress, next_command)


def next_command(run: TrainedRun) -> str:
    """To compare the run with others on data that it has not seen."""
    return after_student(run.path, run.splits)


def check_options(options: TrainStudentConfig) -> None:
    """Refuse options on the command line that have no effect with the others."""
    targets = options.targets
    is_baseline = options.loss.distillation == "none"
    if is_baseline:
        of_loss = ["kd_loss", "temperature", "logit_standardization", "distill_loss_weight"]
        console.refuse_typed(of_loss, "with --distillation none, which learns labels alone")
    if is_baseline or not targets.teacher:
        of_teacher = ["dtype", "teacher_model", "teacher_model_kwargs", "class_map"]
        console.refuse_typed(of_teacher, "without a live teacher to distil from")
    if targets.order != "shard" and is_url(targets.cache or ""):
        console.refuse_typed(["order"], "on a URL, which is read shard by shard", "--order shard")
    elif targets.order != "shard":
        console.refuse_typed(["shard_buffer"], "without --order shard", "--order shard")
    is_planned = options.run.dry_run and options.data.data  # before the cache is written
    if targets.cache and not is_planned:
        console.refuse_typed(["shard_size"], "with --cache, which has blocks of its own")
