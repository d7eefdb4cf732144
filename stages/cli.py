"""The `fgkd` command. The module of a command is imported when it runs, so --help is quick."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from fgkd import device, distributed, files
from fgkd.config import (
    CacheLogitsConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    PredictConfig,
    TrainStudentConfig,
    TrainTeacherConfig,
)
from fgkd.distributed import failures
from fgkd.errors import FgkdError

from . import console, recipe_files, remedies
from .options import command

TOP = """Train many students from one expensive teacher, whose logits are cached once.

\b
  fgkd train-teacher --data icons --model convnext_atto --output runs/t
  fgkd cache-logits --teacher runs/t --views 8 --output runs/cache
  fgkd train-student --cache runs/cache --model deit_tiny_patch16_224 \\
      --output runs/s
  fgkd evaluate runs/t runs/s --split test

Each command prints the next one. An error message ends with something to try.
"""

TEACHER = """Finetune a teacher.

\b
  fgkd train-teacher --data cub:/data/CUB_200_2011 --pretrained \\
      --model convnext_base.fb_in22k_ft_in1k --output runs/teacher

Next: fgkd cache-logits --teacher runs/teacher --views 30 --output runs/cache
"""

CACHE = """Cache a teacher's logits of augmented views.

\b
  fgkd cache-logits --teacher runs/teacher --views 30 --output runs/cache

A cache holds the logits of every view of every training image. Data, classes, image size,
normalisation and view recipe are the teacher's own. After a crash or a signal the same command
continues. More --views adds views to it, and --extend images.

Next: fgkd train-student --cache runs/cache --model NAME --output runs/student
"""

STUDENT = """Train a student from a cache, with no teacher in memory.

\b
  fgkd train-student --cache runs/cache --pretrained --output runs/student \\
      --model deit_base_distilled_patch16_384

\b
Baseline, on labels alone:   --distillation none --data NAME:PATH
With a live teacher:         --teacher runs/teacher --views 30

Next: fgkd evaluate runs/teacher runs/student --split test
"""

EVALUATE = """Score runs on a split and print one table.

\b
  fgkd evaluate runs/teacher runs/student --split test --json results.json
  fgkd evaluate runs/teacher runs/baseline runs/student --report runs/report

With a teacher among the runs, the table adds agreement with it and KL to it. Accuracies have 95 %
bootstrap intervals, and pairs of runs McNemar's test. --report writes a single index.html with
curves, classes, confusions, calibration and example images.

A RUN is a run folder, local-dir:PATH, hf-hub:NAME, transformers:NAME, timm:NAME,
torchvision:NAME or a file of weights (with --teacher-model).
"""

PREDICT = """Predict the classes of any images.

\b
  fgkd predict runs/student bird.jpg photos/ 'more/*/*.png' --top-k 3
  fgkd predict runs/student photos/ --output classes.csv
  find photos -newer done | fgkd predict runs/student - --output new.jsonl

A PATH is a file, a folder (with those below it), a pattern, or - for paths on standard input, one
per line. Images that cannot be read are listed; then the exit code is 1. RUN: as for evaluate.
"""

EXPORT = """Write a model as one file for another runtime.

\b
  fgkd export runs/student --format onnx
  fgkd export hf-hub:timm/resnet50.a1_in1k --format pt2 --output exported

The file is RUN/export/model.onnx (or .torchscript, .pt2). It maps float32 images [batch, 3, H, W],
of any batch size, to logits, which are compared with torch's. Class names and the mean and std that
normalise the images are in its metadata. RUN: as for evaluate.
"""

INSPECT = """Describe a cache, and verify its content.

\b
  fgkd inspect runs/cache
  fgkd inspect runs/cache --verify --teacher runs/teacher
  fgkd inspect runs/cache --gallery runs/gallery

