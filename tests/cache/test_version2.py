"""Caches of format version 2 are read as they were when they were written, and not added to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shard_server import serve

from fgkd import files
from fgkd.cache import open_cache, samples_file
from fgkd.cache.identity import Identity
from fgkd.cache.reader import Reader
from fgkd.cache.samples import describe_splits
from fgkd.cache.writer import Writer
from fgkd.data import open_dataset
from fgkd.errors import DamagedCache, DamagedShard, DataMismatch, FormatVersionMismatch
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.views.view_set import ViewSet
from stages.remedies import remedy

HERE = Path(__file__).parent / "v2"
FORMATS = ("hdf5", "webdataset")
VIEWS, TEMPERATURE = 2, 2.0


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What was read then."""
    with np.load(HERE / "expected.npz") as found:
        return dict(found)


def assert_as_then(reader: Reader, expected: dict[str, np.ndarray], name: str) -> None:
    keys = [key.decode() for key in expected[f"{name}.keys"]]
    assert reader.samples["train"].keys == keys
    assert reader.manifest.identity_sha256 == expected[f"{name}.identity_sha256"]
    for view in range(VIEWS):
        held = reader.arrays_of_view(view)
        assert np.array_equal(held.pop("digests"), expected[f"{name}.digests{view}"])
        logits = expected[f"{name}.logits{view}"]
        assert np.array_equal(reader.decode(held, TEMPERATURE), logits)
        rows = np.array([7, 0, 11, 3, 0])
        assert np.array_equal(reader.targets(rows, view, TEMPERATURE), logits[rows])
    assert np.array_equal(reader.val_logits(), expected[f"{name}.val_logits"])


@pytest.mark.parametrize("name", FORMATS)
def test_keys_and_targets(name: str, expected: dict[str, np.ndarray]) -> None:
    reader = open_cache(HERE / name)
    assert reader.identity.format_version == 2
    assert reader.views == VIEWS
    assert reader.identity.views.short_side == (11 if name == "webdataset" else None)
    assert_as_then(reader, expected, name)
    reader.close()


@pytest.mark.parametrize("name", FORMATS)
def test_behind_a_url(name: str, expected: dict[str, np.ndarray]) -> None:
    with serve(HERE / name) as (url, requested):
        reader = open_cache(url)
        assert_as_then(reader, expected, name)
        reader.close()
    assert not requested["samples.h5"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_batch_of_a_student(name: str, expected: dict[str, np.ndarray]) -> None:
    reader = open_cache(HERE / name)
    views = reader.identity.views
    data = reader.dataset() if reader.holds_images else open_dataset([f"folder:{HERE / 'images'}"])
    reader.check_dataset(data)
    loader = TrainLoader(
        ViewSet.of(views, data.splits["train"], reader.identity.shard_size),
        Schedule(3, 12, 4, 2, VIEWS),
        cache=reader,
        temperature=TEMPERATURE,
    )
    batch = next(loader.batches(0))
    assert batch.teacher_BK is not None
    got = {"images": batch.image_u8_BHW3.numpy(), "labels": batch.labels_B.numpy()}
    got |= {"row_ids": batch.row_ids, "teacher": batch.teacher_BK.numpy()}
    for what, array in got.items():
        assert np.array_equal(array, expected[f"{name}.batch.{what}"]), what
    reader.close()


@pytest.mark.parametrize("name", FORMATS)
def test_other_data_is_refused(name: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(HERE / "images", images)
    next(images.glob("train/*2/0.png")).unlink()
    with pytest.raises(DataMismatch) as caught:
        open_cache(HERE / name).check_dataset(open_dataset([f"folder:{images}"]))
    assert caught.value.field == "train.keys"


@pytest.mark.parametrize("name", FORMATS)
def test_a_writer_refuses_to_add_to_it(name: str, tmp_path: Path) -> None:
    """The remedy writes a new cache."""
    cache = tmp_path / "cache"
    shutil.copytree(HERE / name, cache)
    old, tables = (
        open_cache(cache).identity,
        describe_splits(open_dataset([f"folder:{HERE}/images"])),
    )
    identity = Identity.from_json(
        old.to_json() | {"format_version": 3, "samples_sha256": samples_file.fingerprint(tables)}
    )
    (cache / "args.yaml").write_text("data: []\n")
    with pytest.raises(FormatVersionMismatch) as caught:
        Writer(cache, identity, tables, 3, lambda split, row: b"")
    assert (caught.value.old, caught.value.new, caught.value.cache) == (2, 3, cache)
    again = f"fgkd cache-logits -c {cache}/args.yaml --output {cache} --overwrite"
    assert remedy(caught.value).startswith(again)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_shard_cannot_be_rewritten_alone(name: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(HERE / name, cache)
    shard = next(cache.glob("shards/*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedShard) as caught:
        open_cache(cache).arrays_of_view(0)
    assert (caught.value.path, caught.value.rewritable) == (shard, False)
    assert "--overwrite" in remedy(caught.value)


def change(*path: Any, to: Any) -> tuple[tuple[Any, ...], Any]:
    return path, to


@pytest.mark.parametrize(
    ("path", "value"),
    [
        change("train", "keys", 0, to="train/class é 1/0.png"),
        change("train", "keys", 0, to=""),
        change("train", "labels", 0, to=6),
        change("train", "labels", 0, to=1 << 70),
        change("train", "domains", 0, to=1),
        change("train", "sizes", to=[1]),
        change("train", "hashes", 0, to="a" * 33),
        change("train", "hashes", 0, to="é" * 16),
        change("train", "boxes", to=[]),
        change("train", "boxes", to=[[1.0, 2, 3, 4]]),
        change("train", "boxes", to=[[1, 2, 3]] * 12),
        change("train", "boxes", to=[[1, 2, 3, 0]] * 12),
        change("train", "boxes", to=["1234"] * 12),
        change("train", "boxes", to=4),
        change("train", "boxes", to=[[1e9] * 4] * 12),
        change("val", to=None),
        change("views", "image_store", to={"short_side": 0}),
        change("views", "image_store", to=[]),
        change("views", "recipe", "mixup", to=-1),
        change("encoding", "name", to="none"),
        change("teachers", 0, "mean", to="x"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_hostile_identity(name: str, path: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    """Refused also where its hash is made to fit."""
    cache = tmp_path / "cache"
    shutil.copytree(HERE / name, cache)
    held = json.loads((cache / "manifest.json").read_text())
    part = held["identity"]
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    held["identity_sha256"] = files.fingerprint(held["identity"])
    files.write_json(cache / "manifest.json", held)
    with pytest.raises(DamagedCache) as caught:
        Reader(cache)
    assert caught.value.path == cache / "manifest.json"
