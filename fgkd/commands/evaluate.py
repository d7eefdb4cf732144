"""Evaluating runs: scores on a split, compared with each other and with the teacher."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import config, device, distributed, files
from fgkd.cache.reader import Reader
from fgkd.commands import banner, sources
from fgkd.commands.sources import Source, Sources
from fgkd.config import EvaluateConfig, args_file
from fgkd.data import DEFAULT_VAL_FRACTION, duplicates, moved, open_dataset
from fgkd.errors import MissingOption
from fgkd.evaluation import scoring
from fgkd.evaluation.intervals import McNemar
from fgkd.evaluation.scoring import Result, Score
from fgkd.models import Classifier
from fgkd.models.loading import located
from fgkd.progress import SILENT, Progress
from fgkd.report import page, results_page, tables
from fgkd.report.sections import Run
from fgkd.training import run_folder
from fgkd.training.run_folder import Parents


@dataclass(frozen=True, repr=False)
class Evaluation(Sequence[Result]):
    """Scored runs: a sequence of their results, and notes on what they are of.

    Printed, it is the table of the results.

    results: in the order of the runs; runs: their logits; report: the page, if one was written.
    """

    results: list[Result]
    runs: list[Run]
    notes: list[str]
    report: Path | None = None

    @property
    def top1(self) -> list[float]:
        """Top-1 accuracy of each run, in percent."""
        return [one.metrics.top1_pct for one in self.results]

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __repr__(self) -> str:
        return "\n".join(self.lines()).strip()

    def lines(self, width: int | None = None) -> list[str]:
        """The table of the results, the tests between runs, and the notes.

        width: columns into which the table is to fit.
        """
        found = [
            "",
            *tables.results_table(self.results, width).splitlines(),
            *tables.mcnemar_lines(self.results),
        ]
        for tta in dict.fromkeys(one.tta for one in self.results if one.tta != "none"):
            found.append(f"tta {tta}: logits are means over views, not timm's centre crop")
        return found + self.notes

    def to_json(self) -> list[dict[str, Any]]:
        """One object per run."""
        return [one.to_json() for one in self.results]


@device.settings_kept()
def evaluate(runs: Sources, *, progress: Progress = SILENT, **options: Any) -> Evaluation:
    """Score runs on a split, with the options of `fgkd evaluate` by name.

    `evaluate(["runs/teacher", "runs/student"], split="test").top1` is a list of percentages; `[1]`
    is the second run's `Result`. runs: what `load_classifier` takes, or a `Classifier`; one that is
    no run needs `data`. Raises: FgkdError of many types.
    """
    spec = config.build(EvaluateConfig, options, "evaluate()")
    models = sources.given(runs)
    with sources.borrowed(models):
        return run(spec, models, progress)


def run(options: EvaluateConfig, runs: Sequence[Source], progress: Progress = SILENT) -> Evaluation:
    """`evaluate` with its config."""
    check(options, runs)
    hardware, device_line = device.set_up(options.device)
    progress.message(f"evaluating {len(runs)} run(s) on the {options.split} split; {device_line}")
    scored = [_score(one, options, hardware, progress) for one in runs]
    teacher = next((one for one in scored if one.role == "teacher"), None)
    known = [teacher_logits(one, teacher, options.split) for one in scored]
    tests: list[list[tuple[str, McNemar]]] = [[] for _ in scored]
    for later, earlier in compared(scored):
        test = scoring.mcnemar(scored[later].score, scored[earlier].score)
        tests[later].append((str(scored[earlier].path), test))
    results = [
        Result(
            str(one.path),
            *(options.split, one.score.model, one.score.tta),
            run_folder.minutes(one.path),
            scoring.measure(one.score, teacher_NK),
            tuple(of_run),
        )
        for one, teacher_NK, of_run in zip(scored, known, tests, strict=True)
    ]
    described = [
        Run(one.path, one.role, one.score, result, teacher_NK)
        for one, result, teacher_NK in zip(scored, results, known, strict=True)
    ]
    found = Evaluation(results, described, footnotes(scored, results, teacher))
    if distributed.rank() == 0:
        if options.json:
            files.write_json(Path(options.json), found.to_json())
        if options.report:
            path = results_page.write(Path(options.report), described, found.notes)
            found = dataclasses.replace(found, report=path)
    return found


def check(options: EvaluateConfig, runs: Sequence[Source]) -> None:
    """Refuse what cannot work before any work: each run must be there, each output writable."""
    if not runs:
        raise MissingOption("RUN is required", option="RUN", suggestion="runs/student")
    files.claim_option(options.json, "json")
    if options.report:
        page.claim(Path(options.report), "report")
    for one in runs:
        sources.describe_run(one)
    sources.check(runs, options.source)


@dataclass(frozen=True, eq=False)
class Scored:
    """A run with its score.

    role: "teacher" (also a model that is no run), "student" or "baseline". specs: of the dataset
    that it was scored on. warning: of the images, or "".
    """

    path: Path
    role: str
    parents: Parents
    specs: tuple[str, ...]
    score: Score
    warning: str = ""


def _score(
    source: Source, options: EvaluateConfig, hardware: torch.device, progress: Progress
) -> Scored:
    name = sources.name_of(source)
    path = Path(name if isinstance(source, Classifier) else located(source))
    facts = sources.describe_run(source)
    fraction = facts.val_fraction if facts else DEFAULT_VAL_FRACTION
    dataset = open_dataset(moved(options.data, facts.data if facts else ()), fraction)
    loaded = [sources.load(source, options.source)]
    (model,), fits = sources.fit(loaded, [str(path)], dataset.classes, options.source)
    found = scoring.score(
        model,
        dataset,
        options.split,
        device=hardware,
        name=str(path),
        tta=options.tta,
        skip_unreadable=options.skip_bad_images,
        batch_size=options.batch_size,
        workers=options.workers,
        progress=progress,
    )
    progress.message(f"  {path}: {found.model}, {len(found.rows_N):,} images of {dataset.name}")
    if facts:
        views = banner.describe_recipe(facts.views.recipe)
        progress.message(f"    trained on views: {views}")
    for line in fits:
        progress.message(f"    {line.removeprefix(f'{path}: ')}")
    for key, reason in found.unreadable:
        progress.message(f"    left out {key}: {reason}")
    role = role_of(path, facts.stage) if facts else "teacher"
    parents = facts.parents if facts else Parents()
    images = {name: samples.sha256 for name, samples in dataset.splits.items()}
    warning = ""
    if facts and options.split == "val" and facts.images_differ(images, "val"):
        warning = (
            f"warning: these are not the val images that {path} was chosen by; some may be among "
            "those that it was trained on (images were added or removed, or it is other data)"
        )
        progress.message(f"    {warning}")
    return Scored(path, role, parents, dataset.specs, found, warning)


def role_of(path: Path, stage: str) -> str:
    """Whether a run is a teacher, a student or a baseline, from its own options."""
    if stage == "train-teacher":
        return "teacher"
    args = path / "args.yaml"
    distils = not args.exists() or args_file.load_yaml(args).get("distillation") != "none"
    return "student" if distils else "baseline"


def compared(scored: Sequence[Scored]) -> list[tuple[int, int]]:
    """Pairs of runs to test: all of up to three runs, else each with the first that is no teacher.

    (later, earlier), so that a student is compared with the baseline or teacher named before it.
    Only runs on the same images are compared.
    """
    first = next((i for i, one in enumerate(scored) if one.role != "teacher"), 0)
    pairs = itertools.combinations(range(len(scored)), 2)
    return [
        (later, earlier)
        for earlier, later in pairs
        if (len(scored) <= 3 or first in (earlier, later))
        and scored[earlier].score.keys == scored[later].score.keys
    ]


def teacher_logits(scored: Scored, teacher: Scored | None, split: str) -> torch.Tensor | None:
    """The teacher's logits of a student's images, where they are known."""
    if scored.role == "teacher":
        return None
    if teacher is not None:
        same = teacher.score.keys == scored.score.keys
        return teacher.score.logits_NK if same else None
    return stored_logits(scored) if split == "val" else None


def stored_logits(scored: Scored) -> torch.Tensor | None:
    """The teacher's validation logits in the cache that a student learned from, if it is there."""
    cache = scored.parents.cache
    if not cache or not (Path(cache) / "manifest.json").exists():
        return None
    reader = Reader(Path(cache))
    if reader.manifest.identity_sha256 != scored.parents.identity_sha256:
        return None
    stored = reader.val_logits()
    known = {key: i for i, key in enumerate(reader.samples["val"].keys)}
    if stored is None or any(key not in known for key in scored.score.keys):
        return None
    return torch.from_numpy(stored[np.array([known[key] for key in scored.score.keys])])


