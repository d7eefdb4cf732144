"""The top of a report: its numbers, counted again here, and its sentences in each case."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import pixels
from helpers.pages import outline

from fgkd.data import open_dataset
from fgkd.evaluation import intervals, scoring
from fgkd.evaluation.scoring import Result, Score
from fgkd.report import results_page, verdict
from fgkd.report.sections import Run
from fgkd.training import run_folder

NUM_CLASSES, PER_CLASS = 4, 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")
    for label in range(NUM_CLASSES):
        for split, count in (("train", 1), ("val", 1), ("test", PER_CLASS)):
            (root / split / f"c{label}").mkdir(parents=True)
            for i in range(count):
                pixels(label, i, (16, 16)).save(root / split / f"c{label}" / f"{i}.png")
    return root


def run_of(folder: Path, role: str, hits: int, shift: int = 0, teacher: Run | None = None) -> Run:
    """A run that is right on `hits` of the images, from number `shift` on."""
    dataset = open_dataset([f"folder:{folder}"])
    labels_N = torch.from_numpy(dataset.splits["test"].labels)
    right_N = torch.isin(torch.arange(len(labels_N)), torch.arange(shift, shift + hits))
    answers_N = torch.where(right_N, labels_N, (labels_N + 1) % NUM_CLASSES)
    logits_NK = 3.0 * torch.nn.functional.one_hot(answers_N, NUM_CLASSES).float()
    score = Score("model", dataset, "test", "none", np.arange(len(labels_N)), logits_NK, [])
    teacher_NK = teacher.score.logits_NK if teacher else None
    result = Result(role, "test", "model", "none", 3.0, scoring.measure(score, teacher_NK))
    return Run(Path(role), role, score, result, teacher_NK, name=role)


def texts(folder: Path, *hits: tuple[str, int, int]) -> tuple[str, dict[str, str]]:
    """The sentence, and title -> value of the tiles, of runs with so many hits."""
    runs: list[Run] = []
    for role, count, shift in hits:
        teacher = runs[0] if runs and runs[0].role == "teacher" else None
        runs.append(run_of(folder, role, count, shift, teacher))
    focus = results_page.pick_focus(runs)
    baseline = next((run for run in runs if run.role == "baseline" and run is not focus), None)
    found = verdict.summary(focus, runs, baseline)
    return found.text, {tile.title: tile.value for tile in found.tiles}


def test_a_clear_gain_and_what_was_kept_of_the_teachers_lead(folder: Path) -> None:
    """Of 200 images: teacher 160, baseline 100, student 130, so half of a lead of 30 points."""
    said, tiles = texts(folder, ("teacher", 160, 0), ("baseline", 100, 0), ("student", 130, 0))
    assert "15.0 points more right than its baseline" in said
    assert "p < 0.001" in said
    assert "50 % of the teacher's lead of 30.0 points" in said
    assert tiles["Top-1 of the student"] == "65.00 %"
    assert tiles["Against the baseline"] == "+15.00 points"
    assert tiles["Of the teacher's lead kept"] == "50 %"
    assert tiles["Agreement with the teacher"] == "85.0 %"


def test_no_clear_difference_is_said_so(folder: Path) -> None:
    """Two more right of 200, with 30 that each alone has right: McNemar's p is 0.9."""
    said, tiles = texts(folder, ("teacher", 160, 0), ("baseline", 100, 0), ("student", 102, 30))
    assert "cannot be told apart: +1.0 points" in said
    assert tiles["Against the baseline"] == "+1.00 points"
    assert tiles["Of the teacher's lead kept"] == "not clear"
    said, tiles = texts(folder, ("teacher", 160, 0), ("baseline", 100, 0), ("student", 60, 0))
    assert tiles["Of the teacher's lead kept"] == "not clear"  # of a student that lost


def test_a_loss_a_teacher_without_a_lead_and_a_student_that_passes_it(folder: Path) -> None:
    said, tiles = texts(folder, ("teacher", 80, 0), ("baseline", 100, 0), ("student", 60, 0))
    assert "20.0 points fewer right" in said
    assert tiles["Of the teacher's lead kept"] == "no lead"
    said, _ = texts(folder, ("teacher", 110, 0), ("baseline", 100, 0), ("student", 130, 0))
    assert "10.0 points above its teacher (p < 0.001)" in said


