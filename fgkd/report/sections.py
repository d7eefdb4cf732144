"""The sections of a report of scored runs: tables, plots and example images.

Shape legend: N labelled images, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fgkd import rng
from fgkd.data import Samples
from fgkd.errors import OptionError
from fgkd.evaluation.metrics import Metrics
from fgkd.evaluation.scoring import Result, Score
from fgkd.report import findings, image_quality, plots, tables
from fgkd.report.example_cards import Examples
from fgkd.report.findings import Answers
from fgkd.report.page import Cell, Figure, Group, Section, Table, number, text
from fgkd.training import run_folder

MAX_MEASURED = 3000  # images whose quality is measured
MAX_PAIRS, MAX_TAUGHT = 6, 12
MAX_CHANGED, MAX_CHANGED_IMAGES = 3, 6  # classes gained and lost, and images of each
FULL_HEAT = 30.0  # points at which a cell's shade is full
CONFUSED_CLASSES = 10  # in the matrix
INTERVALS = "bars are 95 % intervals (bootstrap)."
CURVES = (  # column of metrics.jsonl, title, axis, caption
    (
        *("task_loss", "Training loss of the labels", "nats"),
        "Mean of each epoch. Comparable between runs with the same smoothing and mixing.",
    ),
    (
        *("distill_loss", "Training loss of the teacher's targets", "nats"),
        "Mean of each epoch, before its weight.",
    ),
    (
        *("val_top1_pct", "Top-1 on validation", "top-1, %"),
        "Images of the validation split whose top answer is right, after each epoch.",
    ),
    (
        *("val_nll", "NLL on validation", "nats"),
        "Negative log-likelihood of the validation labels: lower is better; a rise is "
        "overconfidence.",
    ),
    (
        *("val_agreement_pct", "Agreement with the teacher", "same top answer, %"),
        "Validation images for which student and teacher choose the same class.",
    ),
    (
        *("val_kl_to_teacher", "KL to the teacher", "nats"),
        "Mean KL(teacher || student) on validation, at temperature 1.",
    ),
    ("lr", "Learning rate", "learning rate", "At the end of each epoch."),
)


@dataclass(frozen=True, eq=False)
class Run:
    """A scored run as a report shows it.

    role: "teacher", "student" or "baseline". teacher_NK: the teacher's logits of the same images,
    where they are known. name: a short one, to tell it from the other runs.
    """

    path: Path
    role: str
    score: Score
    result: Result
    teacher_NK: torch.Tensor | None = None
    name: str = ""

    @functools.cached_property
    def known_N(self) -> np.ndarray:
        """bool: the scored images with a label; the properties below are of them alone."""
        return self.score.labels_N >= 0

    def require_labels(self) -> None:
        """Raise OptionError when no image has a label."""
        if not self.known_N.any():
            message = f"no image that {self.path} was scored on has a label: nothing to report"
            raise OptionError(message, option="report")

    @property
    def labels_N(self) -> np.ndarray:
        """The classes."""
        return self.score.labels_N[self.known_N]

    @property
    def samples(self) -> Samples:
        """The images."""
        return self.score.samples.take(self.score.rows_N[self.known_N])

    @functools.cached_property
    def answers(self) -> Answers:
        """The run's predictions."""
        return self._answers(self.score.logits_NK)

    @functools.cached_property
    def teacher_answers(self) -> Answers | None:
        """The teacher's predictions, where they are known."""
        return None if self.teacher_NK is None else self._answers(self.teacher_NK)

    def _answers(self, logits_NK: torch.Tensor) -> Answers:
        return Answers.of(logits_NK[torch.from_numpy(self.known_N)], self.labels_N)


