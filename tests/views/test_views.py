"""Views are pure functions of a key: same key same pixels, whatever else is on or off."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import expected
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgkd.errors import BadBoundingBox, FgkdError, RecipeError, UnknownName
from fgkd.views import augmentations, mixing, recipes, transforms
from fgkd.views.mixing import MixParams, mix
from fgkd.views.recipes import RECIPES, ViewRecipe
from fgkd.views.transforms import ViewParams, render

ROOT = Path(__file__).parents[2]
SEED = RECIPES["randaug"]
BUSY = dataclasses.replace(SEED, interpolation="random", color_jitter=0.4, erasing=1.0)


def smooth_image(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A photograph-like uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def draw(recipe: ViewRecipe, view: int = 0, size: tuple[int, int] = (60, 40)) -> ViewParams:
    return transforms.params(recipe, 7, "cub/001.Albatross/x.jpg", view, size)


def digests() -> list[int]:
    image = smooth_image(60, 40)
    return [transforms.pixel_digest(render(image, draw(BUSY, view), 32)) for view in range(40)]


def test_same_key_same_pixels_in_any_order_and_process() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    here = digests()
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after
    assert len(set(here)) == 40
    image = smooth_image(60, 40)
    for view in (39, 5, 17, 5):
        assert transforms.pixel_digest(render(image, draw(BUSY, view), 32)) == here[view]
    code = "from views.test_views import digests; print(digests())"
    env = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2"}
    there = subprocess.check_output([sys.executable, "-c", code], env=env, cwd=ROOT / "tests")
    assert json.loads(there) == here


def test_seed_key_and_view_each_change_the_draw() -> None:
    keys = [(seed, key, view) for seed in (0, 1) for key in "ab" for view in (0, 1)]
    assert len({transforms.params(BUSY, *key, (500, 375)) for key in keys}) == 8


def rounded(drawn: object) -> dict:
    """As JSON gives it, floats to 9 digits: a libm may differ in the last bit."""
    text = json.dumps(dataclasses.asdict(drawn))
    return json.loads(text, parse_float=lambda digits: round(float(digits), 9))


def test_golden_draws() -> None:
    """A change here invalidates every cache: raise the cache format's version with it."""
    assert rounded(transforms.params(BUSY, 0, "a.jpg", 15, (500, 375))) == {
        "box": [276, 68, 169, 186],
        "interpolation": "bicubic",
        "flip": True,
        "ops": [
            ["BrightnessIncreasing", 0.719836115],
            ["ContrastIncreasing", 1.348415388],
            ["ColorIncreasing", 1.37080787],
            ["TranslateXRel", 0.386289467],
            ["ShearX", 0.240129707],
        ],
        "erase": [0.438458879, 0.6813546, 0.316700227, 0.656401934],
        "noise_seed": 2514781375062707189,
        "fill": [124, 116, 104],
    }
    light = transforms.params(RECIPES["light"], 1, "b/c.png", 59, (333, 500))
    assert light == ViewParams((7, 73, 307, 373), "bicubic", False, (), None, None, SEED.fill)
    both = ViewRecipe(mixup=0.8, cutmix=1.0)
    assert rounded(mixing.mix_params(both, 0, "a+b", 0, 224)) == {"lam": 0.957392983, "box": None}
    assert rounded(mixing.mix_params(both, 0, "a+b", 3, 224)) == {
        "lam": 0.612743144,
        "box": [14, 0, 153, 127],
    }


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({"crop_scale": (1.0, 1.0)}, ["box"]),
        ({"interpolation": "bilinear"}, ["interpolation"]),
        ({"hflip": 0.0}, ["flip"]),
        ({"rand_aug_ops": 0}, ["ops"]),
        ({"color_jitter": 0.0}, ["ops"]),
        ({"erasing": 0.0}, ["erase", "noise_seed"]),
        ({"erasing_mode": "const"}, ["noise_seed"]),
        ({"mixup": 0.8, "cutmix": 1.0}, []),
    ],
    ids=str,
)
def test_switching_one_operation_moves_no_other(change: dict, moves: list[str]) -> None:
    moved = set()
    for view in range(30):
        old = dataclasses.asdict(draw(BUSY, view))
        new = dataclasses.asdict(draw(dataclasses.replace(BUSY, **change), view))
        moved |= {name for name in old if old[name] != new[name]}
    assert moved == set(moves)


