"""One class, one image per class, and more images per batch than there are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.datasets import write_image
from helpers.failures import Fails
from helpers.runs import STUDENT, TEACHER, fgkd, rows

import fgkd as library
from fgkd.errors import OptionError

SHORT = ("--epochs", 2, "--workers", 0)


def written(root: Path, classes: int, images: int) -> str:
    for label in range(classes):
        for number in range(images):
            write_image(root / f"class {label}" / f"{number}.png", label, number)
    return f"folder:{root}"


def test_one_class_is_refused_before_any_work(
    tmp_path: Path, tiny_teacher: Path, fails: Fails
) -> None:
    data = ("--data", written(tmp_path / "data", 1, 6), "--output", tmp_path / "x")
    for command in (
        ("train-teacher", *TEACHER),
        ("cache-logits", "--teacher", tiny_teacher),
        ("train-student", *STUDENT, "--distillation", "none"),
    ):
        error = fails(*command, *data).error
        assert isinstance(error, OptionError)
        assert error.option == "data"
    assert not (tmp_path / "x").exists()


def test_one_image_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No val split can be carved: said, the last epoch kept, and the train split offered."""
    data = written(tmp_path / "data", 4, 1)
    fgkd("train-teacher", "--data", data, *TEACHER, *SHORT, "--output", tmp_path / "t")
    said = capsys.readouterr().out
    assert "no val split" in said
    assert "a step takes all 4 images" in said
    assert "last epoch 2" in said
    cache = ("--views", 1, "--workers", 0, "--output", tmp_path / "c")
    fgkd("cache-logits", "--teacher", tmp_path / "t", *cache)
    fgkd("train-student", "--cache", tmp_path / "c", *STUDENT, *SHORT, "--output", tmp_path / "s")
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next: fgkd evaluate {tmp_path / 't'} {tmp_path / 's'} --split train "
        f"--report {tmp_path / 'report'}"
    )
    assert not [name for name in rows(tmp_path / "s")[0] if name.startswith("val_")]
    scores = library.evaluate([tmp_path / "s"], split="train", workers=0)
    assert scores[0].metrics.num_images == 4


def test_a_batch_above_the_dataset(tmp_path: Path) -> None:
    """The same steps as with a batch of exactly the images that there are."""
    data = written(tmp_path / "data", 3, 4)
    for size in (9, 4096):
        out = ("--batch-size", size, "--output", tmp_path / str(size))
        fgkd("train-teacher", "--data", data, *TEACHER, *SHORT, *out)
    one, other = (rows(tmp_path / str(size)) for size in (9, 4096))
    assert one == other
    shutil.rmtree(tmp_path / "4096")