def overview(runs: Sequence[Run], notes: Sequence[str]) -> Section:
    """The tables of the runs and of the tests between them, and accuracies with intervals."""
    shown = tables.known_columns([run.result for run in runs])
    rows = []
    for run in runs:
        values = run.result.metrics
        cells = [Cell(tables.formatted(name, values), getattr(values, name)) for name in shown]
        took = number(run.result.minutes, "{:.1f}")
        images, model = number(values.num_images), text(run.result.model)
        rows.append([text(run.name), images, *cells, took, text(run.role), model])
    columns = ["run", "images", *shown.values(), "minutes", "role", "model"]
    parts = [Table("All runs; ± is half a 95 % interval.", columns, rows), *mcnemar_table(runs)]
    series = {"top-1": "top1_pct", "top-5": "top5_pct"}
    points = {
        run.name: {name: interval(run.result.metrics, key) for name, key in series.items()}
        for run in runs
    }
    caption = f"Images whose label is the first answer, or among the first five; {INTERVALS}"
    figures = [plots.shares(points, "Accuracy", caption), *domains(runs)]
    return Section("results", "Results", notes=notes, tables=parts, figures=figures)


def mcnemar_table(runs: Sequence[Run]) -> list[Table]:
    """McNemar's tests between runs on the same images."""
    names = {run.result.run: run.name for run in runs}
    rows = [
        [
            *(text(run.name), text(names[against]), number(test.only_this)),
            *(number(test.only_other), number(test.p_value, "{:.2g}"), text(test.test)),
        ]
        for run in runs
        for against, test in run.result.mcnemar
    ]
    caption = "McNemar's test of top-1: images that only one of two runs has right, and p."
    columns = ["run", "against", "only run right", "only other right", "p", "test"]
    return [Table(caption, columns, rows)] if rows else []


def domains(runs: Sequence[Run]) -> list[Figure]:
    """Top-1 by domain, where there are several."""
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for run in runs:
        for name, part in (run.result.metrics.domains or {}).items():
            if np.isfinite(part.top1_pct):  # nan: no image there has a label
                rows.setdefault(name, {})[run.name] = interval(part, "top1_pct")
    caption = f"Top-1 on each part of a combined dataset, over all its classes; {INTERVALS}"
    return [plots.shares(rows, "Top-1 by domain", caption)] if len(rows) > 1 else []


def interval(values: Metrics, name: str) -> tuple[float, float, float]:
    """An accuracy and the ends of its interval, in percent."""
    assert values.ci95
    low, high = values.ci95[name]
    return getattr(values, name), low, high


def training(runs: Sequence[Run]) -> Section:
    """The curves of the runs' metrics.jsonl."""
    rows = {run.name: run_folder.metrics(run.path) for run in runs}
    for found in rows.values():
        for row in found:  # without a teacher the whole loss is that of the labels
            if "loss" in row and "distill_loss" not in row:
                row["task_loss"] = row["loss"]
    best = {name: best_epoch(found) for name, found in rows.items()}
    figures = [plots.curves(rows, best, *described) for described in CURVES]
    return Section("training", "Training", figures=[f for f in figures if f])


def best_epoch(rows: Sequence[Mapping[str, float]]) -> int:
    """The epoch whose weights were kept: the first of the highest top-1 on val, else the last."""
    names = ("val_top1_pct", "ema_val_top1_pct")
    scores = [max((row[name] for name in names if name in row), default=-1.0) for row in rows]
    if not scores or max(scores) < 0:
        return int(rows[-1].get("epoch", 0)) if rows else 0
    return int(rows[int(np.argmax(scores))].get("epoch", 0))


