"""Mixup and CutMix of two views, drawn by a key of the pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fgkd import rng
from fgkd.views.augmentations import Box
from fgkd.views.recipes import ViewRecipe


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
