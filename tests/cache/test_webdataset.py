"""WebDataset caches: tars that any WebDataset pipeline reads, and that stage two needs alone."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from helpers.datasets import write_folder
from helpers.runs import STUDENT, TEACHER, assert_same_run, fgkd, rows, run_children, saved
from PIL import Image

from fgkd.cache.reader import Reader

NUM_CLASSES, PER_CLASS, VIEWS = 6, 4, 2
ENCODINGS: dict[str, tuple[object, ...]] = {
    "dense": (),
    "topk": ("--encoding", "topk", "--top-k", 2, "--temperatures", "1,2"),
    "topk8": ("--encoding", "topk8", "--top-k", 2, "--temperatures", "1,2"),
}
Caches = dict[tuple[str, str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 + 12 images in every colour mode, named `class 3/im.1.JPG` and `class 3/im.0.png`."""
    root = tmp_path_factory.mktemp("dotted") / "data"
    write_folder(root, PER_CLASS, classes=NUM_CLASSES)
    return root


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    fgkd(
        *("train-teacher", "--data", f"folder:{data}", *TEACHER, "--output", run),
        *("--epochs", 4, "--lr", 1e-2, "--batch-size", 8, "--workers", 0, "--color-jitter", 0.3),
    )
    return run


def capture(teacher: Path, cache: Path, format: str, *more: object, views: int = VIEWS) -> Path:
    fgkd(
        *("cache-logits", "--teacher", teacher, "--output", cache, "--views", views),
        *("--format", format, "--shard-size", 7, "--workers", 0, *more),
    )
    return cache


