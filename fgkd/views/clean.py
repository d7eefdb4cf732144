"""Evaluation views: timm's evaluation transform, and test-time augmentation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fgkd.data import Samples
from fgkd.data.decoding import decode_pil, to_rgb
from fgkd.errors import OptionError
from fgkd.views.rendering import ImageOf, ViewRenderer

if TYPE_CHECKING:
    from PIL import Image

# Views of test-time augmentation: crops (the centre, or the corners and the centre), mirrored too?
TTA = {"none": (1, False), "flip": (1, True), "five-crop": (5, False), "ten-crop": (5, True)}


@dataclass(frozen=True)
class EvalTransform:
    """The facts of timm's evaluation transform of a model: its size in pixels, crop and resize.

    mean: what crop_mode `border` pads with.
    """

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    crop_mode: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EvalTransform:
        """From timm's `pretrained_cfg`."""
        return cls(
            size=config["input_size"][-1],
            crop_pct=config["crop_pct"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            crop_mode=config.get("crop_mode"),
        )

    @functools.cached_property
    def timm(self) -> Any:
        """timm's own transform: from a Pillow RGB image to uint8 [3, H, W]."""
        from timm.data.transforms_factory import transforms_imagenet_eval

        return transforms_imagenet_eval(
            self.size,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            mean=self.mean,
            use_prefetcher=True,
        )

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """uint8 [3, H, W] of a Pillow image of any mode, or of uint8 pixels [H, W, 3]."""
        from PIL import Image

        pil = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
        return np.asarray(self.timm(to_rgb(pil)))


class CleanView:
    """The evaluation view: timm's evaluation transform on Pillow's pixels, kept as uint8.

    tta: which views of an image there are; view 0 of `none` and `flip` is timm's own.
    """

    def __init__(self, samples: Samples, transform: EvalTransform, tta: str = "none") -> None:
        self.samples = samples
        self.size = transform.size
        self.num_crops, flips = TTA[tta]
        self.num_views = self.num_crops * (1 + flips)
        self.transform = transform.timm

    @staticmethod
    def decode(data: bytes, name: str) -> np.ndarray:
        """uint8 [H, W, 3] by Pillow, as timm's own evaluation decodes."""
        return np.asarray(decode_pil(data, name))

    def mix(self, row: int, partner: int, view: int, size: int) -> None:
        """Clean views are never mixed."""

    def __call__(
        self, image_of: ImageOf, row: int, view: int, size: int, partner: int, mix: Any
    ) -> np.ndarray:
        from PIL import Image

        image_CHW = self._crop(Image.fromarray(image_of(row)), view % self.num_crops)
        image_HWC = image_CHW.transpose(1, 2, 0)
        return image_HWC[:, ::-1] if view >= self.num_crops else image_HWC

    def _crop(self, image: Any, number: int) -> np.ndarray:
        """uint8 [3, H, W]: timm's transform, or with one of five crops instead of its own."""
        from torchvision.transforms.functional import five_crop

        if self.num_crops == 1:
            return np.asarray(self.transform(image))
        resize, _, to_array = self.transform.transforms
        resized = resize(image)
        if min(resized.size) < self.size:  # crop_mode border: the image lies inside the input
            raise OptionError(
                f"five crops of {self.size} px do not fit into {resized.width}x{resized.height}: "
                "the model's crop_mode shows the whole image, with a border",
                option="tta",
                value="five-crop",
                suggestion="flip",
            )
        return np.asarray(to_array(five_crop(resized, self.size)[number]))


def clean_renderer(
    samples: Samples, transform: EvalTransform, skip_unreadable: bool, tta: str = "none"
) -> ViewRenderer:
    """A renderer of a model's evaluation views, `tta` of each image."""
    view = CleanView(samples, transform, tta)
    return ViewRenderer(view, [view.size], skip_unreadable=skip_unreadable)
