"""Sampling and rendering of one augmented view.

`params` draws every random choice without reading an image; `render` applies them.

Shape suffixes: H height, W width, C channels (RGB). All images are uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from fgkd import rng
from fgkd.errors import BadBoundingBox
from fgkd.views import augmentations
from fgkd.views.augmentations import Box, Colour, Erase, Ops
from fgkd.views.recipes import ViewRecipe


@dataclass(frozen=True)
class ViewParams:
    """Every random choice of one view, resolved; it holds at any output size."""

    box: Box  # in source pixels
    interpolation: str
    flip: bool
    ops: Ops  # colour jitter, then RandAugment
    erase: Erase | None
    noise_seed: int | None  # None erases with `fill`
    fill: Colour


# Each choice has its own places in one row of uniforms, so that switching one on or off leaves the
# others as they were. RandAugment comes last, with five an operation.
_CROP, _ERASE, _JITTER, _RAND_AUG = slice(22), slice(22, 45), slice(45, 51), slice(53, None)


_FLIP, _INTERPOLATION = 51, 52


def params(
    recipe: ViewRecipe,
    seed: int,
    key: str,
    view: int,
    source_size: tuple[int, int],
    bbox: Box | None = None,
) -> ViewParams:
    """Draw view number `view` of a sample whose image is `source_size` (width, height).

    With a `bbox` the crop is taken inside it. Raises: BadBoundingBox for one outside the image.
    """
    num_draws = _RAND_AUG.start + 5 * recipe.rand_aug_ops
    u = rng.stream("view", seed, key, view).uniforms(num_draws).tolist()
    region = _region(source_size, bbox)
    if recipe.crop_scale == (1.0, 1.0):
        box = augmentations.centred_box(region, recipe.crop_ratio)
    else:
        box = augmentations.draw_crop(region, recipe.crop_scale, recipe.crop_ratio, u[_CROP])
    interpolation: str = recipe.interpolation
    if interpolation == "random":
        interpolation = "bilinear" if u[_INTERPOLATION] < 0.5 else "bicubic"
    ops = augmentations.draw_jitter(recipe.color_jitter, u[_JITTER])
    ops += augmentations.draw_rand_augment(
        recipe.rand_aug_magnitude, recipe.rand_aug_std, u[_RAND_AUG]
    )
    erase = augmentations.draw_erase(recipe.erasing, u[_ERASE])
    noisy = erase is not None and recipe.erasing_mode == "pixel"
    return ViewParams(
        box=box,
        interpolation=interpolation,
        flip=u[_FLIP] < recipe.hflip,
        ops=ops,
        erase=erase,
        noise_seed=rng.hash64("noise", seed, key, view) if noisy else None,
        fill=recipe.fill,
    )


def _region(source_size: tuple[int, int], bbox: Box | None) -> Box:
    """The part of the image to crop from: the bounding box, cut at the image's edges."""
    width, height = source_size
    x, y, w, h = bbox or (0, 0, width, height)
    left, top, right, bottom = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
    if right <= left or bottom <= top:
        what = f"the bounding box {bbox} has no pixel of its {width} x {height} image"
        raise BadBoundingBox(what, box=bbox or ())
    return left, top, right - left, bottom - top


def render(image_HWC: np.ndarray, params: ViewParams, size: int) -> np.ndarray:
    """The view of an image [H, W, 3]: a new contiguous uint8 [size, size, 3]."""
    p = params
    view_HWC = augmentations.crop_resize_flip(image_HWC, p.box, size, p.interpolation, p.flip)
    if p.ops:
        view_HWC = augmentations.apply_ops(view_HWC, p.ops, p.interpolation, p.fill)
    if p.erase is not None:
        x, y, w, h = augmentations.erase_box(p.erase, size)
        patch = p.fill if p.noise_seed is None else augmentations.noise(h, w, p.noise_seed, p.fill)
        view_HWC[y : y + h, x : x + w] = patch
    return view_HWC


def pixel_digest(image_HWC: np.ndarray) -> int:
    """An unsigned 64-bit digest of the pixels in C order, by XXH3 seeded with height and width.

    It detects other decoders, and need not be cryptographic: 2 us per view at 224 px; blake2b, 170.
    """
    height, width, _ = image_HWC.shape
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(image_HWC).data, height << 32 | width)
