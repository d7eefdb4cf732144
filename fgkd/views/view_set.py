"""The training views of a split: its blocks, mixing partners and orders, and requests for pixels.

Everything here is a keyed function of the seed, so that workers, ranks and resume points change
nothing. Shape legend: N images of the split, B some of them, V views.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fgkd.data import Samples
from fgkd.data.image_store import ImageStore
from fgkd.data.samples import Place
from fgkd.views import orders
from fgkd.views.recipes import ViewIdentity, ViewRecipe
from fgkd.views.rendering import KeyedView, Request, ViewRenderer


@dataclass(frozen=True, eq=False)
class ViewSet:
    """Every view of a split's images: view v of image i is the same pixels wherever it is made.

    size: side of a view in pixels. block_size: images per block; the images of a block are stored
    in one shard, and mixup and cutmix pair images of one block. short_side: see `ViewIdentity`.
    unreadable: keys of images without views; an image that is to be mixed with one stays unmixed.
    added: see `orders.blocks`.
    """

    samples: Samples
    recipe: ViewRecipe
    seed: int
    size: int
    block_size: int
    short_side: int | None = None
    unreadable: Collection[str] = ()
    added: Sequence[int] = ()
    _partners: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        identity: ViewIdentity,
        samples: Samples,
        block_size: int,
        unreadable: Collection[str] = (),
        added: Sequence[int] = (),
    ) -> ViewSet:
        """The views that an identity describes, of these images."""
        views = (identity.recipe, identity.seed, identity.img_size)
        return ViewSet(samples, *views, block_size, identity.short_side, unreadable, added)

    def at_size(self, size: int) -> ViewSet:
        """The same views, rendered at another size."""
        return replace(self, size=size, _partners=self._partners)

    @property
    def identity(self) -> ViewIdentity:
        """What decides the pixels of these views."""
        return ViewIdentity(self.recipe, self.seed, self.size, self.short_side)

    @functools.cached_property
    def view(self) -> KeyedView:
        """The function from an image to the pixels of one of its views."""
        return KeyedView(self.samples, self.recipe, self.seed, self.short_side)

    @functools.cached_property
    def blocks(self) -> list[np.ndarray]:
        """The rows of each block."""
        return orders.blocks(self.seed, len(self.samples), self.block_size, self.added)

    @functools.cached_property
    def block_of(self) -> np.ndarray:
        """int64 [N]: the block of each row."""
        found = np.empty(len(self.samples), np.int64)
        for block, rows in enumerate(self.blocks):
            found[rows] = block
        return found

    @functools.cached_property
    def has_views(self) -> np.ndarray:
        """bool [N]: whether an image can be read."""
        if not self.unreadable:
            return np.ones(len(self.samples), bool)
        return np.array([key not in self.unreadable for key in self.samples.keys], bool)

    def partners(self, view: int) -> np.ndarray | None:
        """int64 [N]: the row that each image is mixed with in a view; None: views are not mixed.

        An image without a partner is its own.
        """
        if not self.recipe.mixes:
            return None
        if view not in self._partners:
            for old in list(self._partners)[:-1]:  # two views are in use at a time
                del self._partners[old]
            self._partners[view] = orders.partners(self.seed, view, self.blocks)
        return self._partners[view]

    def order(self, seed: int, epoch: int, view: int, shard_buffer: int = 0) -> np.ndarray:
        """int64 [N]: the rows of an epoch that shows `view`, mixed pairs side by side.

        shard_buffer: go block by block, rows shuffled within so many; 0: all rows are shuffled.
        """
        partner = self.partners(view)
        if shard_buffer:
            return orders.shard_order(seed, epoch, self.blocks, shard_buffer, partner)
        return orders.epoch_order(seed, epoch, len(self.samples), partner)

    def request(
        self,
        rows: np.ndarray,
        views: Sequence[int],
        *,
        digests: np.ndarray | None = None,
        check_content: bool = False,
        places: dict[int, Place] | None = None,
    ) -> Request:
        """A request for some views of some rows, each mixed with its partner in that view."""
        partners = [p[rows] for p in map(self.partners, views) if p is not None]
        mixed_with = np.stack(partners, axis=1) if partners else None
        return Request(rows, views, mixed_with, digests, check_content, places)

    def block_requests(
        self, block: int, views: range, batch_size: int
    ) -> Iterator[tuple[Request, np.ndarray]]:
        """Requests for every view of a block, and the place of each of their rows in the block.

        An image is decoded once for all its views; mixed views go pair by pair, view by view. At
        most `batch_size` views each (but one image, or one pair, at least).
        """
        rows = self.blocks[block]
        if not self.recipe.mixes:
            chunk = max(1, batch_size // len(views))
            for i in range(0, len(rows), chunk):
                places = np.arange(i, min(i + chunk, len(rows)))
                yield self.request(rows[places], views, check_content=True), places
            return
        place_of = np.empty(int(rows.max()) + 1, np.int64)
        place_of[rows] = np.arange(len(rows))
        chunk = max(2, batch_size // 2 * 2)
        for view in views:
            partner = self.partners(view)
            assert partner is not None
            paired = orders.pairs_first(rows, partner)
            for i in range(0, len(paired), chunk):
                part = paired[i : i + chunk]
                yield self.request(part, [view], check_content=True), place_of[part]

    def renderer(
        self,
        sizes: Sequence[int] = (),
        *,
        hashes: Sequence[str] | np.ndarray | None = None,
        skip_unreadable: bool = False,
        store: ImageStore | None = None,
    ) -> ViewRenderer:
        """What renders the requests. sizes: sides in pixels, `size` alone by default.

        hashes: content hashes [N] to compare files with. skip_unreadable: leave out images that
        cannot be read, instead of raising. store: where decoded images are.
        """
        blocked = None if self.has_views.all() else ~self.has_views
        given = (self.view, sizes or [self.size], hashes, skip_unreadable, store)
        return ViewRenderer(*given, unmixable=blocked)
