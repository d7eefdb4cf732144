"""The icon set that comes with the package (ICONS.md), unpacked on first use as an ImageFolder."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgkd.data import folder
from fgkd.data.samples import Dataset
from fgkd.download import home
from fgkd.errors import DamagedCopy, OptionError
from fgkd.files import PARTIAL, sha256, write_error

ARCHIVE = Path(__file__).with_name("icons.npz")
MARKER = ".fgkd-icons"  # holds the archive's sha256; a folder without it is not ours


def default_root() -> Path:
    """`$FGKD_HOME/icons`, or `~/.cache/fgkd/icons`."""
    return home() / "icons"


def load(root: Path | None) -> Dataset:
    """The icon set in the folder `root` (default: `default_root()`), unpacked if it is not there.

    Keys are `<split>/<class>/<set>_<icon>.png`. Chiral: left and right are classes.
    Raises: OptionError if `root` holds something else; DamagedCopy.
    """
    root = Path(os.path.abspath(root or default_root()))
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        classes = archive["classes"][archive["labels"]]
        keys = [
            f"{split}/{name}/{source.replace(':', '_')}.png"
            for split, name, source in zip(
                archive["split"], classes, archive["source"], strict=True
            )
        ]
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            _unpack(root, keys, archive["images"])
    _check(root, keys)
    return replace(folder.load(root), name="icons", domains=["icons"], chiral=True)


def _unpack(root: Path, keys: list[str], images_NHW: np.ndarray) -> None:
    """Write the tree next to `root`, then rename it: `root` is complete or absent at any moment."""
    partial = root.with_name(f"{root.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        for key, image_HW in zip(keys, images_NHW, strict=True):
            path = partial / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(image_HW))
        shutil.copy(ARCHIVE.with_name("ICONS.md"), partial)
        (partial / MARKER).write_text(sha256(ARCHIVE) + "\n")
        os.rename(partial, root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first: fine
            raise write_error(root, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(root: Path, keys: list[str]) -> None:
    """Raise an error unless `root` is the unpacked archive, every file there at full length."""
    marker = root / MARKER
    if not marker.is_file():
        message = f"{root} is not an icon set, and not empty: nothing was written there"
        elsewhere = (f"icons:{root / 'icons'}",)
        raise OptionError(message, option="data", value=f"icons:{root}", suggestion=elsewhere)
    expected = len(_png(np.zeros((32, 32), np.uint8)))  # PNGs without compression: all one size
    lengths = {key: _length(f"{root}/{key}") for key in keys}
    damaged = [key for key, length in lengths.items() if length != expected]
    if marker.read_text().strip() != sha256(ARCHIVE):
        damaged = [MARKER]
    if damaged:
        message = f"the icon set in {root} is damaged or of another version, as {damaged[0]} shows"
        raise DamagedCopy(message, path=root, reason=damaged[0])


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _png(image_HW: np.ndarray) -> bytes:
    """An 8-bit grey PNG (mode L), stored rather than compressed.

    A cache's identity holds the files' hashes, and compressed bytes differ between zlib builds.
    """
    height, width = image_HW.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image_HW)  # a filter type, then the pixels
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(rows, level=0),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks.items():
        png += struct.pack(">I", len(body)) + name + body
        png += struct.pack(">I", zlib.crc32(name + body))
    return png
