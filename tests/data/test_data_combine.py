"""Validation splits carved by key, and unions of datasets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import (
    BIRDS,
    SYNSETS,
    open_error,
    unpacked_icons,
    write_cub,
    write_dogs,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd.data import (
    DATASETS,
    Dataset,
    Samples,
    icons,
    open_dataset,
    split_validation,
    union,
    with_boxes,
)

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def icons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_icons(tmp_path_factory)


def make(keys: list[str], labels: list[int]) -> Dataset:
    samples = Samples(keys, np.array(labels), np.zeros(len(keys), np.int64), keys)
    return Dataset("made", [str(i) for i in range(max(labels) + 1)], ["made"], {"train": samples})


def val_keys(dataset: Dataset) -> set[str]:
    return set(dataset.splits["val"].keys)


def test_carving_is_pinned() -> None:
    keys = [f"images/{i:03d}.jpg" for i in range(40)]
    carved = split_validation(make(keys, [i % 4 - 1 for i in range(40)]), 0.2)
    numbers = [int(key[7:10]) for key in carved.splits["val"].keys]
    assert numbers == [6, 7, 8, 13, 23, 24, 33, 38]
    assert sorted(numbers, key=lambda i: i % 4) != numbers  # train's order, not by class
    assert np.bincount(carved.splits["val"].labels + 1).tolist() == [2, 2, 2, 2]  # -1 is a class
    assert carved.splits["train"].keys == [key for key in keys if key not in val_keys(carved)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 99),
)
def test_carving_properties(sizes: list[int], fraction: float, seed: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    keys = [f"{label}/{i}" for i, label in enumerate(labels)]
    carved = split_validation(make(keys, labels), fraction)
    held_out = val_keys(carved) if "val" in carved.splits else set()
    assert set(carved.splits["train"].keys) == set(keys) - held_out
    for label, size in enumerate(sizes):
        num_val = sum(key.startswith(f"{label}/") for key in held_out)
        assert num_val == min(max(round(fraction * size), 1), size - 1)
    # Neither the order nor the other classes matter.
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    shuffled = make([keys[i] for i in order], [labels[i] for i in order])
    assert not held_out or val_keys(split_validation(shuffled, fraction)) == held_out
    alone = [key for key in keys if key.startswith("0/")]
    if sizes[0] > 1:
        first = val_keys(split_validation(make(alone, [0] * len(alone)), fraction))
        assert first == {key for key in held_out if key.startswith("0/")}


def test_carving_leaves_alone(tmp_path: Path) -> None:
    write_folder(tmp_path)
    dataset = DATASETS["folder"](tmp_path)
    assert split_validation(dataset, 0.5) is dataset  # it has a val split
    bare = make(["a", "b"], [0, 0])
    assert split_validation(bare, 0) is bare
    singles = make(["a", "b"], [0, 1])
    assert split_validation(singles, 0.5) is singles


def test_carving_keeps_boxes_with_their_images(tmp_path: Path) -> None:
    write_cub(tmp_path)
    whole = with_boxes(DATASETS["cub"](tmp_path)).splits["train"]
    assert whole.boxes is not None
    box_of = dict(zip(whole.keys, whole.boxes.tolist(), strict=True))
    part = with_boxes(open_dataset([f"cub:{tmp_path}"])).splits["train"]
    assert part.boxes is not None
    assert [box_of[key] for key in part.keys] == part.boxes.tolist()
    again = part.take(np.array([2, 0]))
    assert again.boxes is not None
    assert again.boxes.tolist() == part.boxes[[2, 0]].tolist()


def test_union_of_cub_and_dogs(tmp_path: Path) -> None:
    write_cub(tmp_path / "cub")
    write_dogs(tmp_path / "dogs")
    specs = [f"cub:{tmp_path}/cub", f"dogs:{tmp_path}/dogs"]
    both, cub = open_dataset(specs), open_dataset(specs[:1])
    assert (both.name, both.domains) == ("cub+dogs", ["cub", "dogs"])
    assert both.classes == [*BIRDS, *SYNSETS]
    assert list(both.splits) == ["train", "val", "test"]
    test = both.splits["test"]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert test.domains.tolist() == [0] * 6 + [1] * 6
    assert test.keys[6] == "dogs/Images/n02085620-Chihuahua/n02085620_10078.jpg"
    assert both.notes == [f"dogs: {DATASETS['dogs'](tmp_path / 'dogs').notes[0]}"]
    assert {f"cub/{key}" for key in val_keys(cub)} <= val_keys(both)
    assert len(val_keys(both)) == 6
    assert open_dataset(specs[::-1]).splits["test"].labels.tolist() == test.labels.tolist()


def test_union_of_one_name_twice(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", val=0)
    write_folder(tmp_path / "b", test=0)
    both = open_dataset([f"folder:{tmp_path}/a", f"folder:{tmp_path}/b"], val_fraction=0)
    assert both.domains == ["folder", "folder-2"]
    assert both.classes[:4] == [*(f"folder/class {i}" for i in range(3)), "folder-2/class 0"]
    assert set(both.splits["test"].domains) == {0}
    assert set(both.splits["val"].domains) == {1}
    assert set(both.splits["val"].labels) == {3, 4, 5}
    assert "split test has no images of folder-2" in both.notes
    carved = open_dataset([f"folder:{tmp_path}/a", f"folder:{tmp_path}/b"])
    assert set(carved.splits["val"].domains) == {0, 1}


def test_union_details(tmp_path: Path, icons_dir: Path) -> None:
    write_cub(tmp_path)
    cub, birds = DATASETS["cub"](tmp_path), DATASETS["cub"](tmp_path)
    assert union([cub, icons.load(icons_dir)]).chiral
    boxes = with_boxes(union([cub, birds])).splits["train"].boxes
    assert boxes is not None
    assert boxes.shape == (24, 4)
    unlabelled = dataclasses.replace(cub.splits["train"], labels=np.full(12, -1))
    birds = dataclasses.replace(birds, splits={"train": unlabelled})
    assert union([cub, birds]).splits["train"].labels.tolist()[-2:] == [-1, -1]


def test_union_needs_train_everywhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b", train=0)
    error = open_error(f"folder:{tmp_path}/a", f"folder:{tmp_path}/b")
    assert "folder-2 has no train split" in error.message