--verify checks every shard's sha256, renders a sample of views again and compares pixel digests,
and with --teacher compares the targets. The exit code is 1 if anything is wrong. --gallery writes
a single index.html with views as the student will see them, the teacher's predictions, and labels
that may be wrong.
"""


def _stage(name: str, function: str) -> Callable[..., None]:
    def run(*args: Any) -> None:
        import importlib

        getattr(importlib.import_module(f".{name}", __package__), function)(*args)

    return run


class InOrder(click.Group):
    """A group that lists its commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrder,
    help=TOP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="fgkd", message="%(prog)s %(version)s")
@click.pass_context
def fgkd(context: click.Context) -> None:
    """Root of the commands."""
    context.meta["started"] = time.monotonic()


for _name, _cls, _help in (
    ("train_teacher", TrainTeacherConfig, TEACHER),
    ("cache_logits", CacheLogitsConfig, CACHE),
    ("train_student", TrainStudentConfig, STUDENT),
):
    fgkd.add_command(command(_cls, _stage(_name, _name), _name.replace("_", "-"), _help))
_evaluate, _inspect = _stage("evaluate", "evaluate"), _stage("inspect_cache", "inspect")
fgkd.add_command(command(EvaluateConfig, _evaluate, "evaluate", EVALUATE, "runs", "RUN..."))
fgkd.add_command(command(InspectConfig, _inspect, "inspect", INSPECT, "caches", "CACHE..."))
_predict, _export = _stage("predict", "predict"), _stage("export", "export")
fgkd.add_command(command(PredictConfig, _predict, "predict", PREDICT, "words", "RUN PATH..."))
fgkd.add_command(command(ExportConfig, _export, "export", EXPORT, "runs", "RUN..."))


@fgkd.command("recipes", short_help="List the recipes that -c takes by name.")
@click.argument("name", required=False)
def _recipes(name: str | None) -> None:
    """List the recipes that -c takes by name, or print the one called NAME."""
    recipe_files.show(name)


def main(argv: list[str] | None = None) -> None:
    """Run a command; exit 0, 1 (an error, explained), 2 (usage) or 128 + signal (work saved)."""
    # torch and timm create 400,000 lasting objects. By default Python searches them for garbage
    # hundreds of times, a third of every start, and once more at exit, another second.
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    show_warnings()
    try:
        fgkd.main(args=argv, prog_name="fgkd", standalone_mode=False)
        failures.leave()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        _stop_at_once(error)
    except Exception as error:
        _end_if_interrupted(error)
        _fail(error)


def show_warnings() -> None:
    """Print the library's log of warnings, such as a download that is tried again, to stderr."""
    import logging

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            start = console.paint("warning: ", "yellow", sys.stderr)
            click.echo(start + record.getMessage(), err=True)

    library = logging.getLogger("fgkd")
    if not library.handlers:
        library.addHandler(Echo(logging.WARNING))


def _fail(error: Exception) -> None:
    """Exit with an explained error, or with the traceback of a bug; one rank reports it."""
    known = error if isinstance(error, FgkdError) else device.explain(error)
    known = known or failures.lost_worker(error) or failures.lost(error) or files.explain(error)
    is_first = failures.first_to_fail()
    if known and is_first:
        start = console.paint("error: ", "bright_red", sys.stderr)
        click.echo(start + remedies.explain(known), err=True)
    failures.leave(failed=True)
    if not known or os.environ.get("FGKD_DEBUG"):
        raise error
    sys.exit(1)


def _stop_at_once(error: BaseException) -> None:
    from .signals import StoppedAtOnce

    error = error.__cause__ or error  # click makes an Abort of every KeyboardInterrupt
    command = f". To continue:\n  {error.command}" if isinstance(error, StoppedAtOnce) else ""
    if distributed.rank() == 0:
        click.echo(f"stopped{command}", err=True)
    sys.exit(128 + (error.number if isinstance(error, StoppedAtOnce) else 2))


def _end_if_interrupted(error: Exception) -> None:
    from .signals import Interrupted

    if isinstance(error, Interrupted):
        if distributed.rank() == 0:
            click.echo(f"{error.kept}. To continue:\n  {error.command}")
        failures.leave()
        sys.exit(128 + error.number)
