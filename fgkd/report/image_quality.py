"""Image quality measures: size, compression, sharpness."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fgkd.data.decoding import decode_rgb
from fgkd.errors import FgkdError

QUALITIES: Mapping[str, str] = {
    "short_side": "short side (pixels)",
    "bits_per_pixel": "file size (bits per pixel)",
    "sharpness": "sharpness (mean |Laplacian|, grey levels)",
}


def measure(data: bytes, name: str) -> dict[str, float]:
    """What is known of an image file, by the names of `QUALITIES`; nothing if unreadable."""
    try:
        image_HWC = decode_rgb(data, name)
    except FgkdError:
        return {}
    height, width = image_HWC.shape[:2]
    found = {"short_side": float(min(width, height))}
    found["bits_per_pixel"] = 8 * len(data) / (width * height)
    if min(width, height) >= 3:
        found["sharpness"] = sharpness(image_HWC)
    return found


def sharpness(image_HWC: np.ndarray) -> float:
    """Mean absolute value of the 4-neighbour Laplacian of the grey image, in levels of 0 to 255."""
    grey = image_HWC.astype(np.float32).mean(2)
    across = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1]
    return float(np.abs(across - 4 * grey[1:-1, 1:-1]).mean())
