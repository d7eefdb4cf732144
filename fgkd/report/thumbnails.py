"""Thumbnails: images as small pictures inside a page, up to a budget of bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fgkd.data.decoding import decode_pil
from fgkd.errors import FgkdError
from fgkd.report.page import Picture, data_uri

LOSSLESS_SIDE = 64  # images up to this side are kept as they are: there is nothing to save


class Thumbs:
    """Makes pictures of at most `side` pixels; None once `budget_bytes` of them are in the page."""

    def __init__(self, budget_bytes: int = 2_500_000, side: int = 192) -> None:
        self.left_bytes, self.side = budget_bytes, side

    def of_file(self, data: bytes, name: str) -> Picture | None:
        """Of an encoded image; None if it cannot be decoded, too."""
        try:
            return self.of_image(decode_pil(data, name), name)
        except FgkdError:
            return None

    def of_pixels(self, image_HWC: np.ndarray, name: str) -> Picture | None:
        """Of uint8 RGB pixels."""
        return self.of_image(Image.fromarray(image_HWC), name)

    def of_image(self, image: Image.Image, name: str) -> Picture | None:
        """Of an RGB image of Pillow's."""
        small, out = image.copy(), io.BytesIO()
        small.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        kind = "png" if max(small.size) <= LOSSLESS_SIDE else "jpeg"
        small.save(out, kind, **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
        src = data_uri(out.getvalue(), f"image/{kind}")
        if len(src) > self.left_bytes:
            return None
        self.left_bytes -= len(src)
        return Picture(src, name, *small.size)
