"""The evaluation view: timm's transform on Pillow's decode, to the pixel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.datasets import encode, pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgkd import distributed
from fgkd.data import Samples
from fgkd.errors import UnreadableFile
from fgkd.loading.workers import render
from fgkd.views.clean import EvalTransform, clean_renderer
from fgkd.views.rendering import Request
from stages.remedies import remedy

SHAPES = [(40, 30), (30, 40), (64, 64), (33, 97), (200, 51), (9, 11), (32, 32)]  # width, height


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Images of many aspect ratios, JPEG and PNG, colour, grey and with a palette."""
    root = tmp_path_factory.mktemp("shapes")
    paths = []
    for i, size in enumerate(SHAPES):
        image = pixels(i, i, size).convert(("RGB", "L", "P")[i % 3])
        paths.append(root / f"{i}.{'png' if i % 2 or i % 3 == 2 else 'jpg'}")
        paths[-1].write_bytes(encode(image, "PNG" if paths[-1].suffix == ".png" else "JPEG"))
    n = len(paths)
    keys = [path.name for path in paths]
    return Samples(keys, np.zeros(n, np.int64), np.zeros(n, np.int64), [str(p) for p in paths])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode"),
    [
        (32, 0.875, "center"),
        (24, 1.0, "center"),
        (48, 0.95, "center"),
        (32, 1.0, "squash"),
        (32, 0.9, "border"),
    ],
)
def test_equals_timm(
    size: int, crop_pct: float, crop_mode: str, interpolation: str, samples: Samples
) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    config: dict[str, Any] = {
        "input_size": (3, size, size),
        "mean": mean,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    transform = timm.data.create_transform(**config, std=std)
    renderer = clean_renderer(samples, EvalTransform.of(config), False)
    answer = renderer[Request(np.arange(len(samples)), [0])]
    for i, image_u8_HW3 in enumerate(answer.images[0][:, 0]):
        with Image.open(io.BytesIO(samples.read(i))) as image:
            theirs = transform(image.convert("RGB"))
        ours = image_u8_HW3.permute(2, 0, 1).float() / 255
        ours = (ours - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)  # 1 level is 0.013


def test_an_image_in_memory_is_prepared_as_its_file_is(samples: Samples) -> None:
    """Opened by Pillow in any mode and left as it is, or as an array."""
    transform = EvalTransform(24, 0.9, "bicubic", (0.5, 0.4, 0.3))
    wanted = clean_renderer(samples, transform, False)[Request(np.arange(len(samples)), [0])]
    for i, image_HW3 in enumerate(wanted.images[0][:, 0]):
        with Image.open(io.BytesIO(samples.read(i))) as image:
            image.info["transparency"] = 0
            found_3HW = transform(image)
            again_3HW = transform(np.array(image.convert("RGB")))
            assert image.info["transparency"] == 0
        assert np.array_equal(found_3HW, image_HW3.permute(2, 0, 1))
        assert np.array_equal(again_3HW, found_3HW)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images(workers: int, samples: Samples, tmp_path: Path) -> None:
    paths = list(samples.paths)
    paths[2] = str(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    paths[4] = str(tmp_path / "text.jpg")
    damaged = Samples(samples.keys, samples.labels, samples.domains, paths)
    config = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic"}
    config |= {"mean": (0.5, 0.5, 0.5)}
    requests = [Request(np.array([1, 2, 3]), [0]), Request(np.array([4]), [0])]
    strict = render(clean_renderer(damaged, EvalTransform.of(config), False), requests, workers)
    with pytest.raises(UnreadableFile, match=r"missing\.jpg") as caught:
        list(strict)
    assert remedy(caught.value)
    assert "Traceback" not in str(caught.value)
    lenient = list(
        render(clean_renderer(damaged, EvalTransform.of(config), True), requests, workers)
    )
    assert [answer.rows.tolist() for answer in lenient] == [[1, 3], []]
    assert [len(answer.images[0]) for answer in lenient] == [2, 0]
    bad = [key for answer in lenient for key, _ in answer.unreadable]
    assert bad == [samples.keys[2], samples.keys[4]]
    whole = clean_renderer(samples, EvalTransform.of(config), False)[Request(np.array([1, 3]), [0])]
    assert torch.equal(lenient[0].images[0], whole.images[0])


@given(n=st.integers(0, 70), world=st.integers(1, 9), unit=st.integers(1, 3))
def test_shares_partition_a_batch(n: int, world: int, unit: int) -> None:
    rows = np.arange(n) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        shares = []
        for rank in range(world):
            patch.setenv("RANK", str(rank))
            shares.append(distributed.share(rows, unit))
    assert np.array_equal(np.concatenate(shares), rows)  # every row once, in order
    units = [-(-len(share) // unit) for share in shares]
    assert max(units) - min(units) <= 1
    starts = np.cumsum([0, *map(len, shares)])[:-1]
    assert all(start % unit == 0 for start, share in zip(starts, shares, strict=True) if len(share))
