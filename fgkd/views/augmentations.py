"""The operations of a view: for each, what it draws and what it does to pixels.

A `draw_` function takes `u`, uniforms in [0, 1), and is otherwise pure; it knows no output size.
Shape suffixes: H height, W width, C channels (RGB). All images are uint8 and none is changed in
place. Measured at 224 x 224 in one thread: torch resizes and flips faster than Pillow, Pillow does
the rest faster than torchvision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fgkd import rng

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
Colour = tuple[int, int, int]
Ops = tuple[tuple[str, float], ...]  # (name in OPS, value), in order of application
Erase = tuple[float, float, float, float]  # x, y as shares of the room left; w, h of the side


def between(bounds: tuple[float, float], u: float) -> float:
    """The uniform `u`, stretched to the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def draw_crop(
    region: Box, scale: tuple[float, float], ratio: tuple[float, float], u: list[float]
) -> Box:
    """Random resized crop of a region, as in torchvision: ten attempts, else `centred_box`.

    `scale` bounds the share of the area and `ratio` width / height. Takes 22 uniforms.
    """
    x, y, width, height = region
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for area_u, ratio_u in zip(u[0:20:2], u[1:20:2], strict=True):
        area = width * height * between(scale, area_u)
        aspect = math.exp(between(log_ratio, ratio_u))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return x + int(u[20] * (width - w + 1)), y + int(u[21] * (height - h + 1)), w, h
    return centred_box(region, ratio)


def centred_box(region: Box, ratio: tuple[float, float]) -> Box:
    """The largest box in the middle of a region whose width / height is within `ratio`."""
    x, y, width, height = region
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return x + (width - w) // 2, y + (height - h) // 2, w, h


def crop_resize_flip(
    image_HWC: np.ndarray, box: Box, size: int, interpolation: str, flip: bool
) -> np.ndarray:
    """The box of an image as a new [size, size, 3], antialiased, mirrored left to right if `flip`.

    The values are those of torchvision's `resized_crop` and `horizontal_flip`.
    """
    import torch  # here and not above: torch takes a second to import

    x, y, w, h = box
    # A contiguous crop keeps torch on its channels-last kernels (a strided one costs 140 us more).
    crop_HWC = image_HWC[y : y + h, x : x + w].copy()
    assert crop_HWC.shape == (h, w, 3), f"box {box} in an image {image_HWC.shape}"
    view_1CHW = torch.nn.functional.interpolate(
        torch.from_numpy(crop_HWC)[None].permute(0, 3, 1, 2),
        (size, size),
        mode=interpolation,
        antialias=True,
    )
    if flip:
        view_1CHW = view_1CHW.flip(-1)
    return np.ascontiguousarray(view_1CHW[0].permute(1, 2, 0).numpy())


class Geometry(TypedDict):
    """Keywords of Pillow's geometric functions."""

    resample: Image.Resampling
    fillcolor: Colour


class Op(NamedTuple):
    """A RandAugment operation: `value` of a level in [-1, 1], and what it does with that value.

    The sign of a level is the direction, where an operation has one. `apply(image, value, how)`
    takes in `how` the keywords of Pillow's geometric functions.
    """

    value: Callable[[float], float]
    apply: Callable[[Image.Image, Any, Geometry], Image.Image]


def _no_value(level: float) -> float:
    return 0.0


def _factor(level: float) -> float:
    return max(0.1, 1.0 + 0.9 * level)


def _affine(image: Image.Image, matrix: tuple[float, ...], how: Geometry) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)


def _posterize(image: Image.Image, bits: int, how: Geometry) -> Image.Image:
    """Keep the top `bits` of each pixel (ImageOps.posterize refuses 0 bits since Pillow 13)."""
    return image.point([v >> (8 - bits) << (8 - bits) for v in range(256)] * 3)


def _solarize_add(image: Image.Image, add: int, how: Geometry) -> Image.Image:
    return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


