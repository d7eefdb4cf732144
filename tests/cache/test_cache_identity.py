"""A cache with another identity is refused, and the error names what differs, old -> new."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.caches import IDENTITY, TABLES, make_identity, make_writer, write_cache
from helpers.datasets import write_folder

from fgkd import comparison
from fgkd.cache.identity import Identity
from fgkd.cache.samples import HASH_TYPE, check_samples, describe
from fgkd.data import Samples, content, open_dataset
from fgkd.errors import DataMismatch, Difference, OutputExists

KEYS, CLASSES = TABLES["train"].keys, IDENTITY.dataset.classes
SWAPPED = (CLASSES[1], CLASSES[0], *CLASSES[2:])


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("format", "webdataset", "format: hdf5 -> webdataset"),
        ("ensemble", "logits", "ensemble: None -> logits"),
        ("teachers__0__img_size", 64, "teachers[0].img_size: 32 -> 64"),
        ("views__short_side", 20, "views.short_side: None -> 20"),
        ("encoding__name", "int8", "encoding.name: dense -> int8"),
        ("shard_size", 9, "shard_size: 8 -> 9"),
        ("dtype", "bfloat16", "dtype: float32 -> bfloat16"),
        ("teachers__0__weights_sha256", "bb", "teachers[0].weights_sha256: aa -> bb"),
        ("teachers__0__architecture", "vit", "teachers[0].architecture: convnext -> vit"),
        ("views__recipe__crop_scale", (0.4, 1.0), "views.recipe.crop_scale[0]: 0.5 -> 0.4"),
        ("views__recipe__hflip", 0.0, "views.recipe.hflip: 0.5 -> 0.0"),
        ("views__seed", 5, "views.seed: 4 -> 5"),
        ("views__img_size", 64, "views.img_size: 32 -> 64"),
        ("dataset__name", "cub", "dataset.name: made -> cub"),
        ("dataset__val_fraction", 0.2, "dataset.val_fraction: 0.1 -> 0.2"),
        (
            "dataset__classes",
            SWAPPED,
            "dataset.classes[0]: class 0 -> class 1 (2 entries differ)",
        ),
        ("dataset__classes", CLASSES[:-1], "dataset.classes: 6 entries -> 5"),
        ("train__hashes__4", b"f" * 32, f"train.hashes[4]: {4:032x} -> {'f' * 32}"),
        ("train__labels__0", 5, "train.labels[0]: 0 -> 5"),
        ("train__keys__2", "other.jpg", f"train.keys[2]: {KEYS[2]} -> other.jpg"),
        ("val__sizes__1", 8, "val.sizes[1]: 7 -> 8"),
    ],
)
def test_one_field_of_the_identity(field: str, value: Any, line: str, tmp_path: Path) -> None:
    write_cache(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataMismatch) as caught:
        make_writer(tmp_path, 3, **{field: value})
    (difference,) = caught.value.differences
    assert str(difference).startswith(line)
    assert line in caught.value.message
    assert caught.value.subject == "cache"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_changed_field_changes_the_hash() -> None:
    changed = [make_identity(dtype="bfloat16"), make_identity(views__seed=5), IDENTITY]
    changed.append(dataclasses.replace(IDENTITY, samples_sha256="00" * 32))
    assert len({one.sha256 for one in changed}) == 4


@pytest.mark.parametrize("damage", ["missing", "other bytes"])
def test_samples_that_cannot_be_compared_are_refused_by_their_hash(
    damage: str, tmp_path: Path
) -> None:
    write_cache(tmp_path)
    path = tmp_path / "samples.h5"
    path.write_bytes(path.read_bytes()[:-1]) if damage == "other bytes" else path.unlink()
    with pytest.raises(DataMismatch) as caught:
        make_writer(tmp_path, 3, train__labels__0=5)
    assert caught.value.field == "samples_sha256"


def test_a_writer_restores_the_samples(tmp_path: Path) -> None:
    """The identity says which samples they are, so a lost file is written again."""
    write_cache(tmp_path)
    path = tmp_path / "samples.h5"
    data = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(data[:-1])):
        damage()
        make_writer(tmp_path, 3).begin()
        assert path.read_bytes() == data


def test_a_writer_given_other_samples_than_its_identity_has(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, 3)
    writer.samples = {"train": TABLES["val"], "val": TABLES["val"]}
    with pytest.raises(ValueError):
        writer.begin()
    assert not list(tmp_path.iterdir())


def test_an_identity_survives_json() -> None:
    through_json = json.loads(json.dumps(IDENTITY.to_json()))
    assert Identity.from_json(through_json) == make_identity() == IDENTITY
    assert comparison.differences(through_json, IDENTITY.to_json()) == []


def test_mismatches_are_counted_not_listed_without_end() -> None:
    lines = [Difference(f"line {i}", 0, 1) for i in range(9)]
    with pytest.raises(DataMismatch) as caught:
        comparison.refuse("what", lines, "data")
    assert "line 4" in caught.value.message
    assert "line 5" not in caught.value.message
    assert "and 4 more" in caught.value.message
    comparison.refuse("what", [], "data")


def test_added_and_removed_fields() -> None:
    changed = comparison.differences({"a": 1}, {"b": [1]})
    assert changed == [Difference("a", 1, None), Difference("b", None, [1])]
    assert comparison.differences({"a": [1]}, {"a": "x"}) == [Difference("a", [1], "x")]


def test_shards_without_an_identity_are_left_alone(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / "identity.json").unlink()
    with pytest.raises(OutputExists) as caught:
        make_writer(tmp_path, 3)
    assert caught.value.path == tmp_path
    assert not caught.value.resumable


# ---- the images on disk --------------------------------------------------------------------


@pytest.fixture
def train(tmp_path: Path) -> Samples:
    write_folder(tmp_path)
    return open_dataset([f"folder:{tmp_path}"]).splits["train"]


def test_describe_samples(train: Samples) -> None:
    os.unlink(train.paths[2])
    seen: list[int] = []
    stored = describe(train, seen.append)
    assert seen[-1] == len(train)
    assert stored.keys == train.keys
    assert stored.labels.tolist() == train.labels.tolist()
    for i in range(len(train)):
        if i == 2:
            assert (stored.sizes[i], stored.hashes[i]) == (-1, b"")
        else:
            data = train.read(i)
            assert stored.sizes[i] == len(data)
            assert stored.hashes[i].decode() == content.content_hash(data)
    assert len(set(stored.hashes.tolist())) == len(train)
    assert stored.hashes.dtype == HASH_TYPE
    check_samples(stored, train, "train")  # a file that is still unreadable is no difference


def test_check_samples_names_what_differs(train: Samples) -> None:
    stored = describe(train)

    def refusal(samples: Samples) -> str:
        with pytest.raises(DataMismatch) as caught:
            check_samples(stored, samples, "train")
        return caught.value.message

    check_samples(stored, train, "train")
    labels = train.labels.copy()
    labels[1] = 2
    assert "train.labels[1]: 0 -> 2" in refusal(dataclasses.replace(train, labels=labels))
    fewer = refusal(train.take(np.arange(11)))
    assert "train.keys: 12 entries -> 11" in fewer
    order = train.take(np.arange(12)[::-1])
    assert f"train.keys[0]: {train.keys[0]} -> {train.keys[11]}" in refusal(order)
    size = int(stored.sizes[3])
    Path(train.paths[3]).write_bytes(b"x" * (size + 1))
    assert f"train size of {train.keys[3]}: {size} -> {size + 1}" in refusal(train)
    os.unlink(train.paths[3])
    assert f"{size} -> -1" in refusal(train)
