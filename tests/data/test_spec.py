"""Dataset specs and their options, unlabelled images, and test splits carved from train."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import open_error, write_folder, write_image
from helpers.errors import expected
from helpers.failures import Fails
from helpers.runs import STUDENT, TEACHER, fgkd, rows

import fgkd as library
from fgkd.config import DataSpec
from fgkd.data import DATASETS, moved, open_dataset, specs_of
from fgkd.data.spec import Spec
from fgkd.errors import DatasetError, OptionError, UnknownName, UnusedOption


@pytest.mark.parametrize(
    ("text", "name", "path", "options"),
    [
        ("icons", "icons", "", {}),
        ("folder:/a b/c", "folder", "/a b/c", {}),
        ("folder:/a?b", "folder", "/a?b", {}),
        ("webdataset:/a-?.tar", "webdataset", "/a-?.tar", {}),
        ("csv:/a.csv?label_column=my+kind", "csv", "/a.csv", {"label_column": "my kind"}),
        ("csv:a.csv?label_column=a%26b", "csv", "a.csv", {"label_column": "a&b"}),
        ("folder:/a?test_fraction=0.2", "folder", "/a", {"test_fraction": "0.2"}),
        (
            "webdataset:https://h/t-{0..3}.tar?val=https://h/v.tar&label_key=k",
            *("webdataset", "https://h/t-{0..3}.tar"),
            {"val": "https://h/v.tar", "label_key": "k"},
        ),
    ],
)
def test_a_spec_is_read_and_written(
    text: str, name: str, path: str, options: dict[str, str]
) -> None:
    found = Spec.parse(text)
    assert found == Spec(name, path, options)
    assert Spec.parse(str(found)) == found


@pytest.mark.parametrize("name", sorted({*DATASETS, "icons"} - {"webdataset"}))
def test_tars_alone_are_read_from_urls(name: str) -> None:
    with pytest.raises(OptionError) as error:
        open_dataset([f"{name}:s3://bucket/birds"])
    assert (error.value.option, error.value.value) == ("data", f"{name}:s3://bucket/birds")
    assert error.value.suggestion == (f"{name}:PATH",)


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    top = os.path.realpath(tmp_path)
    for text, wanted in {
        "icons": "icons",
        "folder:a": f"folder:{top}/a",
        "csv:a?image_root=b&label_column=c": f"csv:{top}/a?image_root={top}/b&label_column=c",
        "hf:ORG/NAME": "hf:ORG/NAME",
        "hf:here": f"hf:{top}/here",
        "webdataset:t-{0..1}.tar?val=v.tar": f"webdataset:{top}/t-{{0..1}}.tar?val={top}/v.tar",
        "webdataset:s3://b/{0..1}.tar": "webdataset:s3://b/{0..1}.tar",
    }.items():
        assert str(Spec.parse(text).absolute()) == wanted


def test_bad_options_of_a_spec() -> None:
    with expected(UnknownName, value="csv:a?label_colum=b") as caught:
        Spec.parse("csv:a?label_colum=b")
    assert "label_column" in caught.value.message
    for text in ("folder:a?label_column=b", "folder:a?seed=1"):
        with pytest.raises(UnknownName):
            Spec.parse(text)
    for text in ("folder:a?test_fraction=2", "folder:a?test_fraction=x", "csv:a?label_column="):
        with expected(OptionError, option="data", value=text):
            Spec.parse(text)


def test_options_of_the_command_line_become_part_of_the_specs() -> None:
    given = ("csv:a.csv", "csv:b.csv?label_column=y", "folder:c", "icons")
    spec = DataSpec(data=given, label_column="x", test_fraction=0.25)
    assert [Spec.parse(one).options for one in specs_of(spec)] == [
        {"label_column": "x", "test_fraction": "0.25"},
        {"label_column": "y", "test_fraction": "0.25"},
        {"test_fraction": "0.25"},
        {"test_fraction": "0.25"},
    ]
    for name in ("image_column", "label_key", "image_root", "test_fraction"):
        value = 0.2 if name == "test_fraction" else "k"
        with expected(UnusedOption, option=name):  # the data are a teacher's or a cache's
            specs_of(DataSpec(**{name: value}))
    with expected(UnusedOption, option="label_key", value="k"):
        specs_of(DataSpec(data=("folder:a",), label_key="k"))


def test_data_that_moved_keep_how_they_are_read() -> None:
    old = ["csv:/old.csv?label_column=a&image_root=/old", "folder:/o?test_fraction=0.2"]
    assert moved((), old) == old
    assert moved(["csv:/new.csv", "folder:/n"], old) == [
        "csv:/new.csv?label_column=a",
        "folder:/n?test_fraction=0.2",
    ]
    assert moved(["csv:/new.csv?label_column=b", "folder:/n"], old)[0] == (
        "csv:/new.csv?label_column=b"
    )
    assert moved(["folder:/n"], old) == ["folder:/n"]


# ---- a test split of one's own -------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three classes of twenty images, without splits."""
    for label in range(3):
        for number in range(20):
            write_image(tmp_path / "flat" / f"class {label}" / f"{number}.png", label, number)
    return tmp_path / "flat"