# RandAugment (Cubuk et al., 2019, arXiv:1909.13719) with the operations, value ranges and order of
# timm's "increasing" set. The order is part of every cache: a draw picks an operation by position.
OPS: dict[str, Op] = {
    "AutoContrast": Op(_no_value, lambda image, v, how: ImageOps.autocontrast(image)),
    "Equalize": Op(_no_value, lambda image, v, how: ImageOps.equalize(image)),
    "Invert": Op(_no_value, lambda image, v, how: ImageOps.invert(image)),
    "Rotate": Op(lambda s: 30.0 * s, lambda image, v, how: image.rotate(v, **how)),
    "PosterizeIncreasing": Op(lambda s: 4 - int(4 * abs(s)), _posterize),
    "SolarizeIncreasing": Op(
        lambda s: 256 - int(256 * abs(s)), lambda image, v, how: ImageOps.solarize(image, v)
    ),
    "SolarizeAdd": Op(lambda s: int(110 * abs(s)), _solarize_add),
    "ColorIncreasing": Op(_factor, lambda image, v, how: ImageEnhance.Color(image).enhance(v)),
    "ContrastIncreasing": Op(
        _factor, lambda image, v, how: ImageEnhance.Contrast(image).enhance(v)
    ),
    "BrightnessIncreasing": Op(
        _factor, lambda image, v, how: ImageEnhance.Brightness(image).enhance(v)
    ),
    "SharpnessIncreasing": Op(
        _factor, lambda image, v, how: ImageEnhance.Sharpness(image).enhance(v)
    ),
    "ShearX": Op(lambda s: 0.3 * s, lambda image, v, how: _affine(image, (1, v, 0, 0, 1, 0), how)),
    "ShearY": Op(lambda s: 0.3 * s, lambda image, v, how: _affine(image, (1, 0, 0, v, 1, 0), how)),
    "TranslateXRel": Op(
        lambda s: 0.45 * s,
        lambda image, v, how: _affine(image, (1, 0, v * image.width, 0, 1, 0), how),
    ),
    "TranslateYRel": Op(
        lambda s: 0.45 * s,
        lambda image, v, how: _affine(image, (1, 0, 0, 0, 1, v * image.height), how),
    ),
}


def draw_jitter(strength: float, u: list[float]) -> Ops:
    """Brightness, contrast and saturation in a random order, as torchvision's ColorJitter.

    Factors are in 1 +- strength; 0 is off. Takes 6 uniforms.
    """
    names = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
    order = sorted(range(3), key=u[3:].__getitem__) if strength else ()
    return tuple((names[i], between((1.0 - strength, 1.0 + strength), u[i])) for i in order)


def draw_rand_augment(magnitude: float, std: float, u: list[float]) -> Ops:
    """timm's rand-m{magnitude}-mstd{std}-inc1, five uniforms an operation.

    Each operation is applied with probability 0.5, at a normal magnitude clipped to 0..10.
    """
    ops, names = [], tuple(OPS)
    for start in range(0, len(u), 5):
        which, skip, sign, u1, u2 = u[start : start + 5]
        if skip < 0.5:
            normal = math.sqrt(-2.0 * math.log(1.0 - u1)) * math.cos(2.0 * math.pi * u2)
            level = min(max(magnitude + std * normal, 0.0), 10.0) / 10.0
            name = names[int(which * len(names))]
            ops.append((name, OPS[name].value(level if sign < 0.5 else -level)))
    return tuple(ops)


def apply_ops(image_HWC: np.ndarray, ops: Ops, interpolation: str, fill: Colour) -> np.ndarray:
    """A new image after the operations; `fill` is the colour behind moved images."""
    how = Geometry(resample=Image.Resampling[interpolation.upper()], fillcolor=fill)
    image = Image.fromarray(image_HWC)
    for name, value in ops:
        image = OPS[name].apply(image, value, how)
    return np.array(image)


def draw_erase(probability: float, u: list[float]) -> Erase | None:
    """Random erasing of one box (Zhong et al., 2017, arXiv:1708.04896), with timm's bounds.

    Takes 23 uniforms.
    """
    if u[0] < probability:
        log_ratio = (math.log(0.3), -math.log(0.3))
        for area_u, ratio_u in zip(u[3::2], u[4::2], strict=True):
            area, aspect = between((0.02, 1 / 3), area_u), math.exp(between(log_ratio, ratio_u))
            w, h = math.sqrt(area / aspect), math.sqrt(area * aspect)
            if w < 1 and h < 1:
                return u[1], u[2], w, h
    return None


def erase_box(erase: Erase, size: int) -> Box:
    """The erased pixels of a view of this size."""
    w, h = round(erase[2] * size), round(erase[3] * size)
    return int(erase[0] * (size - w + 1)), int(erase[1] * (size - h + 1)), w, h


def noise(height: int, width: int, seed: int, mean: Colour) -> np.ndarray:
    """uint8 [height, width, 3]: independent normal noise of this mean and std 57, clipped.

    57 is ImageNet's std in uint8, so this is timm's unit noise before normalisation. Each byte of
    the keyed stream picks one of 256 equally likely levels of the normal distribution.
    """
    num_bytes = height * width * 3
    words = rng.stream("noise", seed).raw(-(-num_bytes // 8)).astype("<u8")  # on any machine
    picks_HWC = words.view(np.uint8)[:num_bytes].reshape(height, width, 3)
    levels_HWC = _normal_levels().take(picks_HWC) + np.array(mean, dtype=np.int16)
    return np.clip(levels_HWC, 0, 255).astype(np.uint8)


@functools.cache
def _normal_levels() -> np.ndarray:
    from statistics import NormalDist

    quantile = NormalDist(sigma=57.0).inv_cdf
    return np.array([round(quantile((i + 0.5) / 256)) for i in range(256)], dtype=np.int16)