def test_jitter_and_rand_augment_do_not_move_each_other() -> None:
    jitter, rand_aug, more = (
        dataclasses.replace(BUSY, **change)
        for change in ({"rand_aug_ops": 0}, {"color_jitter": 0.0}, {"rand_aug_ops": 5})
    )
    for view in range(30):
        ops = draw(BUSY, view).ops
        assert ops == draw(jitter, view).ops + draw(rand_aug, view).ops
        assert ops == draw(more, view).ops[: len(ops)]


def test_geometry_holds_at_any_output_size() -> None:
    image = smooth_image(500, 375)
    plain = dataclasses.replace(SEED, rand_aug_ops=0, erasing_mode="const", erasing=1.0)
    for view in range(20):
        p = draw(plain, view, (500, 375))
        assert p.erase is not None
        twice = [2 * n for n in augmentations.erase_box(p.erase, 112)]
        assert np.allclose(augmentations.erase_box(p.erase, 224), twice, atol=3)
        large, small = render(image, p, 224), render(image, p, 112)
        halved = large.reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small).mean() < 3


def test_none_is_the_largest_centred_square() -> None:
    assert draw(RECIPES["none"], size=(60, 41)).box == (9, 0, 41, 41)
    image = smooth_image(32, 32)
    view = render(image, draw(RECIPES["none"], size=(32, 32)), 32)
    assert np.array_equal(view, image)
    assert not np.shares_memory(view, image)


def test_bounding_box_holds_the_crop() -> None:
    for view in range(100):
        x, y, w, h = transforms.params(SEED, 0, "k", view, (60, 40), bbox=(10, 5, 70, 20)).box
        assert 10 <= x <= x + w <= 60
        assert 5 <= y <= y + h <= 25
    with pytest.raises(BadBoundingBox, match=r"\(60, 0, 5, 5\).*60 x 40"):
        transforms.params(SEED, 0, "k", 0, (60, 40), bbox=(60, 0, 5, 5))


