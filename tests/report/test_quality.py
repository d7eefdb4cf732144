"""What an image file says of its quality."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.datasets import encode, pixels
from PIL import Image, ImageFilter
from scipy import ndimage

from fgkd.report import image_quality


def test_size_and_compression() -> None:
    image = pixels(1, 2, (50, 30))
    fine, coarse = (encode(image, "JPEG", quality=q) for q in (95, 20))
    found = image_quality.measure(fine, "fine.jpg")
    assert set(found) == set(image_quality.QUALITIES)
    assert found["short_side"] == 30
    assert found["bits_per_pixel"] == 8 * len(fine) / 1500
    assert image_quality.measure(coarse, "coarse.jpg")["bits_per_pixel"] < found["bits_per_pixel"]


def test_sharpness_is_the_laplacian_of_scipy() -> None:
    image = pixels(0, 0, (17, 12))
    grey = np.asarray(image).astype(np.float64).mean(2)
    expected = np.abs(ndimage.laplace(grey)[1:-1, 1:-1]).mean()
    assert image_quality.sharpness(np.asarray(image)) == pytest.approx(expected, rel=1e-5)
    blurred = image.filter(ImageFilter.GaussianBlur(2))
    assert image_quality.sharpness(np.asarray(blurred)) < expected / 4


def test_an_image_too_small_has_no_sharpness() -> None:
    tiny = encode(Image.new("RGB", (9, 2)), "PNG")
    assert set(image_quality.measure(tiny, "tiny.png")) == {"short_side", "bits_per_pixel"}


def test_nothing_is_known_of_what_is_no_image() -> None:
    assert image_quality.measure(b"not an image", "x.jpg") == {}
