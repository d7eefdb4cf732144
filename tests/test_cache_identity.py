"""A cache of something else is refused, and the refusal names what differs, old -> new."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_miniatures import IDENTITY, image_of, make_identity, write_cache
from data_miniatures import write_folder

from fgkd import comparison
from fgkd.cache import manifest
from fgkd.cache.writer import Writer
from fgkd.data import Samples, content, open_dataset
from fgkd.errors import DataMismatch, Difference, FgkdError
from fgkd.files import fingerprint

KEYS, CLASSES = IDENTITY["train"]["keys"], IDENTITY["dataset"]["classes"]
SWAPPED = [CLASSES[1], CLASSES[0], *CLASSES[2:]]


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("format_version", 1, "format_version: 2 -> 1"),
        ("encoding__name", "int8", "encoding.name: dense -> int8"),
        ("shard_size", 9, "shard_size: 8 -> 9"),
        ("dtype", "bfloat16", "dtype: float32 -> bfloat16"),
        ("teachers__0__weights_sha256", "bb", "teachers[0].weights_sha256: aa -> bb"),
        ("teachers__0__architecture", "vit", "teachers[0].architecture: convnext -> vit"),
        ("views__recipe__crop_scale", [0.4, 1.0], "views.recipe.crop_scale[0]: 0.5 -> 0.4"),
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
        ("train__hashes__4", "f" * 32, f"train.hashes[4]: {4:032x} -> {'f' * 32}"),
        ("train__labels__0", 5, "train.labels[0]: 0 -> 5"),
        ("train__keys__2", "other.jpg", f"train.keys[2]: {KEYS[2]} -> other.jpg"),
        ("val__sizes__1", 8, "val.sizes[1]: 7 -> 8"),
    ],
)
def test_one_field_of_the_identity(field: str, value: Any, line: str, tmp_path: Path) -> None:
    changed = make_identity(**{field: value})
    assert fingerprint(changed) != fingerprint(IDENTITY)
    (difference,) = comparison.differences(IDENTITY, changed)
    assert str(difference).startswith(line)
    write_cache(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataMismatch) as caught:
        Writer(tmp_path, changed, 3, image_of)
    assert line in caught.value.message
    assert caught.value.subject == "cache"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_equal_identities_have_no_mismatch() -> None:
    through_json = json.loads(json.dumps(IDENTITY))
    assert comparison.differences(through_json, make_identity()) == []
    assert fingerprint(through_json) == fingerprint(IDENTITY)


def test_mismatches_are_counted_not_listed_without_end() -> None:
    lines = [Difference(f"line {i}", 0, 1) for i in range(9)]
    with pytest.raises(FgkdError) as caught:
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
    with pytest.raises(FgkdError, match=r"no identity\.json"):
        Writer(tmp_path, make_identity(), 3, image_of)


# ---- the images on disk --------------------------------------------------------------------


@pytest.fixture
def train(tmp_path: Path) -> Samples:
    write_folder(tmp_path)
    return open_dataset([f"folder:{tmp_path}"]).splits["train"]


def test_describe_samples(train: Samples) -> None:
    os.unlink(train.paths[2])
    seen: list[int] = []
    stored = manifest.describe_samples(train, seen.append)
    assert stored["keys"] == train.keys
    assert stored["labels"] == train.labels.tolist()
    for i in range(len(train)):
        if i == 2:
            assert (stored["sizes"][i], stored["hashes"][i]) == (-1, "")
        else:
            data = train.read(i)
            assert stored["sizes"][i] == len(data)
            assert stored["hashes"][i] == content.content_hash(data)
    assert len(set(stored["hashes"])) == len(train)
    assert len(stored["hashes"][0]) == content.HASH_HEX
    manifest.check_samples(stored, train, "train")  # a file that is still unreadable is no news


def test_check_samples_names_what_differs(train: Samples) -> None:
    stored = manifest.describe_samples(train)

    def refusal(samples: Samples) -> str:
        with pytest.raises(FgkdError) as caught:
            manifest.check_samples(stored, samples, "train")
        return caught.value.message

    manifest.check_samples(stored, train, "train")
    labels = train.labels.copy()
    labels[1] = 2
    assert "train.labels[1]: 0 -> 2" in refusal(dataclasses.replace(train, labels=labels))
    fewer = refusal(train.take(np.arange(11)))
    assert "train.keys: 12 entries -> 11" in fewer
    order = train.take(np.arange(12)[::-1])
    assert f"train.keys[0]: {train.keys[0]} -> {train.keys[11]}" in refusal(order)
    size = stored["sizes"][3]
    Path(train.paths[3]).write_bytes(b"x" * (size + 1))
    assert f"train size of {train.keys[3]}: {size} -> {size + 1}" in refusal(train)
    os.unlink(train.paths[3])
    assert f"{size} -> -1" in refusal(train)
