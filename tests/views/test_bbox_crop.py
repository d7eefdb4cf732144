"""--bbox-crop from end to end: capture, both cache formats, students, verify, and refusals."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import edit, write_cub, write_folder
from helpers.runs import STUDENT, TEACHER, assert_same_run, fgkd, saved

from fgkd.cache.reader import Reader
from fgkd.data import open_dataset, with_boxes

FORMATS = ("hdf5", "webdataset")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cub") / "CUB_200_2011"
    write_cub(root, train=6)
    return root


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with --bbox-crop, which the stages after it inherit."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    fgkd(
        *("train-teacher", "--data", f"cub:{data}", *TEACHER, "--output", run, "--bbox-crop"),
        *("--epochs", 2, "--lr", 1e-2, "--batch-size", 6, "--workers", 0),
    )
    return run


def capture(teacher: Path, cache: Path, format: str, *more: object) -> Path:
    fgkd(
        *("cache-logits", "--teacher", teacher, "--output", cache, "--views", 2),
        *("--format", format, "--shard-size", 8, "--workers", 0, *more),
    )
    return cache


@pytest.fixture(scope="module")
def caches(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("caches")
    found = {format: capture(teacher, root / format, format) for format in FORMATS}
    return found | {"off": capture(teacher, root / "off", "hdf5", "--no-bbox-crop")}


def student(cache: object, run: Path, *more: object) -> Path:
    fgkd(
        *("train-student", "--cache", cache, *STUDENT, "--output", run, "--workers", 0),
        *("--epochs", 2, "--batch-size", 5, *more),
    )
    return run


def test_identity(caches: dict[str, Path], data: Path) -> None:
    """The option and the boxes themselves are of a cache's identity; off, no box is."""
    on, off = (Reader(caches[name]) for name in ("hdf5", "off"))
    assert on.manifest.identity_sha256 != off.manifest.identity_sha256
    recipes = [reader.identity.views.recipe.bbox_crop for reader in (on, off)]
    assert recipes == [True, False]
    train = with_boxes(open_dataset([f"cub:{data}"])).splits["train"]
    assert train.boxes is not None
    assert np.array_equal(on.samples["train"].boxes, train.boxes)
    assert on.samples["val"].boxes is None
    assert off.samples["train"].boxes is None
    assert not np.array_equal(on.arrays_of_view(0)["digests"], off.arrays_of_view(0)["digests"])
    on.close()
    off.close()


def test_a_tar_tells_each_box(caches: dict[str, Path]) -> None:
    column = Reader(caches["webdataset"]).samples["train"]
    assert column.boxes is not None
    want = dict(zip(column.keys, column.boxes.tolist(), strict=True))
    found = {}
    for path in (caches["webdataset"] / "shards").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    facts = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
                    found[facts["key"]] = facts["box"]
    assert found == want


def test_one_student_from_both_formats(caches: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """From HDF5 and the images, and from the tars alone, here and behind a URL: bit for bit."""
    shards = ("--order", "shard")
    student(caches["hdf5"], tmp_path / "hdf5")
    student(caches["hdf5"], tmp_path / "hdf5-shard", *shards)
    away = data.rename(data.with_name("away"))
    try:
        student(caches["webdataset"], tmp_path / "tars")
        student(f"file://{caches['webdataset']}", tmp_path / "url", *shards)
        fgkd("inspect", caches["webdataset"], "--verify")
    finally:
        away.rename(data)
    assert_same_run(tmp_path / "tars", tmp_path / "hdf5")
    assert_same_run(tmp_path / "url", tmp_path / "hdf5-shard")
    assert saved(tmp_path / "hdf5")["step"] > 2


def test_verify_and_a_live_teacher(caches: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    fgkd("inspect", caches["hdf5"], "--verify", "--teacher", teacher)
    fgkd(
        *("train-student", "--teacher", teacher, *STUDENT, "--output", tmp_path / "live"),
        *("--epochs", 1, "--batch-size", 5, "--workers", 0, "--img-size", 32),
    )
    assert json.loads((tmp_path / "live/run.json").read_text())["views"]["recipe"]["bbox_crop"]


def test_refusals(
    caches: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_folder(tmp_path / "plain")
    calls = (
        (
            ("train-teacher", "--data", f"folder:{tmp_path / 'plain'}", "--bbox-crop"),
            "the dataset folder has no bounding boxes",
        ),
        (
            ("train-student", "--cache", caches["hdf5"], "--no-bbox-crop"),
            "the cache fixes the views; bbox_crop cannot change them",
        ),
    )
    for number, (args, message) in enumerate(calls):
        with pytest.raises(SystemExit):
            fgkd(*args, *TEACHER, "--output", tmp_path / str(number))
        assert message in capsys.readouterr().err
    boxes = data / "bounding_boxes.txt"
    text = boxes.read_text()
    edit(boxes, "3 3.0 2.0", "3 4.0 2.0")
    try:
        with pytest.raises(SystemExit):
            student(caches["hdf5"], tmp_path / "moved")
    finally:
        boxes.write_text(text)
    said = capsys.readouterr().err
    assert "train.boxes[" in said
    assert "[3.0, 2.0, 20.0, 25.0] -> [4.0, 2.0, 20.0, 25.0]" in said