def test_test_fraction_holds_out_a_share_of_each_class(flat: Path) -> None:
    dataset = open_dataset(f"folder:{flat}?test_fraction=0.25", 0.2)
    for split, count in (("test", 5), ("val", 3), ("train", 12)):
        assert np.bincount(dataset.splits[split].labels).tolist() == [count] * 3
    keys = [key for samples in dataset.splits.values() for key in samples.keys]
    assert len(keys) == len(set(keys)) == 60
    before = dataset.splits["test"].keys
    shutil.rmtree(flat / "class 2")  # the choice of one class depends on no other
    again = open_dataset(f"folder:{flat}?test_fraction=0.25", 0.2).splits["test"].keys
    assert again == [key for key in before if "class 2" not in key]


def test_test_fraction_where_there_is_a_test_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert isinstance(open_error(f"folder:{tmp_path}?test_fraction=0.2"), UnusedOption)


def test_test_fraction_from_teacher_to_evaluation(flat: Path, tmp_path: Path) -> None:
    """Recorded with the run, found again for its cache, its student and after a move."""
    short = ("--epochs", 1, "--batch-size", 8, "--workers", 0)
    data = ("--data", f"folder:{flat}", "--test-fraction", 0.25, "--val-fraction", 0.2)
    fgkd("train-teacher", *data, *TEACHER, *short, "--output", tmp_path / "t")
    cache = ("--views", 1, "--workers", 0, "--output", tmp_path / "c")
    fgkd("cache-logits", "--teacher", tmp_path / "t", *cache)
    flat.rename(tmp_path / "moved")
    place = f"folder:{tmp_path / 'moved'}"
    student = ("train-student", "--cache", tmp_path / "c", "--data", place)
    fgkd(*student, *STUDENT, *short, "--output", tmp_path / "s")
    scores = library.evaluate([tmp_path / "t"], data=place, workers=0)
    assert scores[0].metrics.num_images == 15
    assert library.evaluate([tmp_path / "s"], workers=0)[0].metrics.num_images == 15
    assert len(library.CachedViews(tmp_path / "c", place)) == 36


# ---- unlabelled images ---------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, tiny_data: Path) -> Path:
    """Ten images without labels at two depths, and a file that is no image."""
    for number in range(10):
        name = f"{number}.png" if number % 2 else f"deep/er/{number}.png"
        write_image(tmp_path / "photos" / name, number, number)
    (tmp_path / "photos" / "notes.txt").write_text("of the field trip")
    return tmp_path / "photos"


def test_unlabelled_images_join_a_labelled_dataset(photos: Path, tiny_data: Path) -> None:
    dataset = open_dataset([f"folder:{tiny_data}", f"unlabeled:{photos}"])
    train = dataset.splits["train"]
    assert len(dataset.classes) == 8
    assert (len(train), int((train.labels < 0).sum())) == (107, 10)
    assert train.keys[-10:] == sorted(
        f"unlabeled/{'' if n % 2 else 'deep/er/'}{n}.png" for n in range(10)
    )
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 107,
        "val": 32,
        "test": 32,
    }
    assert any("notes.txt" in note for note in dataset.notes)


def test_unlabelled_images_alone(photos: Path, tmp_path: Path) -> None:
    assert isinstance(open_error(f"unlabeled:{photos}"), OptionError)
    (tmp_path / "empty").mkdir()
    assert isinstance(open_error("icons", f"unlabeled:{tmp_path / 'empty'}"), DatasetError)


def test_unlabelled_images_are_learned_from_the_teacher_alone(
    photos: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ("--data", f"folder:{tiny_data}", "--data", f"unlabeled:{photos}")
    make = ("cache-logits", "--teacher", tiny_teacher, *data, "--views", 1, "--workers", 0)
    fgkd(*make, "--output", tmp_path / "c")
    assert "97 train (and 10 without a label)" in capsys.readouterr().out
    short = ("--epochs", 1, "--batch-size", 107, "--workers", 0, *STUDENT)
    for name, weights in (("both", ()), ("labels", ("--distill-loss-weight", 0))):
        out = ("--output", tmp_path / name)
        fgkd("train-student", "--cache", tmp_path / "c", *short, *weights, *out)
    both, labels = (rows(tmp_path / name)[0] for name in ("both", "labels"))
    assert both["task_loss"] == pytest.approx(labels["loss"], rel=1e-5)
    assert both["distill_loss"] > 0


def test_without_a_teacher_unlabelled_images_are_refused(
    photos: Path, tiny_data: Path, tmp_path: Path, fails: Fails
) -> None:
    data = ("--data", f"folder:{tiny_data}", "--data", f"unlabeled:{photos}")
    for command in (
        ("train-teacher", *TEACHER),
        ("train-student", *STUDENT, "--distillation", "none"),
    ):
        error = fails(*command, *data, "--output", tmp_path / "x").error
        assert isinstance(error, OptionError)
        assert error.value == f"unlabeled:{photos}"
