"""`fgkd evaluate`: a table of scored runs; or predictions, or exported models."""

from __future__ import annotations

import json
from pathlib import Path

from fgkd import distributed, files
from fgkd.commands import evaluate as library
from fgkd.commands import sources
from fgkd.commands.export import export
from fgkd.commands.predict import predict
from fgkd.config import EvaluateConfig
from fgkd.errors import OptionError, UnreadableImages
from fgkd.report import tables

from . import console


def evaluate(options: EvaluateConfig, runs: list[str]) -> None:
    """Print the table of the runs, or what was asked for instead."""
    console.require(runs, "RUN", "fgkd evaluate runs/student --split test")
    check_options(options)
    if options.export:
        show_exports(options, runs)
    elif options.predict:
        show_predictions(options, runs)
    else:
        show_results(options, runs)


def check_options(options: EvaluateConfig) -> None:
    """Refuse options that have no effect with the others, and a --json that cannot be written."""
    if options.export and options.predict:
        message = "--export and --predict exclude each other"
        raise OptionError(message, option="predict", value=options.predict)
    if options.export:
        unused, where = (
            ["json", "report", "tta", "split", "data", "top", "class_map"],
            "with --export",
        )
    elif options.predict:
        unused, where = (
            ["report", "split", "data", "export_dir", "overwrite", "class_map"],
            "with --predict",
        )
    else:
        unused, where = ["top", "export_dir", "overwrite"], "without --predict or --export"
    console.refuse_unused(options, unused, where, "run evaluate once for each")
    files.claim_option(options.json, "json")


def show_results(options: EvaluateConfig, runs: list[str]) -> None:
    """Print one table of all runs."""
    progress = console.ConsoleProgress()
    found = library.run(options, runs, progress)
    progress.close()
    for line in found.lines():
        console.echo(line)
    if options.json:
        console.echo(f"written to {options.json}")
    if found.report:
        console.echo(f"report: {found.report}")


def show_predictions(options: EvaluateConfig, runs: list[str]) -> None:
    """Print each run's classes of each image; exit 1, after that, if an image was unreadable."""
    sources.check(runs, options.source)
    found = predict(
        runs,
        options.predict,
        top=options.top,
        tta=options.tta,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        source=options.source,
    )
    console.echo("\n" + tables.predictions_table(found, many_models=len(runs) > 1))
    if options.json and distributed.rank() == 0:
        lines = [json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found]
        files.write_text(Path(options.json), "".join(lines))
        console.echo(f"written to {options.json}")
    failed = list(dict.fromkeys(one.image for one in found if one.error))
    if failed:
        num = len({one.image for one in found})
        message = f"{len(failed)} of {num} images could not be read"
        raise UnreadableImages(message, paths=failed)


def show_exports(options: EvaluateConfig, runs: list[str]) -> None:
    """Write each run's model as a file, and print its path."""
    assert options.export
    if options.export_dir and len(runs) > 1:
        message = f"--export-dir is for one RUN, not {len(runs)}"
        raise OptionError(message, option="export_dir", value=options.export_dir)
    sources.check(runs, options.source)
    for run in runs:
        found = export(
            run,
            format=options.export,
            output=options.export_dir or None,
            overwrite=options.overwrite,
            source=options.source,
        )
        console.echo(
            f"{found.path}: {found.architecture}, {found.num_classes} classes, "
            f"{files.human_bytes(found.num_bytes)}; logits within {found.difference:.0e} of torch's"
        )
