"""NABirds, and the datasets of torchvision's readers: labels and files are those of the readers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import edit, open_error
from helpers.official_datasets import (
    BREEDS,
    CARS,
    FOLDERS,
    LEAVES,
    OFFICIAL_WRITERS,
    TREE,
    VARIANTS,
    write_nabirds,
)
from scipy.io import loadmat, savemat
from torchvision import datasets

from fgkd.data import DATASETS, open_dataset
from fgkd.data.decoding import decode_rgb
from fgkd.errors import UnreadableImage

READERS = {
    "aircraft": (datasets.FGVCAircraft, {"train": "train", "val": "val", "test": "test"}),
    "cars": (datasets.StanfordCars, {"train": "train", "test": "test"}),
    "pets": (datasets.OxfordIIITPet, {"train": "trainval", "test": "test"}),
    "flowers": (datasets.Flowers102, {"train": "train", "val": "val", "test": "test"}),
    "food101": (datasets.Food101, {"train": "train", "test": "test"}),
}


def write(name: str, tmp_path: Path) -> Path:
    root = tmp_path / FOLDERS.get(name, "nabirds")
    OFFICIAL_WRITERS[name](root)
    return root


# ---- torchvision's -------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_as_torchvision_reads_it(name: str, tmp_path: Path, any_flowers: None) -> None:
    """The same images in the same order with the same labels, whichever folder is named."""
    root = write(name, tmp_path)
    dataset = DATASETS[name](root)
    reader_class, splits = READERS[name]
    assert set(dataset.splits) == set(splits)
    for split, theirs in splits.items():
        reader: Any = reader_class(tmp_path, split=theirs)
        samples, outer = dataset.splits[split], DATASETS[name](tmp_path).splits[split]
        assert dataset.classes == reader.classes
        assert (outer.keys, outer.paths) == (samples.keys, samples.paths)
        assert len(samples) == len(reader)
        for i in range(0, len(reader), 1 + len(reader) // 20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # it leaves GIFs open
                image, label = reader[i]
            assert samples.labels[i] == label
            want = np.asarray(image.convert("RGB"))
            assert np.array_equal(decode_rgb(samples.read(i), samples.keys[i]), want)


def test_names_and_keys(tmp_path: Path, any_flowers: None) -> None:
    opened = {name: DATASETS[name](write(name, tmp_path)) for name in READERS}
    assert {name: d.splits["train"].keys[0] for name, d in opened.items()} == {
        "aircraft": "data/images/0034965.jpg",
        "cars": "cars_train/00001.jpg",
        "pets": "images/Abyssinian_1.jpg",
        "flowers": "jpg/image_00001.jpg",
        "food101": "images/apple_pie/1005649.jpg",
    }
    assert opened["aircraft"].classes == list(VARIANTS)
    assert opened["cars"].classes == list(CARS)
    assert opened["pets"].classes == [" ".join(b.title().split("_")) for b in BREEDS]
    assert opened["flowers"].classes[:2] == ["pink primrose", "hard-leaved pocket orchid"]
    assert "not cleaned" in opened["food101"].notes[0]
    assert not any(d.notes for name, d in opened.items() if name != "food101")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("aircraft", "data/variants.txt"),
        ("aircraft", "data/images_variant_val.txt"),
        ("cars", "devkit/cars_meta.mat"),
        ("cars", "cars_test_annos_withlabels.mat"),
        ("cars", "cars_train"),
        ("pets", "annotations/trainval.txt"),
        ("pets", "images"),
        ("flowers", "setid.mat"),
        ("flowers", "jpg"),
        ("food101", "meta/test.json"),
        ("food101", "images"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "wrong type"])
def test_damage_is_explained(
    name: str, file: str, how: str, tmp_path: Path, any_flowers: None
) -> None:
    """Each is refused with the layout that is expected."""
    root = write(name, tmp_path)
    path = root / file
    if how == "wrong type" or path.is_dir():
        path.rename(root / "gone")
        if how == "wrong type" and not (root / "gone").is_dir():
            path.mkdir()
    elif how == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(b"" if how == "empty" else data[: len(data) // 2 - 3])
    error = open_error(f"{name}:{root}")
    assert str(root) in error.message
    layout = DATASETS[name].__self__.layout  # type: ignore[attr-defined]
    assert layout in error.message or "a split without images" in error.message
    assert "download" not in error.message


def test_another_folder_is_refused(tmp_path: Path) -> None:
    error = open_error(f"cars:{tmp_path}")
    assert f"no folder stanford_cars in {tmp_path}" in error.message
    assert "devkit/{cars_meta,cars_train_annos}.mat" in error.message


def test_flowers_must_be_the_distributed_lists(tmp_path: Path) -> None:
    assert "corrupted" in open_error(f"flowers:{write('flowers', tmp_path)}").message


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("aircraft", "data/images_variant_train.txt", "737-200", "747-100", "KeyError"),
        ("aircraft", "data/images_variant_train.txt", "0034965 ", "../../x ", "unsafe file name"),
        ("aircraft", "data/images_variant_train.txt", "0034965 ", "/etc/x ", "unsafe file name"),
        ("aircraft", "data/images_variant_train.txt", "0034972 ", "0034965 ", "twice"),
        ("pets", "annotations/trainval.txt", "_1 1 1 1", "_1 0 1 1", "classes"),
        ("pets", "annotations/trainval.txt", "_1 1 1 1", "_1 1 1", "ValueError"),
        ("pets", "annotations/test.txt", "Abyssinian", "Bombay", "classes of its own"),
        ("food101", "meta/train.json", "apple_pie/1005649", "../../1005649", "unsafe file name"),
        ("food101", "meta/train.json", '"apple_pie"', '"pie"', "classes of its own"),
    ],
)
def test_damaged_line(
    name: str, file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    root = write(name, tmp_path)
    edit(root / file, old, new)
    assert message in open_error(f"{name}:{root}").message


def test_cars_label_out_of_range(tmp_path: Path) -> None:
    root = write("cars", tmp_path)
    path = root / "devkit/cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    rows["class"][0, 2] = np.uint8(9)
    savemat(path, {"annotations": rows})
    what = open_error(f"cars:{root}").message
    assert "cars_train/00003.jpg (train) has label 8 of 3 classes" in what


def test_pets_damaged_jpeg_is_found_when_read(tmp_path: Path) -> None:
    root = write("pets", tmp_path)
    path = root / "images/Egyptian_Mau_1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    samples = DATASETS["pets"](root).splits["train"]
    row = samples.keys.index("images/Egyptian_Mau_1.jpg")
    with pytest.raises(UnreadableImage, match="cannot decode image images/Egyptian_Mau_1"):
        decode_rgb(samples.read(row), samples.keys[row])


def test_food101_is_json(tmp_path: Path) -> None:
    root = write("food101", tmp_path)
    for value in ([], {"apple_pie": 3}, {"apple_pie": []}):
        (root / "meta/train.json").write_text(json.dumps(value))
        assert str(root) in open_error(f"food101:{root}").message


# ---- NABirds -------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [False, True])
def test_nabirds(tmp_path: Path, outer: bool) -> None:
    root = write("nabirds", tmp_path)
    dataset = DATASETS["nabirds"](tmp_path if outer else root)
    assert dataset.classes == [TREE[leaf] for leaf in LEAVES]  # no inner node, in numeric order
    table = {
        name: dict(line.split(" ", 1) for line in (root / f"{name}.txt").read_text().splitlines())
        for name in ("images", "image_class_labels", "train_test_split")
    }
    for split, flag in (("train", "1"), ("test", "0")):
        ids = [id_ for id_ in sorted(table["images"]) if table["train_test_split"][id_] == flag]
        samples = dataset.splits[split]
        assert samples.keys == [f"images/{table['images'][id_]}" for id_ in ids]
        want = [LEAVES.index(table["image_class_labels"][id_]) for id_ in ids]
        assert samples.labels.tolist() == want
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (12, 6)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "-", " ", "image_class_labels.txt has no line for 1 ids"),
        ("images.txt", "0295/", "../../", "unsafe file name"),
        ("image_class_labels.txt", " 295", " 296", "has class '296'"),
        ("image_class_labels.txt", " 295", "", "line 1: expected a new '<id> <value>'"),
        ("train_test_split.txt", " 1", " yes", "split 'yes'"),
        ("classes.txt", "295 Black", "x Black", "classes.txt, line 4"),
    ],
)
def test_nabirds_damaged_list(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    write_nabirds(tmp_path)
    edit(tmp_path / file, old, new)
    assert message in open_error(f"nabirds:{tmp_path}").message


@pytest.mark.parametrize("file", ["images", "classes.txt", "images.txt", "train_test_split.txt"])
@pytest.mark.parametrize("how", ["missing", "empty", "wrong type", "bytes"])
def test_nabirds_damaged_file(tmp_path: Path, file: str, how: str) -> None:
    write_nabirds(tmp_path)
    path = tmp_path / file
    path.rename(tmp_path / "gone")
    if how in ("empty", "bytes") or (how == "wrong type" and file == "images"):
        path.write_bytes(b"\xff\xfe\0" if how == "bytes" else b"")
    elif how == "wrong type":
        path.mkdir()
    assert str(tmp_path) in open_error(f"nabirds:{tmp_path}").message


def test_nabirds_carves_a_val_split(tmp_path: Path) -> None:
    write_nabirds(tmp_path)
    assert set(open_dataset([f"nabirds:{tmp_path}"]).splits["val"].labels) == {0, 1, 2}