def by_class(focus: Run, peers: Sequence[Run], baseline: Run | None, examples: Examples) -> Section:
    """Accuracy of every class, and of every domain, as tables; and as a curve."""
    names, labels_N = focus.score.dataset.classes, focus.labels_N
    classes = np.unique(labels_N)
    images_K = np.bincount(labels_N)[classes]
    pct = {
        run.name: 100 * np.bincount(labels_N, run.answers.hit_N)[classes] / images_K
        for run in peers
    }
    rows = []
    for i, k in enumerate(classes.tolist()):
        wrong = focus.answers.answers_N[(labels_N == k) & ~focus.answers.hit_N]
        other = names[np.bincount(wrong).argmax()] if len(wrong) else ""
        cells = [number(run_pct[i], "{:.1f}") for run_pct in pct.values()]
        if baseline is not None:
            gain = pct[focus.name][i] - pct[baseline.name][i]
            cells.append(Cell(f"{gain:+.1f}", gain, float(np.clip(gain / FULL_HEAT, -1, 1))))
        rows.append([text(names[k]), number(int(images_K[i])), *cells, text(other)])
    top1 = [f"{name} top-1 %" for name in pct]
    gains = [f"{focus.name} - {baseline.name}"] if baseline else []
    columns = ["class", "images", *top1, *gains, f"{focus.name} most often takes it for"]
    shown = [*domain_table(focus, peers), Table("Top-1 by class.", columns, rows)]
    figures = [plots.class_curve(pct)]
    groups = changed_classes(focus, baseline, examples) if baseline else []
    return Section("classes", "Classes", tables=shown, figures=figures, groups=groups)


def changed_classes(focus: Run, baseline: Run, examples: Examples) -> list[Group]:
    """The classes in which a student gains and loses most against its baseline, with images."""
    names, labels_N = focus.score.dataset.classes, focus.labels_N
    won_N = focus.answers.hit_N & ~baseline.answers.hit_N
    lost_N = baseline.answers.hit_N & ~focus.answers.hit_N
    won_K, lost_K = (np.bincount(labels_N[x_N], minlength=len(names)) for x_N in (won_N, lost_N))
    images_K = np.maximum(np.bincount(labels_N, minlength=len(names)), 1)
    groups = []
    for sign, changed_N, word in ((1, won_N, "gains"), (-1, lost_N, "loses")):
        gain_K = sign * (won_K - lost_K)
        order = np.lexsort((np.arange(len(names)), -100 * gain_K / images_K))
        for k in [k for k in order[:MAX_CHANGED].tolist() if gain_K[k] > 0]:
            rows = np.flatnonzero(changed_N & (labels_N == k))[:MAX_CHANGED_IMAGES]
            said = (
                f"Of {images_K[k]} images {focus.name} alone has {won_K[k]} right, "
                f"{baseline.name} alone {lost_K[k]}."
            )
            title = f"{focus.name} {word} in {names[k]}"
            groups.append(Group(title, said, examples.cards(rows), in_row=True))
    return groups


def domain_table(focus: Run, peers: Sequence[Run]) -> list[Table]:
    """Top-1 and top-5 by domain, where there are several."""
    parts, shown = focus.result.metrics.domains or {}, ("top1_pct", "top5_pct")
    rows = [
        [
            *(text(domain), number(part.num_images)),
            *(
                Cell(tables.formatted(name, values), getattr(values, name))
                for values in ((run.result.metrics.domains or {})[domain] for run in peers)
                for name in shown
            ),
        ]
        for domain, part in parts.items()
    ]
    names = [f"{run.name} {tables.COLUMNS[name]}" for run in peers for name in shown]
    columns = ["domain", "images", *names]
    return [Table("Accuracy by domain.", columns, rows)] if len(parts) > 1 else []


def confusions(focus: Run, examples: Examples) -> Section:
    """The pairs of classes taken for each other most often, with images of both."""
    names: list[str] = focus.score.dataset.classes
    labels_N, answers_N = focus.labels_N, focus.answers.answers_N

    def taken(true: int, other: int) -> int:
        return int(((labels_N == true) & (answers_N == other)).sum())

    pairs = findings.confused_pairs(labels_N, answers_N, 20)
    if not pairs:
        return Section("confusions", "Confusions")
    rows, groups = list[list[Cell]](), list[Group]()
    for a, b in pairs:
        there, back = taken(a, b), taken(b, a)
        rows.append([text(names[a]), text(names[b]), *map(number, (there, back, there + back))])
        if len(groups) < MAX_PAIRS:
            said = f"Taken for {names[b]}: {there} images of {names[a]}; the other way: {back}."
            cards = examples.pair(focus.answers, a, b)
            groups.append(Group(f"{names[a]} and {names[b]}", said, cards))
    columns = ["class", "other", "class taken for other", "other taken for class", "both ways"]
    few = list(dict.fromkeys(k for pair in pairs for k in pair))[:CONFUSED_CLASSES]
    counts_KK = np.array([[taken(a, b) for b in few] for a in few])
    return Section(
        "confusions",
        "Confusions",
        f"Which classes {focus.name} takes for each other.",
        tables=[Table("The most confused pairs of classes, in images.", columns, rows)],
        figures=[plots.confusion(focus.name, [names[k] for k in few], counts_KK)],
        groups=groups,
    )


