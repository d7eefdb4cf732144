"""The datasets: every adapter on a miniature of its real layout, and what each must refuse."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_miniatures import (
    BIRDS,
    FOODS,
    SYNSETS,
    WRITERS,
    encode,
    pixels,
    write_cub,
    write_dogs,
    write_folder,
    write_foodx,
    write_image,
    write_mat_list,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgkd.data import DATASETS, Dataset, Samples, icons, open_dataset, split_validation, union
from fgkd.data.images import MAX_PIXELS, decode_pil, decode_rgb
from fgkd.errors import FgkdError

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def icons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked icon set, to be left as it is; in `$FGKD_HOME`, if set, it serves later runs."""
    in_home = "FGKD_HOME" in os.environ
    root = icons.default_root() if in_home else tmp_path_factory.mktemp("home") / "icons"
    icons.load(root)
    return root


@pytest.fixture
def few_icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with one icon of every class in every split, in place of the whole one."""
    with np.load(icons.ARCHIVE, allow_pickle=False) as archive:
        _, rows = np.unique(np.char.add(archive["split"], archive["labels"].astype(str)), True)
        arrays = {name: archive[name][rows] for name in ("images", "labels", "split", "source")}
        few = tmp_path / "few" / "few.npz"
        few.parent.mkdir()
        np.savez(few, classes=archive["classes"], **arrays)
    shutil.copy(icons.ARCHIVE.with_name("ICONS.md"), few.parent)
    monkeypatch.setattr(icons, "ARCHIVE", few)
    return few


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def open_error(*specs: str) -> FgkdError:
    with pytest.raises(FgkdError) as caught:
        open_dataset(specs)
    return caught.value


# ---- every dataset -------------------------------------------------------------------------


def test_every_dataset_has_a_miniature() -> None:
    assert set(WRITERS) | {"icons"} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_contract(name: str, tmp_path: Path, icons_dir: Path) -> None:
    root = icons_dir
    if name != "icons":
        root = tmp_path / "data set"
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
    assert "unknown dataset 'cubs'" in error.what
    assert "did you mean cub?" in error.what
    assert all(name in error.what for name in DATASETS)
    assert "does not say where" in open_error("cub").what
    assert str(tmp_path / "no") in open_error(f"cub:{tmp_path}/no").what
    assert "no dataset" in open_error().what


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
    assert train.boxes is not None
    assert train.boxes.shape == (12, 4)
    assert train.boxes[4].tolist() == [7.0, 2.0, 20.0, 25.0]  # image id 7
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


def test_cub_without_boxes(tmp_path: Path) -> None:
    write_cub(tmp_path)
    (tmp_path / "bounding_boxes.txt").unlink()
    assert DATASETS["cub"](tmp_path).splits["train"].boxes is None


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "2 001", "two 001", "images.txt, line 2: expected a new '<id> <value>'"),
        ("images.txt", "2 001", "1 001", "images.txt, line 2"),
        ("images.txt", "1 001.Black_footed_Albatross/", "1 ../../../", "unsafe file name"),
        ("image_class_labels.txt", "3 1\n", "", "no line for 1 ids of images.txt, as 3"),
        ("image_class_labels.txt", "3 1\n", "3 9\n", "image id 3 has class '9'"),
        ("train_test_split.txt", "3 1\n", "3 2\n", "split '2'"),
        ("bounding_boxes.txt", "1 1.0 2.0", "1 1.0", "expected '<id> <x> <y> <width> <height>'"),
    ],
)
def test_cub_damaged_list(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    write_cub(tmp_path)
    edit(tmp_path / file, old, new)
    assert message in open_error(f"cub:{tmp_path}").what


@pytest.mark.parametrize("missing", ["images", "classes.txt", "train_test_split.txt"])
def test_cub_missing_file(tmp_path: Path, missing: str) -> None:
    write_cub(tmp_path)
    (tmp_path / missing).rename(tmp_path / "gone")
    error = open_error(f"cub:{tmp_path}")
    assert missing in error.what
    assert "CUB_200_2011.tgz" in error.what


def test_repeated_and_missing_image(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train = DATASETS["cub"](tmp_path).splits["train"]
    os.unlink(train.paths[0])  # found when it is read, so that loading need not open every file
    with pytest.raises(FgkdError, match="0000_796001"):
        DATASETS["cub"](tmp_path).splits["train"].read(0)
    rows = (tmp_path / "images.txt").read_text().splitlines()
    rows[1] = rows[0].replace("1 ", "2 ", 1)
    (tmp_path / "images.txt").write_text("\n".join(rows))
    assert "twice" in open_error(f"cub:{tmp_path}").what


# ---- Stanford Dogs -------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [".", "splits"])
def test_dogs(tmp_path: Path, lists: str) -> None:
    write_dogs(tmp_path, lists=lists)
    dataset = DATASETS["dogs"](tmp_path)
    assert dataset.classes == list(SYNSETS)
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (12, 6)
    assert dataset.splits["test"].keys[0] == "Images/n02085620-Chihuahua/n02085620_10078.jpg"
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.splits["test"].boxes is None
    assert "ImageNet" in dataset.notes[0]


def test_dogs_errors(tmp_path: Path) -> None:
    write_dogs(tmp_path)
    path = tmp_path / "train_list.mat"
    write_mat_list(path, [(f"{SYNSETS[1]}/a.jpg", 1)])  # its folder is the second
    assert f"labels {SYNSETS[1]}/a.jpg 1" in open_error(f"dogs:{tmp_path}").what
    write_mat_list(path, [(f"{SYNSETS[0]}/../../a.jpg", 1)])
    assert "unsafe file name" in open_error(f"dogs:{tmp_path}").what
    path.write_bytes(path.read_bytes()[:200])
    assert f"cannot read {path}" in open_error(f"dogs:{tmp_path}").what
    path.unlink()
    error = open_error(f"dogs:{tmp_path}").what
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
    assert "train_info.csv, line 2: expected '<image>,<label>'" in error.what


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
    assert f"class folder 'class 1' is missing in split {split}" in error.what


def test_folder_empty(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "val/class 1").iterdir():
        file.unlink()
    (tmp_path / "val/class 1/notes.txt").touch()
    assert "val/class 1 holds no image" in open_error(f"folder:{tmp_path}").what
    shutil.rmtree(tmp_path)
    (tmp_path / "train").mkdir(parents=True)
    assert "no class folders" in open_error(f"folder:{tmp_path}").what


def test_folder_without_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    error = open_error(f"folder:{tmp_path}/train")  # class folders directly
    assert "no train, val or test folder" in error.what
    assert "train/<class>/*.jpg" in error.what


# ---- icons ---------------------------------------------------------------------------------


def test_icons(icons_dir: Path) -> None:
    dataset = icons.load(icons_dir)
    counts = {split: len(samples) for split, samples in dataset.splits.items()}
    assert counts == {"train": 5114, "val": 715, "test": 1433}
    assert len(dataset.classes) == 85
    assert dataset.chiral
    assert (icons_dir / "ICONS.md").is_file()
    with np.load(icons.ARCHIVE, allow_pickle=False) as archive:
        images, sources = archive["images"], archive["source"].tolist()
        labels, classes = archive["labels"], archive["classes"].tolist()
    assert dataset.classes == classes
    row_of = {source.replace(":", "_"): row for row, source in enumerate(sources)}
    for samples in dataset.splits.values():
        for i in range(0, len(samples), 97):
            row = row_of[Path(samples.keys[i]).stem]
            with Image.open(io.BytesIO(samples.read(i))) as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), images[row])
            assert samples.labels[i] == labels[row]


def test_icons_bytes_are_pinned(icons_dir: Path) -> None:
    """The file hashes are a cache's identity: no Pillow or zlib version may change them."""
    data = (icons_dir / "test/arrow-down-circle/f7_arrow-down-circle-fill.png").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == "e62e18b49cbfe3cd"