@pytest.fixture(scope="module")
def caches(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """The same answers of one teacher in both formats and three encodings."""
    root = tmp_path_factory.mktemp("caches")
    return {
        (format, name): capture(teacher, root / f"{format}-{name}", format, *more)
        for format in ("hdf5", "webdataset")
        for name, more in ENCODINGS.items()
    }


def student(cache: Path, run: Path, *more: object) -> tuple[object, ...]:
    soft = () if "none" in more else ("--temperature", 2)
    return (
        *("train-student", "--cache", cache, *STUDENT, "--output", run, "--workers", 0),
        *("--epochs", 3, "--batch-size", 7, *soft, "--drop-path", 0.1, *more),
    )


def read_plainly(cache: Path, how: str) -> dict[str, dict[str, Any]]:
    """Key -> decoded sample, by WebDataset alone."""
    urls = [str(path) for path in sorted(cache.glob("shards/*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # WebDataset leaves its files open
        pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode(how)
        found = {sample["json"]["key"]: sample for sample in pipeline}
        del pipeline
        gc.collect()
    return found


def read_json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(tar.extractfile(name).read())  # type: ignore[union-attr]
    return facts


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_plain_webdataset_pipeline_reads_it(data: Path, caches: Caches, name: str) -> None:
    """Image, label, facts and every array of every view."""
    with_arrays = read_plainly(caches["webdataset", name], "rgb8")
    reader = Reader(caches["hdf5", name])
    held_views = [reader.arrays_of_view(view) for view in range(VIEWS)]
    train, classes = reader.samples["train"], reader.classes
    assert sorted(with_arrays) == sorted(train.keys)
    for row, (key, label) in enumerate(zip(train.keys, train.labels, strict=True)):
        sample = with_arrays[key]
        assert sample["__key__"] == f"{row:08d}"
        assert sample["cls"] == label
        assert sample["json"] == {"key": key, "label": label, "class_name": classes[label]}
        suffix = Path(key).suffix.lower()[1:]
        with Image.open(data / key) as image:
            assert np.array_equal(sample[suffix], np.asarray(image.convert("RGB")))
        for array_name, held in held_views[0].items():
            want = np.stack([held[array_name][row] for held in held_views])
            got = sample[f"{array_name}.npy"]
            assert got.dtype == want.dtype
            assert np.array_equal(got, want)
    reader.close()


def test_images_are_the_original_bytes(data: Path, caches: Caches) -> None:
    """Of training and, in val/, of validation; under the suffix they had, in lower case."""
    suffixes = set()
    for split, folder in (("train", "shards"), ("val", "val")):
        found = {}
        for path in (caches["webdataset", "dense"] / folder).glob("*.tar"):
            with tarfile.open(path) as tar:
                names = [m.name for m in tar if m.name.endswith((".png", ".jpg"))]
                for name in names:
                    key = Path(name).stem
                    facts = read_json(tar, f"{key}.json")
                    found[facts["key"]] = tar.extractfile(name).read()  # type: ignore[union-attr]
                    suffixes.add(Path(name).suffix)
        assert len(found) == NUM_CLASSES * (PER_CLASS if split == "train" else 2)
        assert all(found[key] == (data / key).read_bytes() for key in found)
    assert suffixes == {".png", ".jpg"}


@pytest.mark.parametrize("name", ENCODINGS)
def test_both_formats_give_one_student(caches: Caches, tmp_path: Path, name: str) -> None:
    """Same order, same views, same targets: weights and metrics bit for bit."""
    for format in ("hdf5", "webdataset"):
        fgkd(*student(caches[format, name], tmp_path / format))
    assert_same_run(tmp_path / "webdataset", tmp_path / "hdf5")
    assert saved(tmp_path / "hdf5")["step"] == 12
    assert rows(tmp_path / "hdf5")[0]["distill_loss"] > 1e-3


def test_workers_read_tars_too(caches: Caches, tmp_path: Path) -> None:
    calls = [
        (fgkd, *student(caches["webdataset", "dense"], tmp_path / str(n)), "--workers", n)
        for n in (0, 2)
    ]
    assert run_children(calls) == [0, 0]
    assert_same_run(tmp_path / "2", tmp_path / "0")


def test_the_folder_alone_is_enough(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Dataset and teacher are gone, the cache was moved: the same student."""
    cache = capture(teacher, tmp_path / "cache", "webdataset")
    fgkd(*student(cache, tmp_path / "before"))
    moved = cache.rename(tmp_path / "elsewhere")
    away = [(path, path.with_name("away")) for path in (data, teacher)]
    for path, hidden in away:
        path.rename(hidden)
    try:
        fgkd(*student(moved, tmp_path / "after"))
        fgkd(*student(moved, tmp_path / "baseline", "--distillation", "none"))
    finally:
        for path, hidden in away:
            hidden.rename(path)
    assert_same_run(tmp_path / "after", tmp_path / "before")
    assert "val_agreement_pct" in rows(tmp_path / "after")[0]
    assert "distill_loss" not in rows(tmp_path / "baseline")[0]


def test_a_dataset_that_is_given_too_must_match(data: Path, caches: Caches, tmp_path: Path) -> None:
    """--data is taken where it is given; the student is the same."""
    cache = caches["webdataset", "dense"]
    fgkd(*student(cache, tmp_path / "tars"))
    fgkd(*student(cache, tmp_path / "files", "--data", f"folder:{data}"))
    assert_same_run(tmp_path / "files", tmp_path / "tars")


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_a_grown_cache_is_one_written_at_once(
    teacher: Path, caches: Caches, tmp_path: Path, format: str
) -> None:
    """2 views, then 4: what was there stays, each view is as in a cache of 4, so is the student."""
    grown = capture(teacher, tmp_path / "grown", format)
    before = {path: path.read_bytes() for path in grown.glob("shards/*")}
    capture(teacher, grown, format, views=4)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(list(grown.glob("shards/*"))) == 2 * len(before)
    whole = capture(teacher, tmp_path / "whole", format, "--batch-size", 4, views=4)
    readers = [Reader(cache) for cache in (grown, whole)]
    for view in range(4):
        got, want = (reader.arrays_of_view(view) for reader in readers)
        assert np.array_equal(got["digests"], want["digests"])
        np.testing.assert_allclose(got["logits"], want["logits"], rtol=2e-3, atol=1e-3)
    for reader in readers:
        reader.close()
    fgkd(*student(grown, tmp_path / "run"), "--epochs", 4, "--overwrite")
    assert rows(tmp_path / "run")[3]["step"] == 16


def test_equal_content_gives_equal_bytes(teacher: Path, caches: Caches, tmp_path: Path) -> None:
    """No times, no owners; and every member is a plain file with a short relative name."""
    again = capture(teacher, tmp_path / "again", "webdataset")
    for path in (caches["webdataset", "dense"] / "shards").iterdir():
        data = path.read_bytes()
        assert (again / "shards" / path.name).read_bytes() == data
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                assert member.isreg()
                assert "/" not in member.name
