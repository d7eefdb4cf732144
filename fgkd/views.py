"""Augmented views as pure functions of (seed, sample key, view number).

`params` draws every random choice of a view, with no image in hand; `render` applies them. Teacher
and student, in any process and any order, get the same pixels for the same key.

Shape suffixes: H height, W width, C channels (RGB). All images are uint8: a model normalises them
later, each by its own mean and std.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from fgkd import rng, view_ops
from fgkd.errors import FgkdError, near
from fgkd.view_ops import Box, Colour, Erase, Ops

Interpolation = Literal["bilinear", "bicubic", "random"]
ErasingMode = Literal["pixel", "const"]

_CHOICES = {"interpolation": get_args(Interpolation), "erasing_mode": get_args(ErasingMode)}
_RANGES = {
    "crop_scale": (1e-4, 1.0),
    "crop_ratio": (1e-2, 100.0),
    "rand_aug_ops": (0, 16),
    "rand_aug_magnitude": (0, 10),
    "rand_aug_std": (0, 10),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "fill": (0, 255),
}  # the others: 0 to 1


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of views, complete and in range; the defaults change nothing but the shape.

    Raises FgkdError naming the field and its value if that has the wrong type or is out of range.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)  # share of the area; (1, 1): largest centred box
    crop_ratio: tuple[float, float] = (1.0, 1.0)  # width / height
    interpolation: Interpolation = "bicubic"
    hflip: float = 0.0  # probability
    rand_aug_ops: int = 0  # picked a view; each is then applied with probability 0.5
    rand_aug_magnitude: float = 9.0  # 0 to 10
    rand_aug_std: float = 0.5  # of the magnitude
    color_jitter: float = 0.0  # brightness, contrast, saturation: factors in 1 +- this
    erasing: float = 0.0  # probability
    erasing_mode: ErasingMode = "pixel"
    mixup: float = 0.0  # alpha, 0 is off
    cutmix: float = 0.0  # alpha, 0 is off
    mix_prob: float = 1.0  # of a pair being mixed at all
    switch_prob: float = 0.5  # of cutmix where both are on
    bbox_crop: bool = False  # take the crop inside the object's bounding box
    fill: Colour = (124, 116, 104)  # behind moved images: ImageNet's mean, as in timm

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)  # JSON's [1, 1] and our (1.0, 1.0) are one

    @property
    def mixes(self) -> bool:
        """Whether views are mixed in pairs."""
        return bool(self.mixup or self.cutmix)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` inverts it, through JSON too."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViewRecipe:
        """The recipe of `to_dict`. Raises FgkdError for an unknown, missing or bad field."""
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            what = f"the view recipe lacks {', '.join(missing)}"
            raise FgkdError(what, "write the cache or train the teacher anew with this version")
        return _replace(cls(), values)


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value, converted to the default's type where nothing is lost."""
    low, high = _RANGES.get(name, (0, 1))
    kind = type(default[0] if isinstance(default, tuple) else default)
    if kind is bool:
        expected, ok = "true or false", isinstance(value, bool)
    elif name in _CHOICES:
        expected, ok = " or ".join(_CHOICES[name]), value in _CHOICES[name]
    elif isinstance(default, tuple):
        expected = f"{len(default)} numbers from {low} to {high}"
        ok = isinstance(value, Sequence) and len(value) == len(default)
        ok = ok and all(_is_number(v, kind, low, high) for v in value)
        if name != "fill":  # a range
            expected, ok = f"{expected}, in rising order", ok and value[0] <= value[1]
    else:
        expected = f"{'an integer' if kind is int else 'a number'} from {low} to {high}"
        ok = _is_number(value, kind, low, high)
    if not ok:
        hint = " ".join(map(str, default)) if isinstance(default, tuple) else default
        what = f"the view recipe's {name} is {value!r}; expected {expected}"
        raise FgkdError(what, f"--{name.replace('_', '-')} {hint}")
    return tuple(map(kind, value)) if isinstance(default, tuple) else kind(value)


def _is_number(value: Any, kind: type, low: float, high: float) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


RECIPES: dict[str, ViewRecipe] = {
    "none": ViewRecipe(),
    "light": ViewRecipe(crop_scale=(0.5, 1.0), crop_ratio=(3 / 4, 4 / 3), hflip=0.5),
    # The seed project's: timm's create_transform with rand-m9-mstd0.5-inc1 and erasing 0.25.
    "seed": ViewRecipe(
        crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), hflip=0.5, rand_aug_ops=2, erasing=0.25
    ),
}


def recipe_from(name: str, overrides: Mapping[str, Any], chiral: bool) -> ViewRecipe:
    """A recipe of `RECIPES` with single fields replaced; `chiral` data is never flipped.

    Raises FgkdError for an unknown recipe or field, and for a bad value.
    """
    if name not in RECIPES:
        what = f"unknown view recipe {name!r}{near(name, tuple(RECIPES))}; there are "
        raise FgkdError(what + ", ".join(RECIPES), "--aug-recipe light")
    recipe = _replace(RECIPES[name], overrides)
    return dataclasses.replace(recipe, hflip=0.0) if chiral else recipe


