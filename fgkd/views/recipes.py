"""Augmented views as pure functions of (seed, sample key, view number).

`params` draws every random choice of a view, without reading an image; `render` applies them.
Teacher and student, in any process and any order, get the same pixels for the same key.

Shape suffixes: H height, W width, C channels (RGB). All images are uint8: a model normalises them
later, each by its own mean and std.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fgkd.config import ViewSpec
from fgkd.errors import OptionError, RecipeError, UnknownName, UnusedOption, near
from fgkd.views.augmentations import Colour

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
_SWITCHES = {  # options that have no effect where these are 0
    "rand_aug_magnitude": ("rand_aug_ops",),
    "rand_aug_std": ("rand_aug_ops",),
    "erasing_mode": ("erasing",),
    "mix_prob": ("mixup", "cutmix"),  # both
    "switch_prob": ("mixup", "cutmix"),  # one of them
}


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of views, complete and in range; the defaults change nothing but the shape.

    Raises: OptionError with field and value if that is of the wrong type or out of range.
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
        """The recipe of `to_dict`. Raises: RecipeError, OptionError."""
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            what = f"the view recipe lacks {', '.join(missing)}"
            raise RecipeError(what, fields=missing)
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
        what = f"the view recipe's {name} is {value!r}; expected {expected}"
        raise OptionError(what, option=name, value=value, suggestion=default)
    return tuple(map(kind, value)) if isinstance(default, tuple) else kind(value)


def _is_number(value: Any, kind: type, low: float, high: float) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


RECIPES: dict[str, ViewRecipe] = {
    "none": ViewRecipe(),
    "light": ViewRecipe(crop_scale=(0.5, 1.0), crop_ratio=(3 / 4, 4 / 3), hflip=0.5),
    # timm's create_transform with rand-m9-mstd0.5-inc1 and erasing 0.25.
    "randaug": ViewRecipe(
        crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), hflip=0.5, rand_aug_ops=2, erasing=0.25
    ),
}


def recipe_from(name: str, overrides: Mapping[str, Any], chiral: bool) -> ViewRecipe:
    """A recipe of `RECIPES` with single fields replaced; `chiral` data is never flipped.

    Raises: UnknownName; RecipeError for an unknown field; OptionError for a bad value.
    """
    if name not in RECIPES:
        known = list(RECIPES)
        what = f"unknown view recipe {name!r}{near(name, known)}; known: {', '.join(known)}"
        raise UnknownName(what, option="aug_recipe", value=name, known=known)
    recipe = _replace(RECIPES[name], overrides)
    return dataclasses.replace(recipe, hflip=0.0) if chiral else recipe


def given_options(spec: ViewSpec) -> list[str]:
    """Names of the view options that are set, the preset first."""
    return [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) is not None]


def resolve(spec: ViewSpec, own: ViewRecipe | None, chiral: bool) -> ViewRecipe:
    """The recipe of a spec: its preset, else `own`, else light; single options override it.

    own: the recipe of the teacher or cache. chiral: left and right are classes, so never flip.
    Raises: as `recipe_from`; UnusedOption for an option that has no effect in the recipe.
    """
    overrides = {name: getattr(spec, name) for name in given_options(spec) if name != "aug_recipe"}
    if spec.aug_recipe or own is None:
        found = recipe_from(spec.aug_recipe or "light", overrides, chiral)
    else:
        found = _replace(own, overrides | ({"hflip": 0.0} if chiral else {}))
    _refuse_unused(spec, found)
    return found


def _refuse_unused(spec: ViewSpec, recipe: ViewRecipe) -> None:
    for name, switches in _SWITCHES.items():
        off = [one for one in switches if not getattr(recipe, one)]
        is_used = not off or (name == "mix_prob" and len(off) < len(switches))
        is_turned_off = any(getattr(spec, one) is not None for one in off)  # maybe over a file's
        if getattr(spec, name) is not None and not is_used and not is_turned_off:
            what = f"{name} has no effect without {' and '.join(off)}"
            raise UnusedOption(what, option=name, value=getattr(spec, name))
    if spec.hflip and not recipe.hflip:
        what = "hflip has no effect: left and right are classes of this dataset"
        raise UnusedOption(what, option="hflip", value=spec.hflip)


def _replace(recipe: ViewRecipe, values: Mapping[str, Any]) -> ViewRecipe:
    known = tuple(field.name for field in dataclasses.fields(recipe))
    for name in values:
        if name not in known:
            what = f"unknown field {name!r} in a view recipe{near(name, known)}"
            raise RecipeError(what, fields=[name])
    return dataclasses.replace(recipe, **values)


@dataclass(frozen=True)
class ViewIdentity:
    """How views are drawn and rendered.

    img_size: their side in pixels. short_side: images with a longer shorter side are first shrunk
    to it; None: views are cropped from the full images.
    """

    recipe: ViewRecipe
    seed: int
    img_size: int
    short_side: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a cache's identity."""
        return {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "img_size": self.img_size,
            "short_side": self.short_side,
        }
