"""Image decoding: encoded bytes to RGB pixels, by libjpeg-turbo for plain JPEGs, else by Pillow.

Both give the same pixels (Pillow decodes JPEGs with libjpeg-turbo, too); called directly, it saves
a copy, which is a fifth of Pillow's time. Evaluation decodes with Pillow alone.
For 8-bit images the pixels are those of `Image.open(...).convert("RGB")`, which is what timm's
readers do; like them it ignores the EXIF orientation. Pillow clips 16-bit grey at 255; here it is
scaled (the high byte, which is what Pillow itself does to 16-bit RGB).
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from fgkd.errors import UnreadableImage

# The raster formats of image datasets. Image files are untrusted, and Pillow's other readers do
# more than decode (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's own threshold for a "decompression bomb"


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """uint8 [H, W, 3] pixels of an encoded image, writable; `name` is for the error.

    Raises: UnreadableImage if the data are empty, truncated, not an image, or too large.
    """
    pixels_HWC = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else None
    return np.array(decode_pil(data, name)) if pixels_HWC is None else pixels_HWC


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a sound JPEG in grey or colour; None leaves the judgement to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:
            pixels_HWC: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
            return pixels_HWC
    except ValueError:  # damaged, or of a kind that its interface cannot express
        pass
    return None


def decode_pil(data: bytes, name: str) -> Image.Image:
    """The Pillow RGB image of `decode_rgb`, for timm's evaluation transform."""
    if not data:
        raise _undecodable(name, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return to_rgb(image)
            size = f"{image.width}x{image.height}"
    except UnidentifiedImageError:  # its own message is the address of a buffer
        raise _undecodable(name, "not an image, or of an unknown format") from None
    except Exception as error:  # what a Pillow reader raises on bad data is open-ended
        raise _undecodable(name, f"{error} ({type(error).__name__})") from None
    raise _undecodable(name, f"{size} pixels is over the limit of {MAX_PIXELS:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """The RGB image of one of any mode, whose pixels are loaded and transparency is dropped."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    image.load()
    # convert() warns about a palette's transparency, which RGB drops in any case.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def shrunk_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter of the two at most `short_side`, as torchvision rounds."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return short_side * height // short, short_side * width // short


def shrink(image_HWC: np.ndarray, short_side: int) -> np.ndarray:
    """The image [H, W, 3] resized so that its shorter side is `short_side` px, or as it is if less.

    Bilinear and antialiased: the values are those of torchvision's `resize`.
    """
    import torch

    height, width = image_HWC.shape[:2]
    size = shrunk_size(height, width, short_side)
    if size == (height, width):
        return image_HWC
    image_1CHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(image_1CHW, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def header_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) by an encoded image's header; None if that cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # what a Pillow reader raises on bad data is open-ended
        return None


def _undecodable(name: str, reason: str) -> UnreadableImage:
    return UnreadableImage(f"cannot decode image {name}: {reason}", path=name, reason=reason)