def footnotes(
    scored: Sequence[Scored], results: Sequence[Result], teacher: Scored | None
) -> list[str]:
    """What the table leaves unsaid: whose agreement it is, cache sizes, notes on the data."""
    lines = ["±: half the width of the 95 % interval (percentile bootstrap over images)"]
    if any(one.metrics.agreement_pct is not None for one in results):
        whose = "the teacher's stored logits" if teacher is None else teacher.path
        lines.append(f"agree %: same top-1 as {whose}; KL to it in nats at T = 1")
    for cache in dict.fromkeys(one.parents.cache for one in scored):
        if cache and (Path(cache) / "manifest.json").exists():
            reader = Reader(Path(cache))
            took = run_folder.minutes(Path(cache))
            lines.append(
                f"cache {files.as_typed(Path(cache))}: {reader.views} views x "
                f"{len(reader.samples['train']):,} images, {files.human_bytes(reader.num_bytes)}"
                + ("" if took is None else f", {took:.1f} minutes")
            )
    distinct = {(*one.specs, one.score.dataset.val_fraction): one.score.dataset for one in scored}
    notes = [note for data in distinct.values() for note in duplicates.with_warnings(data).notes]
    lines += [one.warning for one in scored if one.warning]
    return lines + [banner.note_line(note) for note in dict.fromkeys(notes)]
