"""Rendering: from image files to the pixels of views.

Shape legend: B batch, V views, H, W pixels, 3 channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from fgkd.data import Samples, content
from fgkd.data.boxes import in_pixels
from fgkd.data.decoding import decode_rgb, shrink
from fgkd.data.image_store import ImageStore
from fgkd.data.samples import Place, read_place
from fgkd.errors import ContentMismatch, FgkdError, OptionError
from fgkd.views import mixing, recipes, transforms


@dataclass(frozen=True)
class Request:
    """Some views of some rows, as a worker is asked to render them.

    partners: int64 [B, V], the row each view is mixed with (itself: not at all); None: no mixing.
    places: where each row's image lies inside a shard, for rows that the samples cannot read.
    digests: bool [B], whose pixel digests to return; None: all. check_content: compare the file's
    hash with the cache's.
    """

    rows: np.ndarray
    views: Sequence[int]
    partners: np.ndarray | None = None
    digests: np.ndarray | None = None
    check_content: bool = False
    places: dict[int, Place] | None = None


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class RenderedViews:
    """The views of a request's rows that could be read; `at` are their places in the request.

    images: one uint8 [B, V, H, W, 3] for each size that was asked for.
    """

    rows: np.ndarray
    at: np.ndarray
    images: tuple[torch.Tensor, ...]
    digests_BV: np.ndarray  # uint64, 0 where not asked for; of the first size
    lams_BV: np.ndarray  # float32, the share each view keeps of itself
    boxes_BV4: np.ndarray  # int16 x, y, width, height of a pasted box, else 0
    unreadable: list[Unreadable]


ImageOf = Callable[[int], np.ndarray]  # row -> decoded uint8 [H, W, 3]


@dataclass(frozen=True)
class KeyedView:
    """The training views of a split; pure in (row, partner, view, size) and picklable.

    short_side: crop from images shrunk to this, as an image store holds them; None: whole images.
    """

    samples: Samples
    recipe: recipes.ViewRecipe
    seed: int
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.recipe.bbox_crop and self.short_side:
            raise OptionError(
                "bounding boxes are those of full-size images, and image_store_side shrinks them",
                option="bbox_crop",
                value=True,
                suggestion=False,
                advice="leave the side of the image store out",
            )
        if self.recipe.bbox_crop and self.samples.boxes is None:
            message = "the views need bounding boxes, but the dataset has none"
            raise OptionError(message, option="bbox_crop", value=True, suggestion=False)

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """uint8 [H, W, 3], what views are cropped from."""
        image_HWC = decode_rgb(data, name)
        return shrink(image_HWC, self.short_side) if self.short_side else image_HWC

    def mix(self, row: int, partner: int, view: int, size: int) -> mixing.MixParams | None:
        """How a pair is mixed; a function of the pair, not of which of the two is asked."""
        if partner == row:
            return None
        pair_key = "\n".join(sorted((self.samples.keys[row], self.samples.keys[partner])))
        return mixing.mix_params(self.recipe, self.seed, pair_key, view, size)

    def one(self, image_of: ImageOf, row: int, view: int, size: int) -> np.ndarray:
        """One view before mixing, uint8 [size, size, 3]."""
        image_HWC = image_of(row)
        height, width = image_HWC.shape[:2]
        return transforms.render(image_HWC, self.params(row, view, (width, height)), size)

    def params(self, row: int, view: int, source_size: tuple[int, int]) -> transforms.ViewParams:
        """What is drawn for a view of an image of this (width, height)."""
        key, boxes_N4 = self.samples.keys[row], self.samples.boxes
        bbox = in_pixels(boxes_N4[row]) if self.recipe.bbox_crop and boxes_N4 is not None else None
        return transforms.params(self.recipe, self.seed, key, view, source_size, bbox)

    def __call__(
        self, image_of: ImageOf, row: int, view: int, size: int, partner: int, mix: Any
    ) -> np.ndarray:
        own = self.one(image_of, row, view, size)
        return own if mix is None else mixing.mix(own, self.one(image_of, partner, view, size), mix)


class View(Protocol):
    """What a renderer renders: views of a split's images, by number."""

    @property
    def samples(self) -> Samples:
        """The split."""

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """uint8 [H, W, 3], what views are cropped from."""

    def mix(self, row: int, partner: int, view: int, size: int) -> mixing.MixParams | None:
        """How a view is mixed with its partner's; None: not at all."""

    def __call__(
        self, image_of: ImageOf, row: int, view: int, size: int, partner: int, mix: Any
    ) -> np.ndarray:
        """uint8 [size, size, 3]."""


