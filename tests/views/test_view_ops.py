"""The operations of a view are torchvision's and timm's: pixel for pixel, or in distribution."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.stats import ks_2samp
from timm.data import auto_augment as timm_aa
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from fgkd.views import augmentations

FILL = (124, 116, 104)
CHANCE = 1e-4  # the seeds below are fixed, but their streams may change with a library
COARSE = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
IMAGE = np.array(Image.fromarray(COARSE).resize((200, 150), Image.Resampling.BICUBIC))


def uniforms(rows: int, n: int) -> list[list[float]]:
    return np.random.default_rng(1).random((rows, n)).tolist()


def test_crop_is_torchvisions_in_distribution() -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = [augmentations.draw_crop((0, 0, 500, 375), scale, ratio, u) for u in uniforms(5000, 22)]
    torch.manual_seed(0)
    blank = torch.empty(3, 375, 500)
    theirs = [RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in ours]
    x, y, w, h = np.array(ours).T
    their_y, their_x, their_h, their_w = np.array(theirs).T
    assert ks_2samp(w * h, their_w * their_h).pvalue > CHANCE
    assert ks_2samp(w / h, their_w / their_h).pvalue > CHANCE
    assert ks_2samp(x, their_x).pvalue > CHANCE
    assert ks_2samp(y, their_y).pvalue > CHANCE


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 1000), (1000, 1), (500, 375), (7, 99)])
def test_centred_box_is_torchvisions_fallback(width: int, height: int) -> None:
    # An area twice the image's makes all ten attempts fail.
    blank = torch.empty(3, height, width)
    y, x, h, w = RandomResizedCrop.get_params(blank, [2.0, 2.0], [3 / 4, 4 / 3])
    ours = augmentations.draw_crop((0, 0, width, height), (2.0, 2.0), (3 / 4, 4 / 3), [0.5] * 22)
    assert ours == (x, y, w, h)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_resize_flip_is_torchvisions(interpolation: str, flip: bool) -> None:
    x, y, w, h = 30, 20, 101, 87
    ours = augmentations.crop_resize_flip(IMAGE, (x, y, w, h), 64, interpolation, flip)
    mode = functional.InterpolationMode(interpolation)
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1).contiguous()
    theirs = functional.resized_crop(tensor, y, x, h, w, [64, 64], mode, antialias=True)
    theirs = functional.horizontal_flip(theirs) if flip else theirs
    assert np.array_equal(ours, theirs.permute(1, 2, 0).numpy())


def test_the_ops_are_timms_increasing_set() -> None:
    assert tuple(augmentations.OPS) == tuple(timm_aa._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", augmentations.OPS)
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 9.0, 10.0])
def test_op_is_timms(name: str, magnitude: float) -> None:
    op, to_args = augmentations.OPS[name], timm_aa.LEVEL_TO_ARG[name]
    ours = {op.value(magnitude / 10), op.value(-magnitude / 10)}
    random.seed(0)  # timm draws the sign here: 40 times gives both
    assert ours == ({to_args(magnitude, {})[0] for _ in range(40)} if to_args else {0.0})
    for value in ours:
        if name == "PosterizeIncreasing":  # timm's raises under Pillow 13 for 0 bits
            expected = IMAGE & np.uint8(255 << (8 - int(value)) & 255)
        else:
            how = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
            args = (value,) if to_args else ()
            expected = timm_aa.NAME_TO_OP[name](Image.fromarray(IMAGE), *args, **how)
        mine = augmentations.apply_ops(IMAGE, ((name, value),), "bicubic", FILL)
        assert np.array_equal(mine, np.asarray(expected))


def test_rand_augment_draws_each_op_and_skips_half() -> None:
    drawn = [op for u in uniforms(3000, 10) for op in augmentations.draw_rand_augment(9.0, 0.5, u)]
    assert len(drawn) / 6000 == pytest.approx(0.5, abs=0.03)
    names = [name for name, _ in drawn]
    for name in augmentations.OPS:
        assert names.count(name) / len(drawn) == pytest.approx(1 / 15, abs=0.02)
    degrees = np.array([value for name, value in drawn if name == "Rotate"])
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.12)
    # timm's draw: a normal of mean 9 and std 0.5, clipped at 10, times 3 degrees
    timms = np.minimum(np.random.default_rng(2).normal(9.0, 0.5, 3000), 10.0) * 3.0
    assert ks_2samp(np.abs(degrees), timms).pvalue > CHANCE


def test_jitter_stays_within_its_strength_in_every_order() -> None:
    drawn = [augmentations.draw_jitter(0.4, u) for u in uniforms(300, 6)]
    factors = [value for ops in drawn for _, value in ops]
    assert 0.6 <= min(factors) < 0.65 < 1.35 < max(factors) <= 1.4
    assert len({tuple(name for name, _ in ops) for ops in drawn}) == 6
    assert augmentations.draw_jitter(0.0, [0.5] * 6) == ()


def test_ops_are_applied_in_order() -> None:
    ops = (("BrightnessIncreasing", 1.9), ("ContrastIncreasing", 0.4))
    brighter = ImageEnhance.Brightness(Image.fromarray(IMAGE)).enhance(1.9)
    expected = np.asarray(ImageEnhance.Contrast(brighter).enhance(0.4))
    assert np.array_equal(augmentations.apply_ops(IMAGE, ops, "bicubic", FILL), expected)
    assert not np.array_equal(augmentations.apply_ops(IMAGE, ops[::-1], "bicubic", FILL), expected)


def test_erasing_is_timms_in_distribution() -> None:
    size, num = 64, 2000
    drawn = [augmentations.draw_erase(0.5, u) for u in uniforms(num, 23)]
    boxes = [augmentations.erase_box(erase, size) for erase in drawn if erase is not None]
    assert len(boxes) / num == pytest.approx(0.5, abs=0.04)
    x, y, w, h = np.array(boxes).T
    assert min(x) >= 0
    assert min(y) >= 0
    assert max(x + w) <= size
    assert max(y + h) <= size
    random.seed(0)
    erasing = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    theirs = [erasing(torch.zeros(3, size, size)).any(dim=0) for _ in boxes]
    their_h = np.array([erased.any(dim=1).sum().item() for erased in theirs])
    their_w = np.array([erased.any(dim=0).sum().item() for erased in theirs])
    assert 0.018 < min(w * h) / size**2 < max(w * h) / size**2 < 0.35
    assert ks_2samp(w * h, their_w * their_h).pvalue > CHANCE
    assert ks_2samp(w / h, their_w / their_h).pvalue > CHANCE


def test_noise_is_normal_keyed_and_uncorrelated() -> None:
    patch = augmentations.noise(100, 101, 5, FILL)
    assert (patch.dtype, patch.shape) == (np.uint8, (100, 101, 3))
    assert np.array_equal(patch, augmentations.noise(100, 101, 5, FILL))
    assert not np.array_equal(patch, augmentations.noise(100, 101, 6, FILL))
    assert np.allclose(patch.mean(axis=(0, 1)), FILL, atol=2)
    assert np.allclose(patch.std(axis=(0, 1)), 56, atol=2)  # 57, less what clipping takes
    centred = patch - patch.mean(axis=(0, 1))
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 0.02 * centred.var()
