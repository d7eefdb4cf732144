"""The report page of scored runs: their results, training, classes, confusions and examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fgkd.report import page, sections, verdict
from fgkd.report.example_cards import Examples
from fgkd.report.sections import Run


def write(folder: Path, runs: Sequence[Run], notes: Sequence[str]) -> Path:
    """Write the page of some runs into a folder; returns its path.

    Raises: OptionError when no image has a label.
    """
    runs = [dataclasses.replace(run, name=short_name(run.path, runs)) for run in runs]
    for run in runs:
        run.require_labels()
    focus = pick_focus(runs)
    peers = [run for run in runs if run.score.same_images(focus.score)]
    dataset = focus.score.dataset
    examples = Examples(focus.samples, dataset.classes, focus.labels_N)
    examples.add(focus.role, focus.answers)
    if focus.teacher_answers is not None:
        examples.add("teacher", focus.teacher_answers)
    baseline = next((run for run in peers if run.role == "baseline" and run is not focus), None)
    if baseline is not None:
        examples.add("baseline", baseline.answers)
    every = [
        verdict.summary(focus, peers, baseline),
        sections.overview(runs, notes),
        sections.training(runs),
        sections.by_class(focus, peers, baseline, examples),
        sections.confusions(focus, examples),
        sections.confidence(runs, peers),
        sections.by_quality(focus, peers),
        sections.taught(focus, baseline, examples),
        verdict.recipe(runs),
    ]
    lead = (
        f"{len(focus.score.rows_N):,} images of {dataset.name} ({focus.score.split} split, "
        f"{len(dataset.classes)} classes), {len(runs)} run{'s' * (len(runs) > 1)}. "
        f"The examples show the answers of {focus.name}."
    )
    shown = [s for s in every if s.figures or s.tables or s.groups or s.tiles or s.commands]
    title = f"{dataset.name}: results on {focus.score.split}"
    return page.write(folder, page.render(title, lead, shown, page.made_now()))


def pick_focus(runs: Sequence[Run]) -> Run:
    """The run whose predictions are shown: the first student, else baseline, else the first."""
    for role in ("student", "baseline"):
        for run in runs:
            if run.role == role:
                return run
    return runs[0]


def short_name(path: Path, runs: Sequence[Run]) -> str:
    """The last part of a run's path, or of several that end alike what they differ in."""
    alike = {run.path for run in runs if run.path.name == path.name}
    if len(alike) == 1:
        return path.name or str(path)
    paths = [one.absolute().parts for one in alike]
    first = next(i for i in range(99) if len({parts[: i + 1] for parts in paths}) > 1)
    last = next(i for i in range(99) if len({parts[-i - 1 :] for parts in paths}) > 1)
    own = path.absolute().parts
    name = "/".join(own[first : len(own) - last])
    others = [run.path.name for run in runs if run.path not in alike]
    return name if name and name not in others else str(path)