def test_icons_are_unpacked_once(icons_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGKD_HOME", str(icons_dir.parent))
    before = icons_dir.stat().st_mtime_ns, os.listdir(icons_dir.parent)
    assert open_dataset(["icons"]).splits["test"].paths[0].startswith(str(icons_dir))
    assert (icons_dir.stat().st_mtime_ns, os.listdir(icons_dir.parent)) == before


def test_icons_refuse_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is not an icon set" in open_error(f"icons:{tmp_path}").what
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_icons_refuse_a_damaged_copy(few_icons: Path, tmp_path: Path) -> None:
    root = tmp_path / "icons"
    icons.load(root)
    image = next((root / "val/arrow-down").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-9])
    error = open_error(f"icons:{root}")
    assert image.name in error.what
    assert error.hint.startswith(f"rm -r '{root}'")
    image.unlink()
    assert image.name in open_error(f"icons:{root}").what
    image.write_bytes(whole)
    open_dataset([f"icons:{root}"])
    (root / icons.MARKER).write_text("an older archive")
    assert "another version" in open_error(f"icons:{root}").what


def test_icons_interrupted_unpack_leaves_nothing(
    few_icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy", interrupt)  # all images are written by then
    with pytest.raises(KeyboardInterrupt):
        icons.load(tmp_path / "icons")
    assert os.listdir(tmp_path) == ["few"]


def test_icons_when_another_process_is_first(
    few_icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy

    def be_overtaken(*paths: Path) -> None:
        monkeypatch.setattr(shutil, "copy", copy)
        icons.load(tmp_path / "icons")
        copy(*paths)

    monkeypatch.setattr(shutil, "copy", be_overtaken)
    assert len(icons.load(tmp_path / "icons").splits["train"]) == 85
    assert sorted(os.listdir(tmp_path)) == ["few", "icons"]


def test_icons_unpacked_by_two_processes(few_icons: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from fgkd.data import icons, open_dataset;"
        "icons.ARCHIVE = pathlib.Path(sys.argv[1]);"
        "print(len(open_dataset(['icons']).splits['train']))"
    )
    command = [sys.executable, "-c", code, str(few_icons)]
    env = os.environ | {"FGKD_HOME": str(tmp_path / "home")}
    runs = [
        subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == ["85\n", "85\n"]
    assert os.listdir(tmp_path / "home") == ["icons"]


# ---- validation splits and unions ----------------------------------------------------------


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
    whole = DATASETS["cub"](tmp_path).splits["train"]
    assert whole.boxes is not None
    box_of = dict(zip(whole.keys, whole.boxes.tolist(), strict=True))
    for split in ("train", "val"):
        part = open_dataset([f"cub:{tmp_path}"]).splits[split]
        assert part.boxes is not None
        assert [box_of[key] for key in part.keys] == part.boxes.tolist()


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
    assert test.boxes is None  # dogs has none
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
    boxes = union([cub, birds]).splits["train"].boxes
    assert boxes is not None
    assert boxes.shape == (24, 4)
    unlabelled = dataclasses.replace(cub.splits["train"], labels=np.full(12, -1))
    birds = dataclasses.replace(birds, splits={"train": unlabelled})
    assert union([cub, birds]).splits["train"].labels.tolist()[-2:] == [-1, -1]


def test_union_needs_train_everywhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b", train=0)
    error = open_error(f"folder:{tmp_path}/a", f"folder:{tmp_path}/b")
    assert "folder-2 has no train split" in error.what


# ---- decoding ------------------------------------------------------------------------------


def transparent_palette() -> bytes:
    image = pixels(1, 2).convert("P")
    return encode(image, "PNG", transparency=bytes(range(255)))


ENCODED = {
    "rgb jpeg": encode(pixels(0, 0), "JPEG"),
    "grey jpeg": encode(pixels(0, 1).convert("L"), "JPEG"),
    "cmyk jpeg": encode(pixels(0, 2).convert("CMYK"), "JPEG"),
    "ycc progressive jpeg": encode(pixels(0, 2), "JPEG", progressive=True, quality=50),
    "rotated jpeg": encode(
        pixels(0, 3),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    **{
        f"{mode} png": encode(pixels(1, 1).convert(mode), "PNG")
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1")
    },
    "transparent colour": encode(pixels(1, 1), "PNG", transparency=(3, 4, 5)),
    "gif": encode(pixels(1, 3), "GIF"),
    "webp": encode(pixels(1, 4).convert("RGBA"), "WEBP"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_decode_equals_pillow(kind: str) -> None:
    with Image.open(io.BytesIO(ENCODED[kind])) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode_rgb(ENCODED[kind], kind)
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.flags.writeable
    assert decode_pil(ENCODED[kind], kind).mode == "RGB"


def test_decode_does_not_rotate() -> None:
    with Image.open(io.BytesIO(ENCODED["rotated jpeg"])) as image:
        assert image.getexif()[0x112] == 6
    assert decode_rgb(ENCODED["rotated jpeg"], "x").shape == (30, 40, 3)


def test_decode_transparent_palette() -> None:
    data = transparent_palette()
    with Image.open(io.BytesIO(data)) as image, pytest.warns(UserWarning, match="Transparency"):
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, "x"), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_scales_16_bit(kind: str) -> None:
    grey = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    decoded = decode_rgb(encode(Image.fromarray(grey), kind), "x")
    assert decoded.shape == (32, 32, 3)
    np.testing.assert_array_equal(decoded[..., 0], grey >> 8)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    wide = Image.fromarray(grey.astype(np.int32))  # mode I
    np.testing.assert_array_equal(decode_rgb(encode(wide, "TIFF"), "x"), decoded)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "unknown format"),
        (ENCODED["rgb jpeg"][:-200], "truncated"),
        (ENCODED["RGB png"][:400], "truncated"),
        (ENCODED["rgb jpeg"][:20], "cannot decode"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),
    ],
    ids=["empty", "text", "jpeg", "png", "header", "eps"],
)
def test_undecodable(data: bytes, reason: str) -> None:
    with pytest.raises(FgkdError) as caught:
        decode_rgb(data, "train/a/b.jpg")
    assert "train/a/b.jpg" in caught.value.what
    assert reason in caught.value.what
    assert "--skip-bad-images" in caught.value.hint


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb(side: int) -> None:
    assert side**2 > MAX_PIXELS
    ppm = b"P6 %d %d 255\n" % (side, side)  # a header alone: its size is what counts
    with pytest.raises(FgkdError, match="pixels"):
        decode_rgb(ppm, "bomb.png")
