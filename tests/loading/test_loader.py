"""Batches by the loader against batches made by hand, and what stops a run."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.caches import NO_VAL, encoding_of, image_of, make_identity
from helpers.datasets import write_image

from fgkd import distributed, rng
from fgkd.cache.identity import ViewIdentity
from fgkd.cache.reader import Reader
from fgkd.cache.samples import describe
from fgkd.cache.writer import Writer
from fgkd.data import Samples, content
from fgkd.data.decoding import decode_rgb
from fgkd.errors import ContentMismatch, PixelMismatch, UnreadableImage
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import CHECK_EVERY, Batch, TrainLoader
from fgkd.views import transforms
from fgkd.views.recipes import ViewRecipe
from fgkd.views.view_set import ViewSet

SIZE, NUM, NUM_CLASSES, VIEW_SEED = 16, 19, 6, 4
RECIPE = ViewRecipe(crop_scale=(0.3, 1.0), hflip=0.5, rand_aug_ops=1, erasing=0.3)
SCHEDULE = Schedule(seed=2, num_samples=NUM, batch_size=8, epochs=4, views=3)
BAD = 7  # the image that the teacher could not read; not one whose pixels are compared


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """19 images; the fourth has no label."""
    root = tmp_path_factory.mktemp("images")
    keys = [f"{i}.{'png' if i % 3 else 'jpg'}" for i in range(NUM)]
    for i, key in enumerate(keys):
        write_image(root / key, i % NUM_CLASSES, i)
    labels = np.arange(NUM) % NUM_CLASSES
    labels[3] = -1
    return Samples(keys, labels, np.zeros(NUM, np.int64), [str(root / key) for key in keys])


def view_by_hand(samples: Samples, row: int, view: int, size: int = SIZE) -> np.ndarray:
    image = decode_rgb(samples.read(row), samples.keys[row])
    shape = (image.shape[1], image.shape[0])
    drawn = transforms.params(RECIPE, VIEW_SEED, samples.keys[row], view, shape)
    return transforms.render(image, drawn, size)


def logits_by_hand(row: int, view: int) -> np.ndarray:
    return np.random.default_rng([row, view]).normal(size=NUM_CLASSES).astype(np.float32)


@pytest.fixture(scope="module")
def cache(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these images by a made-up teacher; one of them could not be read."""
    folder = tmp_path_factory.mktemp("cache")
    tables = {"train": describe(samples), "val": NO_VAL}
    identity = make_identity(
        tables,
        encoding=encoding_of("dense32"),
        views=ViewIdentity(RECIPE, VIEW_SEED, SIZE),
    )
    writer = Writer(folder, identity, tables, 3, image_of)
    writer.begin()
    for job in writer.jobs():
        rows = writer.block_rows[job.block]
        logits = np.array([[logits_by_hand(row, view) for view in range(3)] for row in rows])
        digests = [
            [transforms.pixel_digest(view_by_hand(samples, row, view)) for view in range(3)]
            for row in rows
        ]
        captured = writer.captured(job)
        captured.unreadable |= {samples.keys[BAD]} if BAD in rows else set()
        captured.put(np.arange(len(rows)), range(3), logits, np.array(digests, np.uint64))
        writer.publish(captured)
    writer.finish()
    return folder


def make_loader(
    samples: Samples, cache: Path | Reader | None = None, **options: Any
) -> TrainLoader:
    reader = Reader(cache) if isinstance(cache, Path) else cache
    views = {"recipe": RECIPE, "seed": VIEW_SEED, "size": SIZE, "block_size": 8}
    views |= {name: options.pop(name) for name in list(options) if name in ("seed", "size")}
    unreadable = reader.unreadable_keys if reader else ()
    made = ViewSet(samples, **views, unreadable=unreadable)
    return TrainLoader(made, **{"schedule": SCHEDULE, "cache": reader} | options)