def confidence(runs: Sequence[Run], peers: Sequence[Run]) -> Section:
    """Calibration: how accurate predictions of each confidence are."""
    figures = [
        plots.reliability(r.name, i, r.answers, r.result.metrics.ece_pct)
        for i, r in enumerate(runs)
    ]
    figures += [plots.confidences(run.name, run.answers) for run in runs]
    figures.append(plots.coverage({run.name: run.answers for run in peers}))
    return Section("confidence", "Confidence", figures=figures)


def by_quality(focus: Run, peers: Sequence[Run]) -> Section:
    """Accuracy by properties of the image files, measured on a sample of them."""
    samples = focus.samples
    rows = np.sort(rng.stream("quality").permutation(len(samples))[:MAX_MEASURED])
    found = [image_quality.measure(samples.read(row), samples.keys[row]) for row in rows.tolist()]
    answers = {run.name: run.answers.take(rows) for run in peers}
    figures = []
    for name, unit in image_quality.QUALITIES.items():
        values_N = np.array([one.get(name, np.nan) for one in found])
        figures.append(plots.by_value(unit, values_N, answers))
    said = (
        f"Measured on {len(rows):,} of {len(samples):,} images; "
        "a property that all images share is left out."
    )
    return Section("quality", "Image quality", said, figures=[f for f in figures if f])


def taught(focus: Run, baseline: Run | None, examples: Examples) -> Section:
    """Where the student is right with its teacher, and the baseline without one is wrong."""
    teacher = focus.teacher_answers
    if teacher is None or focus.role == "teacher":
        return Section("taught", "What the teacher taught")
    others = {"teacher": teacher, focus.role: focus.answers}
    if baseline is not None:
        others["baseline"] = baseline.answers
    figures = [plots.outcomes(who_is_right({name: a.hit_N for name, a in others.items()}))]
    if baseline is None:
        return Section("taught", "Teacher and student", figures=figures)
    gained_N = teacher.hit_N & focus.answers.hit_N & ~baseline.answers.hit_N
    lost_N = ~focus.answers.hit_N & baseline.answers.hit_N
    gained = np.flatnonzero(gained_N)
    best = gained[np.argsort(-focus.answers.confidence_N[gained], kind="stable")][:MAX_TAUGHT]
    said = (
        f"On {gained_N.sum():,} images teacher and student are right and the baseline, trained on "
        f"labels alone, is wrong. The other way, the baseline is right and the student wrong on "
        f"{lost_N.sum():,}, of which the teacher is right on {(lost_N & teacher.hit_N).sum():,}."
    )
    title, which = "Right with the teacher, wrong without", "The student's most confident answers."
    groups = [Group(title, which, examples.cards(best))] if len(best) else []
    return Section("taught", "What the teacher taught", said, figures=figures, groups=groups)


def who_is_right(hits: dict[str, np.ndarray]) -> dict[str, int]:
    """Numbers of images by the set of models that are right on them, largest set first."""
    names = list(hits)
    code_N = sum(hit_N.astype(int) << i for i, hit_N in enumerate(hits.values()))
    counts = np.bincount(np.asarray(code_N), minlength=1 << len(names))
    sets = sorted(range(len(counts)), key=lambda code: -code.bit_count())

    def called(code: int) -> str:
        inside = [name for i, name in enumerate(names) if code >> i & 1]
        if len(inside) in (0, len(names)):
            return "all" if inside else "none"
        return " + ".join(inside) + " only" * (len(inside) == 1)

    return {called(code): int(counts[code]) for code in sets}