@given(
    width=st.sampled_from([1, 2, 3, 31, 1000]),
    height=st.sampled_from([1, 2, 3, 31, 1000]),
    size=st.sampled_from([1, 2, 33]),
    view=st.integers(0, 1000),
    grey=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_any_image_gives_a_view(width: int, height: int, size: int, view: int, grey: bool) -> None:
    rng = np.random.default_rng(view)
    image = rng.integers(0, 256, (height, width, 1 if grey else 3), dtype=np.uint8)
    image = np.repeat(image, 3, axis=2) if grey else image
    image.setflags(write=False)
    before = image.copy()
    p = transforms.params(BUSY, 0, "k", view, (width, height))
    x, y, w, h = p.box
    assert 0 <= x < x + w <= width
    assert 0 <= y < y + h <= height
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        out = render(image, p, size)
    assert (out.dtype, out.shape) == (np.uint8, (size, size, 3))
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert np.array_equal(image, before)


def test_const_erasing_paints_the_fill() -> None:
    p = draw(ViewRecipe(erasing=1.0, erasing_mode="const", fill=(1, 2, 3)))
    assert p.erase is not None
    x, y, w, h = augmentations.erase_box(p.erase, 32)
    out = render(np.full((40, 60, 3), 200, np.uint8), p, 32)
    assert (out[y : y + h, x : x + w] == (1, 2, 3)).all()
    assert (out == 200).all(axis=2).sum() == 32 * 32 - w * h


def test_flips_have_their_probability_and_chiral_data_never_flips() -> None:
    recipe = recipes.recipe_from("light", {"hflip": 0.3}, chiral=False)
    assert abs(np.mean([draw(recipe, view).flip for view in range(2000)]) - 0.3) < 0.03
    chiral = recipes.recipe_from("light", {"hflip": 1.0}, chiral=True)
    assert not any(draw(chiral, view).flip for view in range(200))


def test_mixup_rounds_half_to_even_and_shares_add_up() -> None:
    a, b = (np.full((2, 2, 3), v, np.uint8) for v in (1, 2))
    half = MixParams(0.5, None)
    assert (mix(a, b, half) == 2).all()
    assert (mix(a, np.zeros_like(a), half) == 0).all()
    a, b = smooth_image(32, 32, 1), smooth_image(32, 32, 2)
    one, other = mix(a, b, MixParams(0.3, None)), mix(b, a, MixParams(0.3, None))
    assert np.abs(one.astype(int) + other - a - b).max() <= 1
    expected = 0.3 * a.astype(np.float64) + 0.7 * b
    assert np.abs(one - expected).max() <= 0.5 + 1e-4
    assert np.array_equal(mix(a, a, MixParams(0.3, None)), a)  # an odd block's last sample


def test_cutmix_swaps_the_box_and_lam_is_the_area_kept() -> None:
    recipe = ViewRecipe(cutmix=1.0)
    a, b = np.zeros((33, 33, 3), np.uint8), np.full((33, 33, 3), 255, np.uint8)
    lams = []
    for view in range(300):
        how = mixing.mix_params(recipe, 0, "a+b", view, 33)
        assert how is not None
        one, other = mix(a, b, how), mix(b, a, how)
        assert (one == 0).all(axis=2).sum() / 33**2 == pytest.approx(how.lam, abs=1e-12)
        assert np.array_equal(one, 255 - other)
        assert np.array_equal(mix(one, other, how), a)  # twice is the identity
        lams.append(how.lam)
    assert 0 <= min(lams) < 0.3 < 0.9 < max(lams) <= 1


def test_mixing_chooses_as_timm_does() -> None:
    def kinds(**fields: float) -> tuple[float, float]:  # shares mixed, and of these cut
        drawn = [mixing.mix_params(ViewRecipe(**fields), 0, "p", v, 32) for v in range(1000)]
        mixed = [how for how in drawn if how is not None]
        return len(mixed) / 1000, sum(how.box is not None for how in mixed) / max(1, len(mixed))

    assert kinds() == (0, 0)
    assert kinds(mixup=0.8) == (1, 0)
    assert kinds(cutmix=1.0) == (1, 1)
    mixed, cut = kinds(mixup=0.8, cutmix=1.0, mix_prob=0.7, switch_prob=0.25)
    assert (mixed, cut) == (pytest.approx(0.7, abs=0.05), pytest.approx(0.25, abs=0.05))


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        ({"hflip": 1.5}, "1.5"),
        ({"hflip": math.nan}, "nan"),
        ({"hflip": "0.5"}, "'0.5'"),
        ({"rand_aug_ops": 2.5}, "2.5"),
        ({"crop_scale": (0.5, 0.2)}, r"\(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, r"\(0.0, 1.0\)"),
        ({"crop_ratio": (1.0,)}, r"\(1.0,\)"),
        ({"fill": (0, 0, 256)}, "256"),
        ({"interpolation": "nearest"}, "'nearest'"),
        ({"hflop": 0.5}, "did you mean hflip"),
    ],
    ids=str,
)
def test_bad_overrides_name_the_value(overrides: dict, seen: str) -> None:
    with pytest.raises(FgkdError, match=f"{next(iter(overrides))}.*{seen}"):
        recipes.recipe_from("light", overrides, chiral=False)


def test_unknown_recipe_is_refused() -> None:
    with expected(UnknownName, option="aug_recipe", value="sed"):
        recipes.recipe_from("sed", {}, chiral=False)


@pytest.mark.parametrize("name", RECIPES)
def test_dict_round_trip_is_strict(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], mixup=1, fill=[1, 2, 3])  # as from JSON
    values = recipe.to_dict()
    assert ViewRecipe.from_dict(json.loads(json.dumps(values))) == recipe
    assert json.dumps(values["mixup"]) == "1.0"  # one text, so one identity
    with expected(RecipeError, fields=["extra"]):
        ViewRecipe.from_dict(values | {"extra": 1})
    del values["erasing"]
    with expected(RecipeError, fields=["erasing"]):
        ViewRecipe.from_dict(values)


def test_digest_sees_every_pixel_and_the_shape() -> None:
    image = smooth_image(6, 4)
    assert transforms.pixel_digest(image) == transforms.pixel_digest(np.asfortranarray(image))
    assert transforms.pixel_digest(image) != transforms.pixel_digest(image.reshape(6, 4, 3))
    assert transforms.pixel_digest(image) != transforms.pixel_digest(
        image ^ np.eye(4, 6, dtype=np.uint8)[..., None]
    )
    assert transforms.pixel_digest(np.zeros((2, 2, 3), np.uint8)) == 16974799897390537162


def test_importing_views_does_not_import_torch() -> None:
    code = "import sys, fgkd.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