def assert_equal_batches(a: Batch, b: Batch) -> None:
    assert (a.spec.step, a.spec.epoch, a.spec.view) == (b.spec.step, b.spec.epoch, b.spec.view)
    assert a.count == b.count
    assert np.array_equal(a.row_ids, b.row_ids)
    assert torch.equal(a.image_u8_BHW3, b.image_u8_BHW3)
    assert torch.equal(a.labels_B, b.labels_B)
    assert (a.teacher_BK is None) == (b.teacher_BK is None)
    assert a.teacher_BK is None or torch.equal(a.teacher_BK, b.teacher_BK)
    assert a.unreadable == b.unreadable


# ---- content -------------------------------------------------------------------------------


def test_batches_without_a_cache(samples: Samples) -> None:
    batches = list(make_loader(samples).batches(0))
    assert [batch.spec.step for batch in batches] == list(range(12))
    for batch in batches:
        rows = batch.spec.rows
        assert batch.count == len(rows)
        for i, row in enumerate(rows):
            by_hand = view_by_hand(samples, row, batch.spec.epoch % 3)
            assert np.array_equal(batch.image_u8_BHW3[i].numpy(), by_hand)
        assert batch.labels_B.tolist() == samples.labels[rows].tolist()
        assert batch.row_ids.tolist() == [rng.hash64(samples.keys[row]) for row in rows]
        assert batch.teacher_BK is None
        assert batch.image_u8_BHW3.dtype == torch.uint8
    for epoch in range(4):
        labels = torch.cat([b.labels_B for b in batches if b.spec.epoch == epoch])
        assert sorted(labels.tolist()) == sorted(samples.labels.tolist())  # -1 is among them


def test_batches_with_a_cache(samples: Samples, cache: Path) -> None:
    for batch in make_loader(samples, cache).batches(0):
        rows = [row for row in batch.spec.rows if row != BAD]  # it has no target
        assert batch.count == len(rows)
        view = batch.spec.epoch % 3
        assert batch.teacher_BK is not None
        assert batch.teacher_BK.dtype == torch.float32
        for i, row in enumerate(rows):
            assert np.array_equal(batch.image_u8_BHW3[i].numpy(), view_by_hand(samples, row, view))
            assert np.array_equal(batch.teacher_BK[i].numpy(), logits_by_hand(row, view))
        assert batch.labels_B.tolist() == samples.labels[rows].tolist()


@pytest.mark.parametrize("first", [0, 1, 3, 7, 11, 12])
def test_any_workers_from_any_step(first: int, samples: Samples, cache: Path) -> None:
    whole = list(make_loader(samples, cache).batches(0))
    for workers in (0, 2):
        rest = list(make_loader(samples, cache, workers=workers).batches(first))
        assert len(rest) == 12 - first
        for a, b in zip(rest, whole[first:], strict=True):
            assert_equal_batches(a, b)


