"""`fgkd evaluate`: a table of scored runs."""

from __future__ import annotations

from fgkd.commands import evaluate as library
from fgkd.config import EvaluateConfig
from fgkd.report.results_page import pick_focus

from . import console
from .next_step import after_evaluation


def evaluate(options: EvaluateConfig, runs: list[str]) -> None:
    """Print one table of all runs."""
    console.require(runs, "RUN", "fgkd evaluate runs/student --split test")
    progress = console.ConsoleProgress()
    found = library.run(options, runs, progress)
    progress.close()
    columns = console.width()
    for line in found.lines(columns):
        console.echo(console.folded(line, columns))
    if options.json:
        console.echo(f"written to {options.json}")
    if found.report:
        console.echo(f"report: {found.report}")
    chosen = pick_focus(found.runs)
    if (chosen.path / "run.json").is_file():
        console.next_step(after_evaluation(chosen.path, chosen.role))
