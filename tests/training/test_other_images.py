"""A run knows its images: those of other data are not trained on, nor scored without a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import write_image
from helpers.failures import Fails
from helpers.runs import STUDENT, TEACHER, fgkd

import fgkd as library
from fgkd.data import open_dataset


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy whose val split is carved from train."""
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/val", ignore_errors=True)
    return tmp_path / "data"


def add(data: Path) -> None:
    folder = next((data / "train").iterdir())
    for i in range(12):
        write_image(folder / f"new{i}.png", i % 4, i)


def remove(data: Path) -> None:
    next((data / "train").rglob("*.png")).unlink()


def relabel(data: Path) -> None:
    """A class less: its images are given to another one."""
    one, other = sorted((data / "train").iterdir())[:2]
    image = next(one.iterdir())
    image.rename(other / f"moved-{image.name}")


def train(data: Path, run: Path, *more: object) -> tuple[object, ...]:
    return (
        *("train-teacher", "--data", f"folder:{data}", *TEACHER, "--workers", 0, "--sched"),
        *("constant", "--epochs", 1, "--output", run, *more),
    )


@pytest.mark.parametrize("change", [add, remove, relabel])
def test_a_run_does_not_go_on_with_other_images(
    change: Callable[[Path], None],
    data: Path,
    tmp_path: Path,
    fails: Fails,
) -> None:
    run = tmp_path / "run"
    fgkd(*train(data, run))
    change(data)
    assert "images of train" in fails(*train(data, run, "--resume", "--epochs", 2))


def test_a_run_of_an_earlier_version_goes_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fgkd(*train(data, run))
    facts = json.loads((run / "run.json").read_text())
    assert set(facts.pop("images")) == {"train", "val", "test"}
    (run / "run.json").write_text(json.dumps(facts))
    fgkd(*train(data, run, "--resume", "--epochs", 2))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_student_may_move_its_data(
    data: Path, tiny_cache: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Keys are relative to the data's folder."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--workers", 0)
    command += ("--sched", "constant", "--output", tmp_path / "run")
    fgkd(*command, "--epochs", 1)
    shutil.copytree(tiny_data, tmp_path / "moved")
    fgkd(*command, "--epochs", 2, "--resume", "--data", f"folder:{tmp_path / 'moved'}")


def test_scores_on_another_val_split_carry_a_warning(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The carved split moves with the images; a test split and the same images are no matter."""
    run = tmp_path / "run"
    fgkd(*train(data, run))
    capsys.readouterr()
    for split, warned in (("val", 0), ("test", 0)):
        fgkd("evaluate", run, "--split", split, "--workers", 0)
        assert capsys.readouterr().out.count("warning: these are not the val") == warned
    add(data)
    found = library.evaluate(run, split="val", workers=0)
    assert [line for line in found.notes if line.startswith("warning: ") and str(run) in line]
    assert not library.evaluate(run, split="test", workers=0).notes[1:]


def test_the_fingerprint_is_of_keys_labels_and_order(tiny_data: Path) -> None:
    samples = open_dataset(f"folder:{tiny_data}").train
    rows = np.arange(len(samples))
    assert samples.take(rows).sha256 == samples.sha256
    others = [samples.take(rows[::-1]), samples.take(rows[1:])]
    labels = samples.labels.copy()
    labels[0] += 1
    others.append(type(samples)(samples.keys, labels, samples.domains, samples.paths))
    shifted = ["".join(samples.keys[:2]), "", *samples.keys[2:]]
    others.append(type(samples)(shifted, samples.labels, samples.domains, samples.paths))
    assert len({samples.sha256, *(one.sha256 for one in others)}) == 5