@pytest.mark.parametrize("world", [2, 3, 9])
def test_ranks_share_each_batch(
    world: int, samples: Samples, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(itertools.islice(make_loader(samples, cache).batches(0), 6))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        assert distributed.rank() == rank
        parts.append(list(itertools.islice(make_loader(samples, cache).batches(0), 6)))
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        assert all(len(part.image_u8_BHW3) >= 1 for part in mine)  # every rank takes part
        assert sum(part.count for part in mine) == batch.count
        images = torch.cat([part.image_u8_BHW3[: part.count] for part in mine])
        teacher = torch.cat([part.teacher_BK[: part.count] for part in mine])
        assert torch.equal(images, batch.image_u8_BHW3)
        assert torch.equal(teacher, batch.teacher_BK)


def test_a_rank_without_a_share_stands_in_with_a_usable_image(
    samples: Samples, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(samples, cache)
    spec = SCHEDULE.epoch_specs(0)[0]
    loader.views.has_views[spec.rows[0]] = False
    monkeypatch.setenv("WORLD_SIZE", "9")  # 8 images: rank 0 gets none
    monkeypatch.setenv("RANK", "0")
    batch = next(loader.batches(0))
    assert batch.count == 0
    assert batch.row_ids.tolist() == [rng.hash64(samples.keys[spec.rows[1]])]


# ---- what must not pass --------------------------------------------------------------------


def test_a_digest_mismatch_stops_the_run(samples: Samples, cache: Path) -> None:
    reader = Reader(cache)
    real, view = reader.stored, 1
    checked = SCHEDULE.epoch_specs(view)[0].rows[0]  # the first of every epoch is looked at

    def tampered(rows: np.ndarray, number: int, names: list[str]) -> dict[str, np.ndarray]:
        held = real(rows, number, names)
        held["digests"][rows == checked] += np.uint64(number == view)
        return held

    reader.stored = tampered  # type: ignore[method-assign]
    batches = make_loader(samples, reader).batches(0)
    assert [next(batches).spec.step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(PixelMismatch) as caught:
        next(batches)
    expected = f"view {view} of {samples.keys[checked]} are not those the teacher saw"
    assert expected in caught.value.message
    assert "library versions: unchanged" in caught.value.message


def test_a_share_of_the_pixels_is_checked(samples: Samples, cache: Path) -> None:
    """Another view seed changes every pixel: the first batch of a cache notices."""
    loader = make_loader(samples, cache, seed=VIEW_SEED + 1)
    with pytest.raises(PixelMismatch):
        next(loader.batches(0))
    reader = Reader(cache)
    reader.manifest.libraries["pillow"] = "1.0"
    loader = make_loader(samples, reader, seed=5)
    with pytest.raises(PixelMismatch, match=r"pillow: 1\.0 -> "):
        next(loader.batches(0))


def test_one_image_in_a_hundred_is_checked(samples: Samples) -> None:
    """Wherever batches and ranks cut the epoch."""
    many = Samples(
        [str(i) for i in range(450)], np.zeros(450, np.int64), np.zeros(450, np.int64), [""] * 450
    )
    for batch_size in (7, 64, 450):
        schedule = Schedule(0, 450, batch_size, 1, 1)
        loader = make_loader(many, schedule=schedule)
        asked = np.concatenate(
            [loader._request(spec, spec.rows, True).digests for spec in schedule.epoch_specs(0)]
        )
        assert np.flatnonzero(asked).tolist() == list(range(0, 450, CHECK_EVERY))


def test_another_size_has_other_pixels(samples: Samples, cache: Path) -> None:
    loader = make_loader(samples, cache, size=24)
    assert not loader.check_pixels
    batch = next(loader.batches(0))
    assert batch.image_u8_BHW3.shape[1:] == (24, 24, 3)
    row = batch.spec.rows[0]
    assert np.array_equal(batch.image_u8_BHW3[0].numpy(), view_by_hand(samples, row, 0, 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_image_is_refused(
    workers: int, samples: Samples, cache: Path, tmp_path: Path
) -> None:
    row = int(SCHEDULE.epoch_specs(0)[1].rows[2])
    path = tmp_path / "changed.png"
    write_image(path, 0, 99)
    paths = [*samples.paths[:row], str(path), *samples.paths[row + 1 :]]
    changed = dataclasses.replace(samples, paths=paths)
    hashes = [content.content_hash(s.read(row)) for s in (samples, changed)]
    batches = make_loader(changed, cache, workers=workers).batches(0)
    assert next(batches).spec.step == 0
    expected = f"content of {samples.keys[row]}: {hashes[0]} -> {hashes[1]}"
    with pytest.raises(ContentMismatch, match=re.escape(expected)):
        next(batches)


def test_bad_images_are_left_out_and_listed(samples: Samples, tmp_path: Path) -> None:
    row = int(SCHEDULE.epoch_specs(0)[1].rows[2])
    path = tmp_path / "bad.jpg"
    path.write_text("no image")
    broken = dataclasses.replace(
        samples, paths=[*samples.paths[:row], str(path), *samples.paths[row + 1 :]]
    )
    with pytest.raises(UnreadableImage, match=re.escape(str(path))):
        list(make_loader(broken).batches(0))
    for batch in make_loader(broken, skip_unreadable=True).batches(0):
        rows = [r for r in batch.spec.rows if r != row]
        assert batch.count == len(rows) == len(batch.labels_B)
        assert batch.labels_B.tolist() == samples.labels[rows].tolist()
        keys = [key for key, _ in batch.unreadable]
        assert keys == ([samples.keys[row]] if row in batch.spec.rows else [])
        assert np.array_equal(
            batch.image_u8_BHW3[-1].numpy(), view_by_hand(samples, rows[-1], batch.spec.view)
        )
