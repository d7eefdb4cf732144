"""Evaluation views: timm's evaluation transform, and test-time augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgkd.data import Samples
from fgkd.data.decoding import decode_pil
from fgkd.errors import OptionError
from fgkd.views.rendering import ImageOf, ViewRenderer

# Views of test-time augmentation: crops (the centre, or the corners and the centre), mirrored too?
TTA = {"none": (1, False), "flip": (1, True), "five-crop": (5, False), "ten-crop": (5, True)}


class CleanView:
    """The evaluation view: timm's eval transform on Pillow's pixels, kept as uint8.

    tta: which views of an image there are; view 0 of `none` and `flip` is timm's own.
    """

    def __init__(self, samples: Samples, model_config: dict[str, Any], tta: str = "none") -> None:
        from timm.data.transforms_factory import transforms_imagenet_eval

        self.samples = samples
        self.size: int = model_config["input_size"][-1]
        self.num_crops, flips = TTA[tta]
        self.num_views = self.num_crops * (1 + flips)
        self.transform = transforms_imagenet_eval(
            self.size,
            crop_pct=model_config["crop_pct"],
            crop_mode=model_config.get("crop_mode"),
            interpolation=model_config["interpolation"],
            mean=tuple(model_config["mean"]),  # what crop_mode border pads with
            use_prefetcher=True,
        )

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
        """uint8 [3, H, W]: timm's whole transform, or one of five crops in its crop's place."""
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
    samples: Samples, model_config: dict[str, Any], skip_unreadable: bool, tta: str = "none"
) -> ViewRenderer:
    """A renderer of the evaluation views that a model's config asks for, `tta` of each image."""
    view = CleanView(samples, model_config, tta)
    return ViewRenderer(view, [view.size], skip_unreadable=skip_unreadable)