def _replace(recipe: ViewRecipe, values: Mapping[str, Any]) -> ViewRecipe:
    known = tuple(field.name for field in dataclasses.fields(recipe))
    for name in values:
        if name not in known:
            what = f"unknown field {name!r} in a view recipe{near(name, known)}"
            raise FgkdError(what, f"only {', '.join(known)}")
    return dataclasses.replace(recipe, **values)


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

    With a `bbox` the crop is taken inside it. Raises FgkdError for a bbox outside the image.
    """
    num_draws = _RAND_AUG.start + 5 * recipe.rand_aug_ops
    u = rng.stream("view", seed, key, view).uniforms(num_draws).tolist()
    region = _region(source_size, bbox)
    if recipe.crop_scale == (1.0, 1.0):
        box = view_ops.centred_box(region, recipe.crop_ratio)
    else:
        box = view_ops.draw_crop(region, recipe.crop_scale, recipe.crop_ratio, u[_CROP])
    interpolation: str = recipe.interpolation
    if interpolation == "random":
        interpolation = "bilinear" if u[_INTERPOLATION] < 0.5 else "bicubic"
    ops = view_ops.draw_jitter(recipe.color_jitter, u[_JITTER])
    ops += view_ops.draw_rand_augment(recipe.rand_aug_magnitude, recipe.rand_aug_std, u[_RAND_AUG])
    erase = view_ops.draw_erase(recipe.erasing, u[_ERASE])
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
        raise FgkdError(what, "correct the data set's list of boxes")
    return left, top, right - left, bottom - top


def render(image_HWC: np.ndarray, params: ViewParams, size: int) -> np.ndarray:
    """The view of an image [H, W, 3]: a new contiguous uint8 [size, size, 3]."""
    p = params
    view_HWC = view_ops.crop_resize_flip(image_HWC, p.box, size, p.interpolation, p.flip)
    if p.ops:
        view_HWC = view_ops.apply_ops(view_HWC, p.ops, p.interpolation, p.fill)
    if p.erase is not None:
        x, y, w, h = view_ops.erase_box(p.erase, size)
        patch = p.fill if p.noise_seed is None else view_ops.noise(h, w, p.noise_seed, p.fill)
        view_HWC[y : y + h, x : x + w] = patch
    return view_HWC


@dataclass(frozen=True)
class MixParams:
    """How a pair of views is mixed: each keeps the share `lam` of itself, in [0, 1].

    With a `box` (in view pixels) it is cutmix, else mixup.
    """

    lam: float
    box: Box | None


def mix_params(
    recipe: ViewRecipe, seed: int, pair_key: str, view: int, size: int
) -> MixParams | None:
    """Draw how a pair is mixed in view number `view`, as timm's Mixup does; None: not at all.

    mixup: Zhang et al., arXiv:1710.09412. cutmix: Yun et al., arXiv:1905.04899.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    draws = rng.stream("mix", seed, pair_key, view)
    apply, switch, x_u, y_u = draws.uniforms(4).tolist()
    if apply >= recipe.mix_prob:
        return None
    if not recipe.cutmix or (recipe.mixup and switch >= recipe.switch_prob):
        return MixParams(draws.beta(recipe.mixup, recipe.mixup), None)
    side = int(size * math.sqrt(1.0 - draws.beta(recipe.cutmix, recipe.cutmix)))
    left, top = int(x_u * size) - side // 2, int(y_u * size) - side // 2
    x, y = max(0, left), max(0, top)  # the square is cut at the edges
    w, h = min(size, left + side) - x, min(size, top + side) - y
    return MixParams(1.0 - w * h / size**2, (x, y, w, h))


def mix(image_HWC: np.ndarray, partner_HWC: np.ndarray, mix_params: MixParams) -> np.ndarray:
    """A new uint8 image: the partner pasted into the box, or blended in (float32, half to even)."""
    if mix_params.box is not None:
        x, y, w, h = mix_params.box
        mixed_HWC = image_HWC.copy()
        mixed_HWC[y : y + h, x : x + w] = partner_HWC[y : y + h, x : x + w]
        return mixed_HWC
    lam = np.float32(mix_params.lam)
    return np.rint(lam * image_HWC + (np.float32(1) - lam) * partner_HWC).astype(np.uint8)


def pixel_digest(image_HWC: np.ndarray) -> int:
    """An unsigned 64-bit digest of the pixels in C order, by XXH3 seeded with height and width.

    It tells decoders apart and need not withstand a forger: 2 us a view at 224 px; blake2b, 170.
    """
    height, width, _ = image_HWC.shape
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(image_HWC).data, height << 32 | width)