class ViewRenderer(TorchDataset[Any]):
    """Renders the views of a request in a worker; an FgkdError is returned, not raised.

    hashes: content hashes to compare files with. skip_unreadable: leave out images that cannot be
    read. store: the view's decoded images; until it is complete they are decoded here. unmixable:
    bool [N], the images that no other is mixed with.
    """

    def __init__(
        self,
        view: View,
        sizes: Sequence[int],
        hashes: Sequence[str] | np.ndarray | None = None,
        skip_unreadable: bool = False,
        store: ImageStore | None = None,
        unmixable: np.ndarray | None = None,
    ) -> None:
        self.view, self.samples, self.sizes, self.store = view, view.samples, sizes, store
        self.hashes, self.skip_unreadable, self.unmixable = hashes, skip_unreadable, unmixable

    def __getitem__(self, request: Request) -> RenderedViews | FgkdError:
        try:
            images = [np.empty(shape, np.uint8) for shape in self.shapes(request)]
            return self.render_into(images, request)
        except FgkdError as error:
            return error

    def shapes(self, request: Request) -> list[tuple[int, ...]]:
        """[B, V, H, W, 3] of a request's images, for each size."""
        shape = (len(request.rows), len(request.views))
        return [(*shape, size, size, 3) for size in self.sizes]

    def render_into(self, images: list[np.ndarray], request: Request) -> RenderedViews:
        """Render a request into arrays of its `shapes`."""
        shape = (len(request.rows), len(request.views))
        digests, lams = np.zeros(shape, np.uint64), np.ones(shape, np.float32)
        boxes = np.zeros((*shape, 4), np.int16)
        # An image and its partner; to keep more costs a page fault for every 4 KiB of pixels.
        image_of = functools.lru_cache(2)(functools.partial(self._decode, request))
        good, unreadable = [], list[Unreadable]()
        for i, row in enumerate(request.rows.tolist()):
            partners = [row] * shape[1] if request.partners is None else request.partners[i]
            try:
                image_of(row)
                for j, (number, partner) in enumerate(zip(request.views, partners, strict=True)):
                    partner = self._mixed_with(image_of, row, int(partner))
                    for size, out in zip(self.sizes, images, strict=True):
                        mix = self.view.mix(row, partner, number, size)
                        out[i, j] = self.view(image_of, row, number, size, partner, mix)
                        if mix is not None and size == self.sizes[0]:
                            lams[i, j], boxes[i, j] = mix.lam, mix.box or 0
            except FgkdError as error:
                if not self.skip_unreadable or isinstance(error, ContentMismatch):
                    raise
                unreadable.append(Unreadable(self.samples.keys[row], error.message))
                continue
            good.append(i)
            if request.digests is None or request.digests[i]:
                digests[i] = [transforms.pixel_digest(image) for image in images[0][i]]
        at = np.array(good, np.int64)
        if unreadable:
            images = [out[at] for out in images]
        return RenderedViews(
            request.rows[at],
            at,
            tuple(map(torch.from_numpy, images)),
            digests[at],
            lams[at],
            boxes[at],
            unreadable,
        )

    def _mixed_with(self, image_of: ImageOf, row: int, partner: int) -> int:
        """The partner, or the row itself: a view is not mixed with an image that is unreadable.

        Which images those are is known from the cache (`unmixable`), or found out now.
        """
        if self.unmixable is not None and self.unmixable[partner]:
            return row
        if not self.skip_unreadable or partner == row:
            return partner
        try:
            image_of(partner)
        except ContentMismatch:
            raise
        except FgkdError:
            return row
        return partner

    def _decode(self, request: Request, row: int) -> np.ndarray:
        if self.store and self.store.is_complete:  # which has compared the content
            return self.store[row]
        data = read_place(request.places[row]) if request.places else self.samples.read(row)
        if request.check_content and self.hashes is not None and self.hashes[row]:
            content.check_content(self.samples.keys[row], self.hashes[row], data)
        return self.view.decode(data, self.samples.paths[row])
