"""`evaluate --report`: what the runs' answers show, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fgkd.config import args_file
from fgkd.errors import FgkdError
from fgkd.report import page
from fgkd.report.findings import Answers

from . import report_sections as sections
from .examples import Examples
from .report_sections import Run


def write(
    folder: Path,
    scored: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    teachers_NK: Sequence[torch.Tensor | None],
    notes: Sequence[str],
) -> Path:
    """Write the page of `evaluate`'s scores into a folder; returns its path.

    teachers_NK: for each run, the teacher's logits of its images, where they are known.
    """
    runs = [open_run(s, r, short_name(s, scored)) for s, r in zip(scored, results, strict=True)]
    focus = pick_focus(runs)
    peers = [run for run in runs if run.same_images(focus)]
    teacher_NK = teachers_NK[runs.index(focus)]
    known_N, labels_N = torch.from_numpy(focus.known_N), focus.labels_N
    teacher = None if teacher_NK is None else Answers.of(teacher_NK[known_N], labels_N)
    dataset, split = focus.scored["dataset"], focus.result["split"]
    examples = Examples(sections.samples_of(focus), dataset.classes, labels_N)
    examples.add(focus.role, focus.answers)
    if teacher is not None:
        examples.add("teacher", teacher)
    every = [
        sections.overview(runs, notes),
        sections.training(runs),
        sections.by_class(focus, peers),
        sections.confusions(focus, examples),
        sections.confidence(runs, peers),
        sections.by_quality(focus, peers),
        sections.taught(focus, peers, teacher, examples),
    ]
    lead = (
        f"{len(focus.scored['keys']):,} images of {dataset.name} ({split} split, "
        f"{len(dataset.classes)} classes), {len(runs)} run{'s' * (len(runs) > 1)}. "
        f"The examples show the answers of {focus.name}."
    )
    shown = [s for s in every if s.figures or s.tables or s.groups]
    return page.write(folder, page.render(f"{dataset.name}: results on {split}", lead, shown))


def open_run(scored: dict[str, Any], result: dict[str, Any], name: str) -> Run:
    """A score with its answers. Raises: FgkdError when no image has a label."""
    known_N = scored["labels"] >= 0
    if not known_N.any():
        raise FgkdError(f"no image of {scored['path']} has a label", "leave --report out")
    labels_N = scored["labels"][known_N]
    answers = Answers.of(scored["logits"][torch.from_numpy(known_N)], labels_N)
    return Run(name, role_of(scored), scored, result, labels_N, known_N, answers)


def role_of(scored: dict[str, Any]) -> str:
    """What a run is to the others, from its own options."""
    if scored["stage"] == "train-teacher":
        return "teacher"
    args = scored["path"] / "args.yaml"
    distils = not args.exists() or args_file.load_yaml(args).get("distillation") != "none"
    return "student" if distils else "baseline"


def pick_focus(runs: Sequence[Run]) -> Run:
    """Whose answers are shown: the first student, else the first baseline, else the first run."""
    for role in ("student", "baseline"):
        for run in runs:
            if run.role == role:
                return run
    return runs[0]


def short_name(scored: dict[str, Any], everyone: Sequence[dict[str, Any]]) -> str:
    """The last part of a run's path where that tells it from the others."""
    path = scored["path"]
    alike = [s for s in everyone if s["path"].name == path.name]
    return path.name if len(alike) == 1 and path.name else str(path)
