"""The image store: training images decoded and resized once, in one memory-mapped file.

FOLDER/pixels.u8 holds uint8 [H, W, 3] images back to back, FOLDER/index.json says what they are of
and is written last: its presence means complete. The pixels are a pure function of the image files
(`decode_rgb`, then `shrink`), so that a store may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fgkd import comparison, files
from fgkd.data import Samples
from fgkd.data.content import check_content, content_hash
from fgkd.data.decoding import decode_rgb, header_size, shrink, shrunk_size
from fgkd.errors import (
    ContentMismatch,
    DamagedCopy,
    FgkdError,
    OptionError,
    UnreadableImage,
    WriteError,
)

FORMAT_VERSION = 1
INDEX = {
    **{"format_version": int, "short_side": int, "keys": [str], "sizes": [int]},
    **{"hashes": [str], "heights": [int], "widths": [int], "bad": {}},
}
HEADERS = 256  # images by which the bytes of a store are estimated
AHEAD = 64  # decoded images that may wait to be written


def estimate_bytes(samples: Samples, short_side: int) -> int:
    """About how many bytes the pixels of a store take, by the headers of `HEADERS` images at most.

    Exact if there are no more images; 0 if not one of them can be read.
    """
    count, each = len(samples), []
    for row in np.unique(np.linspace(0, count - 1, min(count, HEADERS)).astype(int)).tolist():
        with contextlib.suppress(FgkdError):
            if size := header_size(samples.read(row)):
                each.append(3 * np.prod(shrunk_size(*size, short_side)))
    return round(float(np.mean(each)) * count) if each else 0


class ImageStore:
    """The images of some samples by row, whose shorter side is at most `short_side` px.

    hashes: the content hashes that the files must have, where they are known. Opens what is in the
    folder; `build` writes what is not. Raises: DataMismatch if it is of other images; DamagedCopy.
    """

    def __init__(
        self, folder: Path, samples: Samples, short_side: int, hashes: list[str] | None = None
    ) -> None:
        self.folder, self.samples, self.short_side = folder, samples, short_side
        self.hashes = hashes
        self.is_complete = False
        self.pixels_bytes = 0
        self.unreadable: dict[str, str] = {}  # key -> why it could not be decoded
        self._pixels: np.ndarray | None = None
        self.open()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pixels": None}  # a process maps the file, and never copies it

    def open(self) -> None:
        """Read the index, if there is one, and compare it with the samples."""
        path = self.folder / "index.json"
        if not path.exists():
            return
        index = files.read_json(path, "index of an image store")
        if not files.matches(index, INDEX):
            raise self._damaged("index.json is no index")
        wanted = self._described()
        if self.hashes is not None:
            wanted["hashes"] = self.hashes
        differ = comparison.differences({name: index[name] for name in wanted}, wanted)
        what = f"image store {self.folder} is of other images"
        comparison.refuse(what, differ, "image_store", self.folder)
        heights, widths, count = index["heights"], index["widths"], len(self.samples)
        if {len(heights), len(widths)} != {count} or min([0, *heights, *widths]) < 0:
            raise self._damaged(f"not {count} shapes")
        self.shapes = list(zip(heights, widths, strict=True))
        self.offsets = np.cumsum([0, *(3 * h * w for h, w in self.shapes)])
        pixels = self.folder / "pixels.u8"
        there = pixels.stat().st_size if pixels.exists() else 0
        if there != self.offsets[-1]:
            raise self._damaged(f"pixels.u8 has {there:,} bytes of {self.offsets[-1]:,}")
        self.pixels_bytes, self.unreadable = there, index["bad"]
        self.is_complete = True

    def _damaged(self, reason: str) -> DamagedCopy:
        message = f"image store {self.folder} is damaged: {reason}"
        return DamagedCopy(message, path=self.folder, reason=reason)

    def _described(self) -> dict[str, Any]:
        """What an index must say, content hashes apart."""
        return {
            "format_version": FORMAT_VERSION,
            "short_side": self.short_side,
            "keys": list(self.samples.keys),
            "sizes": [self.samples.size(row) for row in range(len(self.samples))],
        }

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [H, W, 3], read-only and not yet read from disk.

        Raises: UnreadableImage for one that could not be decoded when the store was written.
        """
        if reason := self.unreadable.get(self.samples.keys[row]):
            raise UnreadableImage(reason, path=self.samples.paths[row])
        if self._pixels is None:
            self._pixels = np.asarray(np.memmap(self.folder / "pixels.u8", mode="r"))
        begin, end = self.offsets[row : row + 2]
        return self._pixels[begin:end].reshape(*self.shapes[row], 3)

    def build(
        self,
        threads: int,
        skip_unreadable: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Write the store, unless it is there; another process that writes it is waited for.

        skip_unreadable: list the images that cannot be read, instead of raising for the first.
        Raises: UnreadableFile, UnreadableImage, ContentMismatch; WriteError, also before a disk is
        full.
        """
        if self.is_complete:
            return
        with self._locked():
            self.open()
            if not self.is_complete:
                self._write(threads, skip_unreadable, progress)
                self.open()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise files.write_error(self.folder / "index.json", error) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # without it two writers would write into one file
                raise OptionError(
                    f"image store {self.folder}: its file system has no locks ({error.strerror})",
                    option="image_store",
                    value=self.folder,
                    advice="give a folder on another disk (without a store, images are shrunk as "
                    "they are read)",
                ) from error
            yield
        finally:
            os.close(file)  # and the lock with it, as when the process is killed

    def _write(self, threads: int, skip_unreadable: bool, progress: Callable[[int], None]) -> None:
        needed, free = estimate_bytes(self.samples, self.short_side), files.free(self.folder)[0]
        if needed > free:
            message = (
                f"image store {self.folder} would take about {files.human_bytes(needed)}, "
                f"but {files.human_bytes(free)} are free there"
            )
            raise WriteError(message, path=self.folder, errno=errno.ENOSPC)
        index: dict[str, Any] = self._described() | {"hashes": [], "heights": [], "widths": []}
        index["bad"] = {}
        path = self.folder / "pixels.u8"
        with files.replacing(path) as partial, open(partial, "wb") as file:
            for row, (pixels_HWC, content, error) in enumerate(self._decoded(threads)):
                if error is not None and (
                    not skip_unreadable or isinstance(error, ContentMismatch)
                ):
                    raise error
                if error is not None:
                    index["bad"][self.samples.keys[row]] = error.message
                file.write(pixels_HWC.data)
                index["hashes"].append(content)
                index["heights"].append(pixels_HWC.shape[0])
                index["widths"].append(pixels_HWC.shape[1])
                progress(row + 1)
        files.write_json(self.folder / "index.json", index, indent=None)

    def _decoded(self, threads: int) -> Iterator[tuple[np.ndarray, str, FgkdError | None]]:
        """Pixels, content hash, and what is wrong, in the order of the rows.

        Threads are enough: reading, decoding and resizing all release the GIL.
        """
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for first in range(0, len(self.samples), AHEAD):
                yield from pool.map(
                    self._decode, range(first, min(first + AHEAD, len(self.samples)))
                )

    def _decode(self, row: int) -> tuple[np.ndarray, str, FgkdError | None]:
        content = ""
        try:
            data = self.samples.read(row)
            content = content_hash(data)
            if self.hashes and self.hashes[row]:
                check_content(self.samples.keys[row], self.hashes[row], data)
            whole_HWC = decode_rgb(data, self.samples.paths[row])
            return np.ascontiguousarray(shrink(whole_HWC, self.short_side)), content, None
        except FgkdError as error:
            return np.empty((0, 0, 3), np.uint8), content, error
