"""The image store: its pixels, what it refuses, and that it can be killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import expected
from PIL import Image
from torchvision.transforms.v2 import functional

from fgkd.cache.samples import describe
from fgkd.data import Samples
from fgkd.data.decoding import decode_rgb
from fgkd.data.image_store import ImageStore, estimate_bytes
from fgkd.errors import (
    ContentMismatch,
    DamagedCopy,
    DataMismatch,
    FileError,
    OptionError,
    UnreadableImage,
    WriteError,
)
from fgkd.loading.workers import render
from fgkd.views.recipes import RECIPES, ViewRecipe
from fgkd.views.rendering import KeyedView, Request, ViewRenderer
from stages.remedies import remedy

SIDE = 24
SIZES = ((40, 30), (30, 41), (24, 24), (10, 50), (25, 97), (64, 64))  # width, height


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """JPEGs of all shapes, one of them grey; two are not shrunk."""
    draw = np.random.default_rng(0)
    keys = [f"{i}.jpg" for i in range(len(SIZES))]
    for key, (width, height) in zip(keys, SIZES, strict=True):
        noise = draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
        image = Image.fromarray(noise).resize((width, height))
        (image.convert("L") if key == "1.jpg" else image).save(tmp_path / key, quality=95)
    zeros = np.zeros(len(keys), np.int64)
    return Samples(keys, zeros, zeros, [str(tmp_path / key) for key in keys])


@pytest.fixture
def built(samples: Samples, tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "store", samples, SIDE)
    store.build(2)
    return store


def reopened(store: ImageStore, **changes: object) -> ImageStore:
    """The same folder, opened for other samples, another side or known hashes."""
    given = {"samples": store.samples, "short_side": store.short_side} | changes
    return ImageStore(store.folder, **given)  # type: ignore[arg-type]


def test_pixels_are_those_of_torchvisions_resize_of_the_decoded_image(
    samples: Samples, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "store", samples, SIDE)
    estimate = estimate_bytes(samples, SIDE)
    seen: list[int] = []
    store.build(2, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert store.is_complete
    for row in range(len(samples)):
        whole = torch.from_numpy(decode_rgb(samples.read(row), "")).permute(2, 0, 1).contiguous()
        want = whole
        if min(whole.shape[1:]) > SIDE:
            want = functional.resize(whole, [SIDE], antialias=True)
            with Image.open(samples.paths[row]) as image:
                size = (want.shape[2], want.shape[1])
                small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(small, int) - want.permute(1, 2, 0).numpy()).max() <= 2
        assert torch.equal(torch.from_numpy(store[row].copy()).permute(2, 0, 1), want)
        assert not store[row].flags.writeable
    there = (store.folder / "pixels.u8").stat().st_size
    assert there == sum(store[row].size for row in range(len(samples))) == estimate
    assert there == store.pixels_bytes


def test_bytes_are_estimated_from_some_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 images of all shapes, within 5 % by 256; by 8 coarser; by none if none is readable."""
    draw = np.random.default_rng(1)
    keys = [f"{i}.png" for i in range(300)]
    for key in keys:
        Image.new("L", tuple(draw.integers(8, 60, 2).tolist())).save(tmp_path / key)
    zeros = np.zeros(len(keys), np.int64)
    samples = Samples(keys, zeros, zeros, [str(tmp_path / key) for key in keys])
    store = ImageStore(tmp_path / "store", samples, SIDE)
    store.build(2)
    assert estimate_bytes(samples, SIDE) == pytest.approx(store.pixels_bytes, rel=0.05)
    monkeypatch.setattr("fgkd.data.image_store.HEADERS", 8)
    few = estimate_bytes(samples, SIDE)
    assert 0.5 < few / store.pixels_bytes < 2
    assert few != store.pixels_bytes
    for path in samples.paths[1:]:
        Path(path).unlink()
    assert estimate_bytes(samples, SIDE) == 300 * store[0].size
    Path(samples.paths[0]).write_bytes(b"no image")
    assert estimate_bytes(samples, SIDE) == 0


def test_views_of_a_store_are_those_of_its_images_shrunk_on_the_fly(built: ImageStore) -> None:
    """In this process and in workers; and they are others than those of whole images."""
    request = Request(np.arange(len(SIZES)), range(3))
    answers = []
    for side, store in ((SIDE, None), (SIDE, built), (None, None)):
        view = KeyedView(built.samples, RECIPES["light"], 0, side)
        answers.append(
            [next(render(ViewRenderer(view, [16], store=store), [request], n)) for n in (0, 1)]
        )
    for here, there in answers:
        assert torch.equal(here.images[0], there.images[0])
    shrunk, stored, whole = (a[0] for a in answers)
    assert np.array_equal(shrunk.digests_BV, stored.digests_BV)
    same = (whole.digests_BV == stored.digests_BV).all(1)
    assert same.tolist() == [min(size) <= SIDE for size in SIZES]


def test_a_store_pickles_as_its_path(built: ImageStore) -> None:
    first = built[0].copy()
    data = pickle.dumps(built)
    assert len(data) < 5000 < built.pixels_bytes
    assert np.array_equal(pickle.loads(data)[0], first)


