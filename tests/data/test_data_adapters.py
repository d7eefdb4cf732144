"""The datasets: every adapter on a miniature of its real layout, and what each must refuse."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import (
    BIRDS,
    FOODS,
    LISTED_WRITERS,
    SYNSETS,
    edit,
    open_error,
    unpacked_icons,
    write_cub,
    write_dogs,
    write_folder,
    write_foodx,
    write_image,
    write_mat_list,
)
from helpers.official_datasets import FOLDERS, OFFICIAL_WRITERS
from PIL import Image

from fgkd.data import DATASETS, open_dataset, with_boxes
from fgkd.data.decoding import decode_rgb
from fgkd.errors import FgkdError

REPO = Path(__file__).parents[2]
WRITERS = LISTED_WRITERS | OFFICIAL_WRITERS


@pytest.fixture(scope="session")
def icons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_icons(tmp_path_factory)


# ---- every dataset -------------------------------------------------------------------------


def test_every_dataset_has_a_miniature() -> None:
    assert set(WRITERS) | {"icons"} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_contract(name: str, tmp_path: Path, icons_dir: Path, any_flowers: None) -> None:
    root = icons_dir
    if name != "icons":
        root = tmp_path / "data set" / FOLDERS.get(name, "root")
        WRITERS[name](root)
    dataset = open_dataset([f"{name}:{root}"])
    assert (dataset.name, dataset.domains) == (name, [name])
    assert {"train", "val", "test"} == set(dataset.splits)
    assert len(set(dataset.classes)) == len(dataset.classes)
    all_keys = [key for samples in dataset.splits.values() for key in samples.keys]
    assert len(set(all_keys)) == len(all_keys)
    for samples in dataset.splits.values():
        assert samples.labels.dtype == samples.domains.dtype == np.int64
        assert set(samples.labels) == set(range(len(dataset.classes)))
        assert not samples.domains.any()
        for key, path in zip(samples.keys, samples.paths, strict=True):
            assert path == f"{os.path.abspath(root)}/{key}"
        for i in range(0, len(samples), 1 + len(samples) // 10):
            image = decode_rgb(samples.read(i), samples.keys[i])
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
    again = open_dataset([f"{name}:{root}"])
    assert all(again.splits[s].keys == dataset.splits[s].keys for s in dataset.splits)


def test_import_is_light() -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'scipy', 'PIL'}"
    code = f"import sys, fgkd.data; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


# ---- specs ---------------------------------------------------------------------------------


def test_spec_errors(tmp_path: Path) -> None:
    error = open_error("cubs:/x")
    assert "unknown dataset 'cubs'" in error.message
    assert "did you mean cub" in error.message
    assert all(name in error.message for name in DATASETS)
    assert "needs a path" in open_error("cub").message
    assert str(tmp_path / "no") in open_error(f"cub:{tmp_path}/no").message
    assert "no dataset" in open_error().message


def test_path_may_hold_colons(tmp_path: Path) -> None:
    write_folder(tmp_path / "a:b")
    assert len(open_dataset([f"folder:{tmp_path}/a:b"]).splits["train"]) == 12


# ---- CUB -----------------------------------------------------------------------------------


def test_cub(tmp_path: Path) -> None:
    write_cub(tmp_path / "CUB_200_2011")
    inner = DATASETS["cub"](tmp_path / "CUB_200_2011")
    dataset = DATASETS["cub"](tmp_path)  # the archive's outer folder was kept
    assert dataset.classes == list(BIRDS)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert (len(train), len(test)) == (12, 6)
    assert train.keys == inner.splits["train"].keys
    first = "images/001.Black_footed_Albatross/Black_footed_Albatross_0000_796001.jpg"
    assert train.keys[0] == first
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    boxes = with_boxes(dataset).splits["train"].boxes
    assert boxes is not None
    assert boxes.shape == (12, 4)
    assert boxes[4].tolist() == [7.0, 2.0, 20.0, 25.0]  # image id 7
    with Image.open(io.BytesIO(train.read(3))) as image:  # id 4: colour; id 5 is a test image
        assert image.mode == "RGB"


def test_cub_labels_follow_sorted_class_ids(tmp_path: Path) -> None:
    write_cub(tmp_path)
    for name in ("classes.txt", "image_class_labels.txt"):  # ids 1, 2, 30: not contiguous
        path = tmp_path / name
        path.write_text(path.read_text().replace(" 3\n", " 30\n").replace("3 003.", "30 003."))
    dataset = DATASETS["cub"](tmp_path)
    assert set(dataset.splits["train"].labels) == {0, 1, 2}
    assert dataset.classes == list(BIRDS)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "2 001", "two 001", "images.txt, line 2: expected a new '<id> <value>'"),
        ("images.txt", "2 001", "1 001", "images.txt, line 2"),
        ("images.txt", "1 001.Black_footed_Albatross/", "1 ../../../", "unsafe file name"),
        ("image_class_labels.txt", "3 1\n", "", "no line for 1 ids of images.txt, as 3"),
        ("image_class_labels.txt", "3 1\n", "3 9\n", "image id 3 has class '9'"),
        ("train_test_split.txt", "3 1\n", "3 2\n", "split '2'"),
    ],
)
def test_cub_damaged_list(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    write_cub(tmp_path)
    edit(tmp_path / file, old, new)
    assert message in open_error(f"cub:{tmp_path}").message


@pytest.mark.parametrize("missing", ["images", "classes.txt", "train_test_split.txt"])
def test_cub_missing_file(tmp_path: Path, missing: str) -> None:
    write_cub(tmp_path)
    (tmp_path / missing).rename(tmp_path / "gone")
    error = open_error(f"cub:{tmp_path}")
    assert missing in error.message
    assert "CUB_200_2011.tgz" in error.message


def test_repeated_and_missing_image(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train = DATASETS["cub"](tmp_path).splits["train"]
    os.unlink(train.paths[0])  # found when it is read, so that loading need not open every file
    with pytest.raises(FgkdError, match="0000_796001"):
        DATASETS["cub"](tmp_path).splits["train"].read(0)
    rows = (tmp_path / "images.txt").read_text().splitlines()
    rows[1] = rows[0].replace("1 ", "2 ", 1)
    (tmp_path / "images.txt").write_text("\n".join(rows))
    assert "twice" in open_error(f"cub:{tmp_path}").message


# ---- Stanford Dogs -------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [".", "splits"])
def test_dogs(tmp_path: Path, lists: str) -> None:
    write_dogs(tmp_path, lists=lists)
    dataset = DATASETS["dogs"](tmp_path)
    assert dataset.classes == list(SYNSETS)
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (12, 6)
    assert dataset.splits["test"].keys[0] == "Images/n02085620-Chihuahua/n02085620_10078.jpg"
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "ImageNet" in dataset.notes[0]


def test_dogs_errors(tmp_path: Path) -> None:
    write_dogs(tmp_path)
    path = tmp_path / "train_list.mat"
    write_mat_list(path, [(f"{SYNSETS[1]}/a.jpg", 1)])  # its folder is the second
    assert f"labels {SYNSETS[1]}/a.jpg 1" in open_error(f"dogs:{tmp_path}").message
    write_mat_list(path, [(f"{SYNSETS[0]}/../../a.jpg", 1)])
    assert "unsafe file name" in open_error(f"dogs:{tmp_path}").message
    path.write_bytes(path.read_bytes()[:200])
    assert f"cannot read {path}" in open_error(f"dogs:{tmp_path}").message
    path.unlink()
    error = open_error(f"dogs:{tmp_path}").message
    assert "train_list.mat or splits/train_list.mat" in error


# ---- FoodX-251 -----------------------------------------------------------------------------


@pytest.mark.parametrize("kaggle", [False, True])
def test_foodx(tmp_path: Path, kaggle: bool) -> None:
    write_foodx(tmp_path, kaggle=kaggle)
    dataset = DATASETS["foodx"](tmp_path)
    assert dataset.classes == list(FOODS)
    assert dataset.splits["train"].keys[:2] == [
        "train_set/train_000000.jpg",
        "train_set/train_000001.jpg",
    ]
    assert dataset.splits["train"].labels.tolist() == [0, 1, 2] * 4
    assert dataset.splits["test"].keys[0] == "val_set/val_000000.jpg"  # the official val
    assert "val" not in dataset.splits
    assert "never released" in dataset.notes[0]


@pytest.mark.parametrize("row", ["train_000001.jpg,251", "train_000001.jpg", "a,b"])
def test_foodx_bad_row(tmp_path: Path, row: str) -> None:
    write_foodx(tmp_path)
    edit(tmp_path / "annot/train_info.csv", "train_000001.jpg,1", row)
    error = open_error(f"foodx:{tmp_path}")
    assert "train_info.csv, line 2: expected '<image>,<label>'" in error.message


# ---- ImageFolder ---------------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/class 0/.im.jpg").touch()
    (tmp_path / "train/class 0/Thumbs.db").touch()
    write_image(tmp_path / "train/class 1/deeper/a.jpeg", 1, 99)
    dataset = DATASETS["folder"](tmp_path)
    train = dataset.splits["train"]
    assert dataset.classes == ["class 0", "class 1", "class 2"]
    assert train.keys == sorted(train.keys)
    assert train.keys[:2] == ["train/class 0/im.0.png", "train/class 0/im.1.JPG"]
    assert "train/class 1/deeper/a.jpeg" in train.keys
    assert len(train) == 13
    assert "ignored 1 files" in dataset.notes[0]
    assert "Thumbs.db" in dataset.notes[0]


def test_folder_with_test_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, train=0, val=0)
    assert list(open_dataset([f"folder:{tmp_path}"]).splits) == ["test"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_folder_missing_class(tmp_path: Path, split: str) -> None:
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / split / "class 1")
    error = open_error(f"folder:{tmp_path}")
    assert f"class folder 'class 1' is missing in split {split}" in error.message


def test_folder_empty(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "val/class 1").iterdir():
        file.unlink()
    (tmp_path / "val/class 1/notes.txt").touch()
    assert "val/class 1 holds no image" in open_error(f"folder:{tmp_path}").message
    shutil.rmtree(tmp_path)
    (tmp_path / "train").mkdir(parents=True)
    assert "no class folders" in open_error(f"folder:{tmp_path}").message


def test_folder_without_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    error = open_error(f"folder:{tmp_path}/train")  # class folders directly
    assert "no train, val or test folder" in error.message
    assert "train/<class>/*.jpg" in error.message
