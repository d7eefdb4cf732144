"""`csv:FILE`: headers and none, separators, paths and labels as people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.datasets import open_error, write_image
from helpers.failures import Fails
from helpers.runs import STUDENT, TEACHER, fgkd

import fgkd as library
from fgkd.data import open_dataset
from fgkd.errors import (
    DatasetError,
    MissingDataset,
    OptionError,
    UnreadableFile,
    UnusedOption,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of three kinds, a.png to f.png, in a folder of their own."""
    for i, name in enumerate("abcdef"):
        write_image(tmp_path / "photos" / f"{name}.png", i // 2, i)
    return tmp_path / "photos"


def written(photos: Path, text: str, encoding: str = "utf-8") -> str:
    (photos.parent / "labels.csv").write_bytes(text.encode(encoding))
    return f"csv:{photos.parent / 'labels.csv'}"


PLAIN = "".join(
    f"photos/{name}.png,{label},{split}\n"
    for name, label, split in zip(
        "abcd", ("ant", "ant", "bee", "bee"), ("train", "val", "train", "test"), strict=True
    )
)
FORMS = {
    "no header": PLAIN,
    "usual names": "image,label,split\n" + PLAIN,
    "other names, other order": (
        "split;id;Species;File_Name\ntrain;1;ant;photos/a.png\nVal;2;ant;photos/b.png\n"
        "TRAINING;3;bee;photos/c.png\ntesting;4;bee;photos/d.png\n"
    ),
    "tabs": "path\tclass\tset\n" + PLAIN.replace(",", "\t"),
    "bars and blanks": "path | class | subset\n" + PLAIN.replace(",", " | ") + "\n\n",
    "quotes": 'image,label,split\n"photos/a.png","ant","train"\n' + PLAIN.partition("\n")[2],
    "carriage returns": ("image,label,split\n" + PLAIN).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_form_gives_one_dataset(form: str, encoding: str, photos: Path) -> None:
    dataset = open_dataset(written(photos, FORMS[form], encoding))
    assert dataset.classes == ["ant", "bee"]
    assert {s: x.keys for s, x in dataset.splits.items()} == {
        "train": ["photos/a.png", "photos/c.png"],
        "val": ["photos/b.png"],
        "test": ["photos/d.png"],
    }
    assert dataset.splits["train"].labels.tolist() == [0, 1]
    assert dataset.splits["test"].read(0) == (photos / "d.png").read_bytes()


def test_integer_labels_are_sorted_as_numbers_and_empty_ones_are_unknown(photos: Path) -> None:
    rows = zip("abcdef", [10, 2, 10, 33, "", 2], strict=True)
    text = "image,label\n" + "".join(f"{name}.png,{label}\n" for name, label in rows)
    dataset = open_dataset(f"{written(photos, text)}?image_root={photos}", 0.0)
    assert dataset.classes == ["2", "10", "33"]
    assert dataset.splits["train"].labels.tolist() == [1, 0, 1, 2, -1, 0]
    assert dataset.splits["train"].keys[0] == "a.png"
    assert dataset.notes == ["1 images have no label"]


def test_absolute_paths_and_named_columns(photos: Path) -> None:
    text = f"what,where,image\nant,{photos}/a.png,1\nbee,{photos}/b.png,2\n"
    spec = f"{written(photos, text)}?image_column=where&label_column=what"
    dataset = open_dataset(spec, 0.0)
    assert dataset.splits["train"].keys == ["photos/a.png", "photos/b.png"]
    elsewhere = photos.parent / "sub"
    elsewhere.mkdir()
    shutil.move(photos.parent / "labels.csv", elsewhere / "labels.csv")
    moved = open_dataset(spec.replace("labels.csv", "sub/labels.csv"), 0.0)
    assert moved.splits["train"].keys == [f"{photos}/{n}.png".lstrip("/") for n in "ab"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("image,label\na.png,ant\ngone.png,bee\n", 3),
        ("image,label\na.png,ant\na.png,ant\n", 3),
        ("image,label,split\na.png,ant,nowhere\n", 2),
        ("image,label\n,ant\n", 2),
        ("image,label\n", None),
        ("", None),
        ("image,label\na.png,\n", None),
    ],
)
def test_wrong_lines_are_named(text: str, line: int | None, photos: Path) -> None:
    error = open_error(f"{written(photos, text)}?image_root={photos}")
    assert isinstance(error, DatasetError)
    assert error.line == line


def test_files_and_columns_that_are_not_there(photos: Path) -> None:
    spec = written(photos, "image,label\na.png,ant\n")
    unknown = open_error(f"{spec}?label_column=lable")
    assert isinstance(unknown, OptionError)
    assert unknown.option == "label_column"
    assert "label" in unknown.message
    undecided = open_error(written(photos, "x,label\na.png,ant") + "?label_column=label")
    assert isinstance(undecided, OptionError)
    assert undecided.option == "image_column"
    assert isinstance(open_error(f"csv:{photos}/gone.csv"), MissingDataset)
    assert isinstance(open_error(f"csv:{photos}/a.png"), UnreadableFile)


def test_options_of_the_commands_reach_the_file_and_its_run(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, cached, learned from and evaluated by the recorded spec, from another folder."""
    lines = ["where,kind,part"]
    for path in sorted(tiny_data.rglob("*.png")):
        part, kind = path.relative_to(tiny_data).parts[:2]
        lines.append(f"{path.relative_to(tiny_data)},{kind},{part}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    columns = ("--image-column", "where", "--label-column", "kind", "--split-column", "part")
    data = ("--data", f"csv:{tmp_path / 'list.csv'}", *columns, "--image-root", tiny_data)
    short = ("--epochs", 1, "--batch-size", 16, "--workers", 0)
    fgkd("train-teacher", *data, *TEACHER, *short, "--output", tmp_path / "t")
    assert "97 train, 32 val, 32 test images" in capsys.readouterr().out
    cache = ("--views", 1, "--workers", 0, "--output", tmp_path / "c")
    fgkd("cache-logits", "--teacher", tmp_path / "t", *cache)
    fgkd("train-student", "--cache", tmp_path / "c", *STUDENT, *short, "--output", tmp_path / "s")
    scores = library.evaluate([tmp_path / "t", tmp_path / "s"], workers=0)
    assert [one.metrics.num_images for one in scores] == [32, 32]
    views = library.CachedViews(tmp_path / "c")
    assert len(views) == 97


def test_column_options_without_a_csv_file_are_refused(
    tiny_data: Path, tmp_path: Path, fails: Fails
) -> None:
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER)
    said = fails(*command, "--label-column", "x", "--output", tmp_path / "t")
    assert isinstance(said.error, UnusedOption)
