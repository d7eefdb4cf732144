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
from fgkd.errors import (
    DatasetError,
    NoTrainSplit,
    OptionError,
    UndecodableName,
    UnreadableFile,
)

REPO = Path(__file__).parents[2]
WRITERS = LISTED_WRITERS | OFFICIAL_WRITERS


@pytest.fixture(scope="session")
def icons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_icons(tmp_path_factory)


# ---- every dataset -------------------------------------------------------------------------


def test_every_dataset_has_a_miniature() -> None:
    assert set(WRITERS) | {"icons", "unlabeled"} == set(DATASETS)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "unlabeled"])
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
    with pytest.raises(UnreadableFile, match="0000_796001"):
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
    (tmp_path / "train/class 0/notes.txt").touch()
    write_image(tmp_path / "train/class 1/deeper/a.jpeg", 1, 99)
    dataset = DATASETS["folder"](tmp_path)
    train = dataset.splits["train"]
    assert dataset.classes == ["class 0", "class 1", "class 2"]
    assert train.keys == sorted(train.keys)
    assert train.keys[:2] == ["train/class 0/im.0.png", "train/class 0/im.1.JPG"]
    assert "train/class 1/deeper/a.jpeg" in train.keys
    assert len(train) == 13
    assert "ignored 1 files" in dataset.notes[0]
    assert "notes.txt" in dataset.notes[0]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Validation", "VAL"])
@pytest.mark.parametrize("test", ["test", "testing", "Test"])
def test_folder_names_of_splits(val: str, test: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / val)
    (tmp_path / "test").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / test)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert [len(dataset.splits[s]) for s in ("train", "val", "test")] == [12, 6, 6]
    assert dataset.splits["val"].keys[0] == f"{val}/class 0/im.0.png"
    assert dataset.splits["test"].read(0)
    assert dataset.notes == []


def test_folder_that_is_not_read_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "extra" / "class 0").mkdir(parents=True)
    (tmp_path / "val").rename(tmp_path / "check")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.notes == [f"not read: the folders check/, extra/ in {tmp_path}"]
    (tmp_path / "check").rename(tmp_path / "val")
    (tmp_path / "dev").mkdir()
    error = open_error(f"folder:{tmp_path}")
    assert isinstance(error, DatasetError)
    assert "dev, val" in error.message


def test_folder_with_names_of_another_encoding(tmp_path: Path) -> None:
    write_folder(tmp_path)
    odd = tmp_path / "train" / "Gr\udcfc\udcdfe"  # Latin-1, of a zip archive from elsewhere
    next((tmp_path / "train").iterdir()).rename(odd)
    with pytest.raises(UndecodableName) as error:
        open_dataset(f"folder:{tmp_path}")
    assert error.value.path == str(tmp_path)
    assert (tmp_path / error.value.key).is_file()


def test_data_in_a_folder_of_another_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r\udcfc").mkdir()
    write_folder(tmp_path / "r\udcfc" / "data")
    monkeypatch.chdir(tmp_path / "r\udcfc")
    with pytest.raises(OptionError) as error:
        open_dataset("folder:data")
    assert (error.value.option, error.value.value) == ("data", "data")
    (tmp_path / "link").symlink_to(tmp_path / "r\udcfc" / "data")
    assert len(open_dataset(f"folder:{tmp_path}/link").splits["train"]) == 12


def test_folder_with_test_alone(tmp_path: Path) -> None:
    """It can be evaluated on, and not trained on."""
    write_folder(tmp_path, train=0, val=0)
    dataset = open_dataset([f"folder:{tmp_path}"])
    assert list(dataset.splits) == ["test"]
    with pytest.raises(NoTrainSplit) as error:
        _ = dataset.train
    assert error.value.path == f"folder:{tmp_path}"


@pytest.mark.parametrize("split", ["val", "test"])
def test_folder_whose_split_lacks_a_class(tmp_path: Path, split: str) -> None:
    """No folder, or an empty one: read, and said."""
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / split / "class 1")
    for _ in range(2):
        dataset = open_dataset(f"folder:{tmp_path}")
        assert dataset.classes == ["class 0", "class 1", "class 2"]
        assert sorted(set(dataset.splits[split].labels.tolist())) == [0, 2]
        (note,) = dataset.notes
        assert "no images of 1 classes, as class 1" in note
        (tmp_path / split / "class 1").mkdir(exist_ok=True)


def test_folder_whose_split_has_another_class(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "train/class 1").iterdir():
        file.unlink()
    error = open_error(f"folder:{tmp_path}")
    assert isinstance(error, DatasetError)
    assert "'class 1'" in error.message


def test_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir(parents=True)
    assert isinstance(open_error(f"folder:{tmp_path}"), DatasetError)
    (tmp_path / "train/a").mkdir()
    assert isinstance(open_error(f"folder:{tmp_path}"), DatasetError)
    write_image(tmp_path / "train/a/x.png", 0, 0)
    assert isinstance(open_error(f"folder:{tmp_path}"), OptionError)  # one class
    write_image(tmp_path / "train/b/x.png", 0, 0)
    (tmp_path / "val").mkdir()
    dataset = open_dataset(f"folder:{tmp_path}", 0.5)
    assert "split val has no images" in dataset.notes[0]


@pytest.mark.parametrize("junk", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "empty"])
def test_folder_junk_is_no_class(junk: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / junk).mkdir()
    (tmp_path / "train/class 0/@eaDir").mkdir()
    if junk != "empty":
        write_image(tmp_path / "train" / junk / "x.jpg", 0, 0)
    write_image(tmp_path / "train/class 0/@eaDir/x.jpg", 0, 0)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert len(dataset.classes) == 3
    assert len(dataset.splits["train"]) == 12


@pytest.mark.parametrize(
    "kind", ["webp", "bmp", "tiff", "tif", "gif", "ppm", "jp2", "jfif", "WEBP"]
)
def test_folder_reads_every_type_that_is_decoded(kind: str, tmp_path: Path) -> None:
    """As Pillow reads it: of an animation, the first frame."""
    write_folder(tmp_path)
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    path = tmp_path / "train" / "class 0" / f"x.{kind}"
    more = {"save_all": True, "append_images": frames[1:]} if kind == "gif" else {}
    frames[0].save(path, **more)
    train = open_dataset(f"folder:{tmp_path}").splits["train"]
    row = train.keys.index(f"train/class 0/x.{kind}")
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_rgb(train.read(row), path.name), wanted)
    assert wanted[5, 5, 0] > 200 > 60 > wanted[5, 5, 2]


def test_folder_without_splits(tmp_path: Path) -> None:
    """Class folders are the train split, of which val is carved; that is said."""
    write_folder(tmp_path, train=10)
    dataset = open_dataset(f"folder:{tmp_path}/train")
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {
        "train": 27,
        "val": 3,
    }
    assert dataset.splits["train"].keys[0].startswith("class 0/")
    assert "no split folders" in dataset.notes[0]
