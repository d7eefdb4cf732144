"""Estimates of an image store: the bytes that resized, decoded training images take."""

from __future__ import annotations

from dataclasses import dataclass

from fgkd import files
from fgkd.data import Samples
from fgkd.data.image_store import ImageStore, estimate_bytes


@dataclass(frozen=True)
class StoreEstimate:
    """Bytes of an image store's pixels (None: not known), and a line that says so ("": none)."""

    num_bytes: int | None = None
    text: str = ""


def estimate_store(
    store: ImageStore | None, samples: Samples, short_side: int | None
) -> StoreEstimate:
    """What a store takes or, without one, would take; nothing for full-size images."""
    if short_side is None:
        return StoreEstimate()
    if store and store.is_complete:
        size = store.pixels_bytes
        return StoreEstimate(size, f"{files.human_bytes(size)} in {store.folder}, already written")
    size = estimate_bytes(samples, short_side)
    if not size:
        return StoreEstimate(None, "not known: no image can be read here")
    about = f"about {files.human_bytes(size)}"
    if store is None:
        return StoreEstimate(size, f"none; an image store would take {about}")
    free, where = files.free(store.folder)
    text = f"{about} in {store.folder}; {files.human_bytes(free)} free at {where}"
    return StoreEstimate(size, text)