def test_without_a_baseline_or_alone(folder: Path) -> None:
    said, tiles = texts(folder, ("teacher", 160, 0), ("student", 130, 0))
    assert "15.0 points fewer right than teacher" in said
    assert "Of the teacher's lead kept" not in tiles
    said, tiles = texts(folder, ("baseline", 100, 0))
    assert said == "baseline is right on 50.00 % of the images."


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_difference_is_that_of_a_bootstrap(seed: int) -> None:
    """Of pairs, drawn one by one by NumPy."""
    draws = np.random.default_rng(seed)
    hit_N, other_N = draws.random(400) < 0.7, draws.random(400) < 0.6
    low, high = intervals.difference_ci95(hit_N=hit_N, other_hit_N=other_N)
    gain_N = 100.0 * hit_N - 100.0 * other_N
    means = [gain_N[draws.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.8)
    assert all(map(np.isnan, intervals.difference_ci95(hit_N=hit_N[:0], other_hit_N=other_N[:0])))


def test_the_tiny_runs(tiny_report: Path, tiny_runs: dict[str, Path], tiny_cache: Path) -> None:
    """The cost is that of the run folders, and every recipe is there to be copied."""
    page = outline(tiny_report)
    minutes = run_folder.minutes(tiny_runs["student"])
    assert minutes is not None
    assert verdict.duration(minutes) in page.text
    assert f"fgkd cache-logits -c {tiny_cache / 'args.yaml'}" in page.text
    for path in tiny_runs.values():
        facts = run_folder.read(path)
        assert verdict.command(path, facts) in page.text
        for name, version in facts.versions.items():
            assert f"{name} {version}" in page.text


def test_a_command_is_shown_as_it_was_typed_but_for_what_would_destroy_the_run(
    tiny_runs: dict[str, Path],
) -> None:
    typed = ("/x/stages/__main__.py", "train-student", "--cache", "a b", "--resume")
    facts = dataclasses.replace(run_folder.read(tiny_runs["student"]), command=typed)
    said = verdict.command(Path("r"), facts)
    assert shlex.split(said) == ["fgkd", "train-student", "--cache", "a b"]


def test_durations() -> None:
    found = [verdict.duration(minutes) for minutes in (0.4, 12.34, 120)]
    assert found == ["24 s", "12.3 min", "2.0 h"]


def test_names_are_short_and_distinct(folder: Path) -> None:
    def names(*paths: str) -> list[str]:
        runs = [Run(Path(path), "student", None, None) for path in paths]  # type: ignore[arg-type]
        return [results_page.short_name(run.path, runs) for run in runs]

    assert names("a/b", "a/c") == ["b", "c"]
    assert names("x/labels/75/s", "x/cache/75/s") == ["labels", "cache"]
    assert names("x/s", "x/s") == ["s", "s"]
    assert names("d", "x/c/s", "x/d/s") == ["d", "c", "x/d/s"]


def test_a_page_of_a_thousand_classes_weighs_less_than_5_MB(tmp_path: Path) -> None:
    """With photographs that hardly compress, four runs, and every class in the table."""
    draws, size, num_classes = np.random.default_rng(0), (224, 224), 1000
    noise = pixels(0, 0, size)
    noise.frombytes(draws.integers(0, 256, 224 * 224 * 3, dtype=np.uint8).tobytes())
    noise.save(tmp_path / "image.jpg", quality=90)
    data = (tmp_path / "image.jpg").read_bytes()
    for split, count in (("train", 1), ("val", 1), ("test", 2)):
        for label in range(num_classes):
            folder = tmp_path / "data" / split / f"a fine-grained class number {label:04d}"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(data)
    dataset = open_dataset([f"folder:{tmp_path / 'data'}"])
    labels_N = torch.from_numpy(dataset.splits["test"].labels)
    runs = []
    for i, role in enumerate(("teacher", "baseline", "student", "student")):
        logits_NK = torch.randn(len(labels_N), num_classes, generator=torch.manual_seed(i))
        logits_NK[torch.arange(len(labels_N)), labels_N] += 3.0
        score = Score("model", dataset, "test", "none", np.arange(len(labels_N)), logits_NK, [])
        teacher_NK = runs[0].score.logits_NK if runs else None
        result = Result(f"{role}{i}", "test", "m", "none", 3.0, scoring.measure(score, teacher_NK))
        runs.append(Run(tmp_path / f"{role}{i}", role, score, result, teacher_NK))
    path = results_page.write(tmp_path / "page", runs, [])
    assert path.stat().st_size < 5_000_000
    assert "a fine-grained class number 0999" in path.read_text()
