"""Bounding boxes: read where they are asked for, exact, and never trusted."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import LISTED_WRITERS, edit, write_cub, write_dogs, write_folder
from helpers.errors import expected
from helpers.official_datasets import FOLDERS, OFFICIAL_WRITERS
from numpy.lib.recfunctions import repack_fields
from PIL import Image
from scipy.io import loadmat, savemat

from fgkd.data import DATASETS, Dataset, Samples, open_dataset, union, with_boxes
from fgkd.data.boxes import checked, in_pixels
from fgkd.errors import BadBoundingBox, FgkdError, FileError, OptionError, UnreadableFile
from fgkd.views.recipes import ViewRecipe
from fgkd.views.rendering import KeyedView
from fgkd.views.transforms import params, pixel_digest, render
from stages.remedies import remedy

# The box of a train sample of each miniature, by its label and its place in train.
EXPECTED: dict[str, Callable[[int, int], list[float]]] = {
    "dogs": lambda label, i: [2, 3, 28, 25],
    "aircraft": lambda label, i: [2 + label, 4, 28 - label, 20],
    "cars": lambda label, i: [3 + label, 5, 27 - label, 23],
    "pets": lambda label, i: [10 + label, 5, 21 - label, 15],
}


def written(name: str, tmp_path: Path) -> Path:
    root = tmp_path / FOLDERS.get(name, "root")
    (LISTED_WRITERS | OFFICIAL_WRITERS)[name](root)
    return root


def boxes_of(dataset: Dataset) -> np.ndarray:
    boxes = with_boxes(dataset).splits["train"].boxes
    assert boxes is not None
    assert boxes.dtype == np.float64
    return boxes


@pytest.mark.parametrize("name", EXPECTED)
def test_boxes_of(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name](written(name, tmp_path))
    want = [EXPECTED[name](label, i) for i, label in enumerate(dataset.splits["train"].labels)]
    assert boxes_of(dataset).tolist() == want


@pytest.mark.parametrize("name", ["cub", "nabirds"])
def test_boxes_of_lists(name: str, tmp_path: Path) -> None:
    root = written(name, tmp_path)
    lines = [
        dict(line.split(" ", 1) for line in (root / file).read_text().splitlines())
        for file in ("images.txt", "bounding_boxes.txt")
    ]
    want = {f"images/{lines[0][id_]}": [*map(float, lines[1][id_].split())] for id_ in lines[0]}
    train = open_dataset([f"{name}:{root}"]).splits["train"]  # a val split is carved
    got = boxes_of(open_dataset([f"{name}:{root}"])).tolist()
    assert got == [want[key] for key in train.keys]


def test_several_dogs_are_one_box(tmp_path: Path) -> None:
    write_dogs(tmp_path)
    dataset = DATASETS["dogs"](tmp_path)
    assert dataset.splits["train"].keys[1].endswith("_10075.jpg")  # it has two objects
    path = tmp_path / "Annotation" / dataset.splits["train"].keys[1][7:-4]
    edit(path, "<xmax>30</xmax><ymax>28</ymax>", "<xmax>39</xmax><ymax>9</ymax>")
    edit(path, "<xmin>2</xmin>", "<xmin>5</xmin>")
    assert boxes_of(dataset)[1].tolist() == [2, 3, 37, 25]


def test_off_costs_nothing(tmp_path: Path) -> None:
    """A data set opens without its boxes, and lacks them only where they are asked for."""
    for name, files in (("cub", ["bounding_boxes.txt"]), ("dogs", ["Annotation"])):
        root = written(name, tmp_path / name)
        for file in files:
            (root / file).rename(tmp_path / f"{name}-{file}")
        dataset = open_dataset([f"{name}:{root}"])
        assert dataset.splits["train"].boxes is None
        with pytest.raises(FileError, match=files[0]):
            with_boxes(dataset)


def test_union_boxes(tmp_path: Path) -> None:
    members = [DATASETS[name](written(name, tmp_path / name)) for name in ("cub", "dogs")]
    both = pickle.loads(pickle.dumps(union(members)))  # as for a worker
    assert boxes_of(both).tolist() == np.concatenate([*map(boxes_of, members)]).tolist()
    write_folder(tmp_path / "plain")
    mixed = union([members[0], DATASETS["folder"](tmp_path / "plain")])
    for dataset in (mixed, DATASETS["folder"](tmp_path / "plain")):
        with expected(OptionError, option="bbox_crop", value=True):
            with_boxes(dataset)


@pytest.mark.parametrize("box", ["nan 1 2 3", "1 2 0 4", "1 2 3 -4", "inf 2 3 4", "1e7 2 3 4"])
def test_a_box_without_pixels_is_refused(tmp_path: Path, box: str) -> None:
    write_cub(tmp_path)
    edit(tmp_path / "bounding_boxes.txt", "3 3.0 2.0 20.0 25.0", f"3 {box}")
    with pytest.raises(
        BadBoundingBox, match=r"the bounding box of images/001.*_0002_796003.jpg is"
    ):
        with_boxes(DATASETS["cub"](tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("cub", "bounding_boxes.txt", b"1 1.0 2.0\n"),
        ("cub", "bounding_boxes.txt", b""),
        ("nabirds", "bounding_boxes.txt", b"x"),
        ("aircraft", "data/images_box.txt", b"0034965 1 2 3"),
        ("aircraft", "data/images_box.txt", b"\xff"),
        ("pets", "annotations/trimaps/Abyssinian_1.png", b""),
        ("pets", "annotations/trimaps/Abyssinian_1.png", b"\x89PNG"),
        ("dogs", "Annotation/n02085620-Chihuahua/n02085620_10074", b""),
        ("dogs", "Annotation/n02085620-Chihuahua/n02085620_10074", b"<annotation/>"),
        ("dogs", "Annotation/n02085620-Chihuahua/n02085620_10074", b"<a><bndbox/></a>"),
        ("dogs", "Annotation/n02085620-Chihuahua/n02085620_10074", b"\xff\xfe"),
    ],
)
@pytest.mark.parametrize("gone", [False, True])
def test_damaged_boxes(name: str, file: str, damage: bytes, gone: bool, tmp_path: Path) -> None:
    root = written(name, tmp_path)
    path = root / file
    path.unlink()
    if not gone:
        path.write_bytes(damage)
    with pytest.raises(FgkdError, match=path.name) as caught:
        with_boxes(DATASETS[name](root))
    assert remedy(caught.value)


def test_cars_without_box_fields(tmp_path: Path) -> None:
    root = written("cars", tmp_path)
    path = root / "devkit/cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    savemat(path, {"annotations": repack_fields(rows[["class", "fname"]])})
    with expected(UnreadableFile, path=path):
        with_boxes(DATASETS["cars"](root))


def test_an_empty_trimap(tmp_path: Path) -> None:
    root = written("pets", tmp_path)
    blank = Image.fromarray(np.full((30, 40), 2, np.uint8))
    blank.save(root / "annotations/trimaps/Egyptian_Mau_2.png")
    with pytest.raises(BadBoundingBox, match=r"the bounding box of images/Egyptian_Mau_2.jpg is"):
        with_boxes(DATASETS["pets"](root))


def test_in_pixels() -> None:
    assert in_pixels(np.array([1.0, 2.0, 3.0, 4.0])) == (1, 2, 3, 4)
    assert in_pixels(np.array([1.5, 2.0, 3.0, 4.2])) == (1, 2, 4, 5)
    assert checked(["a"], [[0, 0, 1, 1]]).shape == (1, 4)


RECIPE = ViewRecipe(crop_scale=(0.2, 1.0), crop_ratio=(0.5, 2.0), hflip=0.5, bbox_crop=True)


def one_sample(image: np.ndarray, box: list[float] | None) -> Samples:
    boxes = None if box is None else np.array([box])
    path = io.BytesIO()
    Image.fromarray(image).save(path, "PNG")
    return Samples(["a"], np.zeros(1, np.int64), np.zeros(1, np.int64), ["a.png"], boxes=boxes)


def test_a_view_lies_inside_its_box() -> None:
    """No pixel of the surroundings is seen; and the view is that of the box cut out by hand."""
    x, y, w, h = 11, 7, 25, 31
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 2] = 255
    inside = np.random.default_rng(0).integers(1, 255, (h, w, 2))
    image[y : y + h, x : x + w] = np.dstack([inside, np.zeros((h, w))])
    keyed = KeyedView(one_sample(image, [x, y, w, h]), RECIPE, 3)
    whole = KeyedView(one_sample(image, None), ViewRecipe(crop_scale=(0.2, 1.0)), 3)
    seen = set()
    for view in range(40):
        got = keyed.one(lambda row: image, 0, view, 16)
        assert not got[..., 2].any()
        assert whole.one(lambda row: image, 0, view, 16)[..., 2].any()
        drawn = params(RECIPE, 3, "a", view, (w, h))
        assert np.array_equal(got, render(image[y : y + h, x : x + w], drawn, 16))
        seen.add(pixel_digest(got))
    assert len(seen) == 40


def test_a_recipe_with_boxes_needs_them() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with expected(OptionError, option="bbox_crop", value=True):
        KeyedView(one_sample(image, None), RECIPE, 0)
    outside = KeyedView(one_sample(image, [20, 20, 5, 5]), RECIPE, 0)
    with pytest.raises(BadBoundingBox, match="no pixel of its 8 x 8 image"):
        outside.one(functools.partial(lambda row: image), 0, 0, 8)