def test_a_stale_store_is_refused(built: ImageStore, tmp_path: Path) -> None:
    def refused(**changes: object) -> str:
        with expected(DataMismatch) as caught:
            reopened(built, **changes)
        assert remedy(caught.value).startswith(f"rm -r {built.folder}")
        return caught.value.message

    samples = built.samples
    hashes = describe(samples).hashes.astype(str).tolist()
    assert reopened(built, hashes=hashes).is_complete
    assert "short_side: 24 -> 25" in refused(short_side=25)
    assert "keys: 6 entries -> 5" in refused(samples=samples.take(np.arange(5)))
    assert "keys[0]: 0.jpg -> 1.jpg" in refused(samples=samples.take(np.array([1, 0, 2, 3, 4, 5])))
    other = [*hashes[:3], "0" * 32, *hashes[4:]]
    assert f"hashes[3]: {hashes[3]} -> {'0' * 32}" in refused(hashes=other)
    with open(samples.paths[2], "ab") as file:
        file.write(b"more")
    assert "sizes[2]:" in refused()


def test_a_damaged_store_is_refused(built: ImageStore) -> None:
    index, pixels = built.folder / "index.json", built.folder / "pixels.u8"
    with open(pixels, "rb+") as file:
        file.truncate(built.pixels_bytes - 1)
    with expected(DamagedCopy, path=built.folder):
        reopened(built)
    pixels.unlink()
    with expected(DamagedCopy, path=built.folder):
        reopened(built)
    held = json.loads(index.read_text())
    for text in ("{", "[]", json.dumps(held | {"heights": "x"})):
        index.write_text(text)
        with pytest.raises(FileError):
            reopened(built)
    for name in ("heights", "widths"):
        index.write_text(json.dumps(held | {name: held[name][:-1]}))
        with expected(DamagedCopy, path=built.folder):
            reopened(built)


def test_read_only_places(built: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is read where nothing can be written, and not begun there (for root, too)."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("os.mkdir", "os.replace", "fcntl.flock"):
        monkeypatch.setattr(call, refuse)
    store = reopened(built)
    store.build(1)
    assert np.array_equal(store[0], built[0])
    with expected(WriteError):
        ImageStore(built.folder / "new", built.samples, SIDE).build(1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(
    built: ImageStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing is written there; a store that is there is read."""

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    store = ImageStore(built.folder / "new", built.samples, SIDE)
    with expected(OptionError, option="image_store") as caught:
        store.build(1)
    assert os.strerror(number) in caught.value.message
    assert list(store.folder.iterdir()) == []
    opened = reopened(built)
    opened.build(1)
    assert np.array_equal(opened[0], built[0])


def test_a_full_disk_is_said_before_it_is_full(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path / "store", samples, SIDE)
    needed = estimate_bytes(samples, SIDE)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with expected(WriteError, errno=errno.ENOSPC):
        store.build(1)
    assert list(store.folder.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    store.build(1)
    assert store.is_complete


def test_unreadable_images(samples: Samples, tmp_path: Path) -> None:
    """They stop the build, or are left out and are errors of their own when asked for."""
    Path(samples.paths[1]).write_bytes(b"no image")
    Path(samples.paths[4]).unlink()
    with expected(UnreadableImage, path=samples.paths[1]):
        ImageStore(tmp_path / "strict", samples, SIDE).build(2)
    assert list((tmp_path / "strict").iterdir()) == []
    store = ImageStore(tmp_path / "store", samples, SIDE)
    store.build(2, skip_unreadable=True)
    assert set(reopened(store).unreadable) == {"1.jpg", "4.jpg"}
    renderer = ViewRenderer(KeyedView(samples, ViewRecipe(), 0, SIDE), [16], None, True, store)
    answer = next(render(renderer, [Request(np.arange(6), [0])], 0))
    assert answer.rows.tolist() == [0, 2, 3, 5]
    assert [key for key, _ in answer.unreadable] == ["1.jpg", "4.jpg"]
    with pytest.raises(UnreadableImage):
        store[4]


def test_other_content_is_found_while_building(samples: Samples, tmp_path: Path) -> None:
    """Even where unreadable images are left out."""
    hashes = ["0" * 32] * len(samples)
    store = ImageStore(tmp_path / "store", samples, SIDE, hashes)
    with expected(ContentMismatch, key="0.jpg"):
        store.build(1, skip_unreadable=True)
    assert not ImageStore(store.folder, samples, SIDE).is_complete


def test_two_writers_write_once(samples: Samples, tmp_path: Path) -> None:
    """The second waits for the first, and then reads what is there."""
    stores = [ImageStore(tmp_path / "store", samples, SIDE) for _ in range(2)]
    second: list[Future[None]] = []
    seen: list[int] = []

    def progress(done: int) -> None:
        if done == 1:
            second.append(pool.submit(stores[1].build, 1, False, seen.append))
        assert not second[0].done()

    with ThreadPoolExecutor(1) as pool:
        stores[0].build(1, progress=progress)
        second[0].result()
    assert stores[1].is_complete
    assert seen == []
