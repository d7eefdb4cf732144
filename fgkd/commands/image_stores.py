"""The image store of a command: opened from its options, written before the first batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fgkd import files
from fgkd.config import DataSpec
from fgkd.data import Samples
from fgkd.data.image_store import ImageStore, estimate_bytes
from fgkd.errors import MissingOption
from fgkd.progress import Pace, Progress


def open_store(
    spec: DataSpec,
    samples: Samples,
    short_side: int | None,
    hashes: list[str] | np.ndarray | None = None,
) -> ImageStore | None:
    """The image store of the spec, as far as it is written; None without one.

    hashes: the content hashes that the images must have, as text or bytes.
    """
    if not spec.image_store:
        return None
    if short_side is None:
        raise MissingOption(
            "image_store holds resized images, but image_store_side was not given",
            option="image_store_side",
            suggestion=256,
            advice="another size: 1.15 to 1.25 times img_size is a good choice",
        )
    known = None if hashes is None else np.asarray(hashes).astype(str).tolist()
    return ImageStore(Path(spec.image_store), samples, short_side, known)


def fill_store(
    store: ImageStore | None, *, workers: int, skip_unreadable: bool, progress: Progress
) -> None:
    """Write the image store unless it is complete; other ranks and commands wait for the first."""
    if store is None or store.is_complete:
        return
    count = len(store.samples)
    about = files.human_bytes(estimate_bytes(store.samples, store.short_side))
    progress.message(f"writing image store {store.folder}: {count:,} images, about {about}")
    store.build(workers, skip_unreadable, Counter(count, progress))


class Counter:
    """Reports how many images are done: to be called with their number so far."""

    def __init__(self, total: int, progress: Progress) -> None:
        import time

        self.pace, self.progress, self.clock = Pace(total), progress, time.perf_counter
        self.total, self.last, self.before = total, time.perf_counter(), 0

    def __call__(self, done: int) -> None:
        now, num = self.clock(), done - self.before
        line = self.pace.add(done, num, 0.0, now - self.last, units=num)
        self.progress.status(lambda: f"image {done:,}/{self.total:,}  {self.pace.now}")
        self.progress.advance(done, self.total)
        if line and done < self.total:
            self.progress.interim(f"image {done:,}/{self.total:,}  {line}")
        self.last, self.before = now, done
