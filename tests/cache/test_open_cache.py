"""The public face of a cache: what `open_cache` gives to someone's own training loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.caches import (
    IDENTITY,
    NUM_CLASSES,
    NUM_TRAIN,
    TABLES,
    encoding_of,
    logits_of,
    write_cache,
)
from helpers.shard_server import serve

from fgkd.cache import Reader, open_cache
from fgkd.errors import DamagedCache, DownloadError, MissingFile, UnstoredTemperature


@pytest.fixture(params=["folder", "path", "url"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    """A topk cache of 5 views in two ranges, opened in each way."""
    for views in (2, 5):
        write_cache(tmp_path, views=views, encoding=encoding_of("topk"))
    if request.param == "url":
        with serve(tmp_path) as (url, _):
            reader = open_cache(f"{url}/")
            assert reader.name == url
            yield reader
            reader.close()
        return
    reader = open_cache(tmp_path if request.param == "path" else str(tmp_path))
    yield reader
    reader.close()


def test_what_it_says_of_itself(cache: Reader) -> None:
    assert cache.classes == [f"class {i}" for i in range(NUM_CLASSES)]
    assert cache.views == 5
    assert cache.identity.teachers == IDENTITY.teachers
    assert cache.identity.views.recipe.hflip == 0.5
    assert cache.identity.views.short_side is None
    assert cache.codec.temperatures == (1.0, 2.0)
    assert {split: len(table) for split, table in cache.samples.items()} == {"train": 23, "val": 5}
    assert cache.samples["train"].keys == TABLES["train"].keys


def test_a_folder_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache("~/cache").classes == open_cache(tmp_path / "cache").classes


def test_the_teacher_s_accuracy(cache: Reader) -> None:
    labels = TABLES["train"].labels
    known = np.flatnonzero(labels >= 0)
    hits = [logits_of(row, view).argmax() == labels[row] for row in known for view in range(5)]
    assert cache.teacher_top1 == pytest.approx(100 * np.mean(hits))


def test_no_accuracy_without_labels(tmp_path: Path) -> None:
    labels = np.full(NUM_TRAIN, -1)
    assert open_cache(write_cache(tmp_path, train__labels=labels)).teacher_top1 is None


@pytest.mark.parametrize("rows", [[], [22], [3, 0, 22, 3, 17, 8], list(range(23))])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_are_rows_of_a_view(cache: Reader, rows: list[int], temperature: float) -> None:
    for view in (0, 1, 4):
        held = cache.arrays_of_view(view)
        held.pop("digests")
        want = cache.decode(held, temperature)[rows]
        got = cache.targets(np.array(rows, np.int64), view, temperature)
        assert got.dtype == np.float32
        assert got.shape == (len(rows), NUM_CLASSES)
        assert np.array_equal(got, want)


def test_a_tail_is_exact_in_the_softmax(cache: Reader) -> None:
    """The kept classes of the decoded target have the teacher's probabilities, to float16."""
    for temperature in (1.0, 2.0):
        target = cache.targets(np.arange(NUM_TRAIN), 3, temperature).astype(np.float64)
        p = np.exp(target / temperature)
        p /= p.sum(1, keepdims=True)
        true = np.array([logits_of(row, 3) for row in range(NUM_TRAIN)], np.float64)
        q = np.exp(true / temperature)
        q /= q.sum(1, keepdims=True)
        top = np.argsort(-true, axis=1)[:, :2]
        kept = [np.take_along_axis(x, top, 1) for x in (p, q)]
        np.testing.assert_allclose(*kept, rtol=2e-2)


def test_what_it_refuses(cache: Reader) -> None:
    with pytest.raises(UnstoredTemperature):
        cache.targets(np.array([0]), 0, 3.0)
    for rows, view in (([23], 0), ([-1], 0), ([0], cache.views), ([0], -1)):
        with pytest.raises(IndexError):
            cache.targets(np.array(rows), view, 1.0)
    for wrong in ([0.5], [True]):
        with pytest.raises(TypeError):
            cache.targets(np.array(wrong), 0, 1.0)
    assert cache.targets(np.array([]), 0, 1.0).shape == (0, NUM_CLASSES)


def test_what_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as missing:
        open_cache(tmp_path)
    assert missing.value.path == tmp_path / "manifest.json"
    with serve(tmp_path) as (url, _), pytest.raises(DownloadError) as caught:
        open_cache(url)
    assert caught.value.url == f"{url}/manifest.json"
    assert caught.value.reason == "it is not there"
    cache = write_cache(tmp_path / "cache")
    (cache / "samples.h5").write_bytes(b"")
    with serve(cache) as (url, _), pytest.raises(DamagedCache) as damaged:
        open_cache(url)
    assert (damaged.value.cache, damaged.value.path) == (url, f"{url}/samples.h5")
