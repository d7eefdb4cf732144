"""Decoding: equal to Pillow's RGB for every mode, and a clear refusal of anything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import (
    encode,
    pixels,
)
from PIL import Image

from fgkd.data.decoding import MAX_PIXELS, decode_pil, decode_rgb
from fgkd.errors import UnreadableImage
from stages.remedies import remedy

REPO = Path(__file__).parents[2]


def transparent_palette() -> bytes:
    image = pixels(1, 2).convert("P")
    return encode(image, "PNG", transparency=bytes(range(255)))


ENCODED = {
    "rgb jpeg": encode(pixels(0, 0), "JPEG"),
    "grey jpeg": encode(pixels(0, 1).convert("L"), "JPEG"),
    "cmyk jpeg": encode(pixels(0, 2).convert("CMYK"), "JPEG"),
    "ycc progressive jpeg": encode(pixels(0, 2), "JPEG", progressive=True, quality=50),
    "rotated jpeg": encode(
        pixels(0, 3),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    **{
        f"{mode} png": encode(pixels(1, 1).convert(mode), "PNG")
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1")
    },
    "transparent colour": encode(pixels(1, 1), "PNG", transparency=(3, 4, 5)),
    "gif": encode(pixels(1, 3), "GIF"),
    "webp": encode(pixels(1, 4).convert("RGBA"), "WEBP"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_decode_equals_pillow(kind: str) -> None:
    with Image.open(io.BytesIO(ENCODED[kind])) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode_rgb(ENCODED[kind], kind)
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.flags.writeable
    assert decode_pil(ENCODED[kind], kind).mode == "RGB"


def test_decode_does_not_rotate() -> None:
    with Image.open(io.BytesIO(ENCODED["rotated jpeg"])) as image:
        assert image.getexif()[0x112] == 6
    assert decode_rgb(ENCODED["rotated jpeg"], "x").shape == (30, 40, 3)


def test_decode_transparent_palette() -> None:
    data = transparent_palette()
    with Image.open(io.BytesIO(data)) as image, pytest.warns(UserWarning, match="Transparency"):
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, "x"), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_scales_16_bit(kind: str) -> None:
    grey = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    decoded = decode_rgb(encode(Image.fromarray(grey), kind), "x")
    assert decoded.shape == (32, 32, 3)
    np.testing.assert_array_equal(decoded[..., 0], grey >> 8)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    wide = Image.fromarray(grey.astype(np.int32))  # mode I
    np.testing.assert_array_equal(decode_rgb(encode(wide, "TIFF"), "x"), decoded)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "unknown format"),
        (ENCODED["rgb jpeg"][:-200], "truncated"),
        (ENCODED["RGB png"][:400], "truncated"),
        (ENCODED["rgb jpeg"][:20], "cannot decode"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),
    ],
    ids=["empty", "text", "jpeg", "png", "header", "eps"],
)
def test_undecodable(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode_rgb(data, "train/a/b.jpg")
    assert "train/a/b.jpg" in caught.value.message
    assert reason in caught.value.message
    assert "--skip-bad-images" in remedy(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb(side: int) -> None:
    assert side**2 > MAX_PIXELS
    ppm = b"P6 %d %d 255\n" % (side, side)  # a header alone: its size is what counts
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_rgb(ppm, "bomb.png")
