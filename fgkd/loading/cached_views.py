"""A torch Dataset of augmented views and the teacher's logits of them, for any training loop.

Shape legend: H, W pixels, C classes.
"""

from __future__ import annotations

import copy
import math
import numbers
import operator
import os
from collections.abc import Iterator, Mapping, MutableSet, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from fgkd import comparison, files
from fgkd.cache.reader import Reader
from fgkd.cache.remote import RemoteReader, open_cache
from fgkd.cache.writer import library_versions
from fgkd.data import Dataset
from fgkd.data.samples import Place
from fgkd.errors import OptionError, PixelMismatch
from fgkd.loading.cached_data import cached_data, matching
from fgkd.loading.worker_memory import WorkerMemory
from fgkd.views.rendering import RenderedViews, Request
from fgkd.views.view_set import ViewSet

CHECK_EVERY = 100  # one view in so many is compared with the cache's digest


class Item(dict[str, Tensor | int | float | str]):
    """One image's view, label and targets.

    A DataLoader's batch of them shares the memory that its images were rendered into.
    """

    batch_B3HW: Tensor  # the images of the batch this one was rendered with
    image_3HW: Tensor  # its own, a view of that


def _collate(items: list[Item], *, collate_fn_map: Any = None) -> Mapping[str, object]:
    """What torch's default collate function calls for items."""
    plain = [dict(item) for item in items]
    batch_B3HW, image_size = items[0].batch_B3HW, items[0].image_3HW.nbytes
    start = batch_B3HW.data_ptr()
    if len(items) == len(batch_B3HW) and all(
        item["image"] is item.image_3HW and item.image_3HW.data_ptr() == start + i * image_size
        for i, item in enumerate(items)
    ):
        for one in plain:
            del one["image"]
        return {"image": batch_B3HW, **collate(plain, collate_fn_map=collate_fn_map)}
    return dict(collate(plain, collate_fn_map=collate_fn_map))


default_collate_fn_map[Item] = _collate


class CachedViews(TorchDataset[Item]):
    """The training images of a cache in one of its views each, with the teacher's logits.

    A map-style dataset for `torch.utils.data.DataLoader`, with any sampler, number of workers and
    start method. Epoch e shows view e mod V: call `set_epoch(e)` before each epoch; it reaches
    workers that live on (`persistent_workers=True`). Items are dicts, a DataLoader's batches too,
    whose images are in channels-last memory:

        image           uint8 tensor [3, H, W], not normalised
        label           int, -1 for an image without a label
        teacher_logits  float32 tensor [C]
        key             str, the image's path relative to the dataset's root
        partner_label   int, of the image that is mixed in   (only of caches with mixup or cutmix)
        lam             float, the share of `label`; 1 - lam is that of `partner_label`   (same)

    cache: of `open_cache`, or its folder or URL. A cache behind a URL is downloaded shard by shard
    as items are needed, and kept until this object is gone. data: a `Dataset` of `open_dataset`,
    or its spec (`folder:PATH`); by default the images are found where the cache was made from.
    size: side of the images in pixels, by default those that the teacher saw; another size shows
    the same crops. temperature: needed by a `topk` or `topk8` cache, whose logits are then such
    that softmax(teacher_logits / temperature) has exactly the stored tail.

    Each image file is compared with its content hash when it is first read. At the cache's own size
    the pixels of each batch's first view, and of one view in `CHECK_EVERY`, are compared with the
    cache's digests. Images that capture could not read are left out.
    Raises: TypeError or ValueError for a size that is no number of pixels; DataMismatch,
    OptionError, CacheError of many types; ContentMismatch and PixelMismatch for an item (from a
    DataLoader's worker as torch's RuntimeError with the same text).
    """

    def __init__(
        self,
        cache: Reader | files.PathLike,
        data: Dataset | files.PathLike | Sequence[files.PathLike] | None = None,
        *,
        size: int | None = None,
        temperature: float | None = None,
    ) -> None:
        reader = cache if isinstance(cache, Reader) else open_cache(cache)
        if isinstance(data, Dataset):
            dataset = matching(reader, data)
        else:
            dataset = cached_data(reader, data or (), fetch=False)[1]
        identity, samples = reader.identity, dataset.splits["train"]
        made = ViewSet.of(
            *(identity.views, samples, identity.shard_size),
            *(reader.unreadable_keys, identity.added),
        )
        self.view_set = made if size is None else made.at_size(_checked_size(size))
        self.temperature = _checked_temperature(reader, temperature)
        self.classes, self.num_views = reader.classes, reader.views
        self.rows = np.flatnonzero(self.view_set.has_views)
        self.checks_pixels = self.view_set.size == identity.views.img_size
        self._renderer = self.view_set.renderer(hashes=reader.samples["train"].hashes)
        # Shared with the workers, however they are started.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._content_checked = torch.zeros(len(samples), dtype=torch.bool).share_memory_()
        self._shards_checked = torch.zeros(len(reader.manifest.shards), dtype=torch.bool)
        self._shards_checked.share_memory_()
        self._use(reader)

    def _use(self, reader: Reader) -> None:
        """Read targets through a copy that is this process's own."""
        self._reader, self._process = copy.copy(reader), os.getpid()
        names = [row.name for row in reader.manifest.shards]
        self._reader.checked_names = _SharedNames(names, self._shards_checked)
        self._original = reader  # keeps a URL's downloads
        self._places: dict[str, dict[int, Place]] = {}  # by shard, of a cache behind a URL
        self._worker_memory = WorkerMemory()

    def __repr__(self) -> str:
        what = f"{len(self):,} images of {self.view_set.size} px, {len(self.classes)} classes"
        shown = f"view {self.view} of {self.num_views}"
        return f"{type(self).__name__}({self._original.name!r}: {what}, {shown})"

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {
            "_reader": None,
            "_process": -1,
            "_places": {},
            "_worker_memory": None,
        }

    def set_epoch(self, epoch: int) -> None:
        """Show view `epoch` mod V from now on, in all workers. Raises TypeError for a fraction."""
        self._epoch[0] = operator.index(epoch)

    @property
    def view(self) -> int:
        """The view that items are shown in."""
        return int(self._epoch) % self.num_views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items at these indices: what a DataLoader calls for a batch."""
        if self._process != os.getpid():
            self._use(self._original)
        view, rows = self.view, self.rows[np.asarray(indices, np.int64)]
        image_B3HW, lams_B = self._rendered(rows, view)
        logits_BC = torch.from_numpy(self._reader.targets(rows, view, self.temperature))
        return list(self._items(rows, view, image_B3HW, lams_B, logits_BC))

    def _rendered(self, rows: np.ndarray, view: int) -> tuple[Tensor, np.ndarray]:
        """(images [B, 3, H, W] in channels-last memory, shares of mixed ones [B]) of these rows."""
        unchecked = not bool(self._content_checked[torch.from_numpy(rows)].all())
        checks_B = (rows + view) % CHECK_EVERY == 0
        checks_B[:1] = True
        request = self.view_set.request(
            rows,
            [view],
            digests=checks_B & self.checks_pixels,
            check_content=unchecked,
            places=self._downloaded(rows, view),
        )
        ((number, _, height, width, _),) = self._renderer.shapes(request)
        image_B3HW = self._memory(number, height, width)
        image_BVHW3 = image_B3HW.permute(0, 2, 3, 1)[:, None]
        rendered = self._renderer.render_into([image_BVHW3.numpy()], request)
        self._content_checked[torch.from_numpy(rows)] = True
        if self.checks_pixels:
            self._check_pixels(request, rendered, view)
        return image_B3HW, rendered.lams_BV[:, 0]

    def _memory(self, number: int, height: int, width: int) -> Tensor:
        """Memory for a batch [B, 3, H, W] in channels-last order, shared if this is a worker."""
        if get_worker_info() is None or number == 1:
            shape_BHW3 = (number, height, width, 3)
            return torch.empty(shape_BHW3, dtype=torch.uint8).permute(0, 3, 1, 2)
        return self._worker_memory.images(number, height, width)

    def _check_pixels(self, request: Request, rendered: RenderedViews, view: int) -> None:
        rows, digests_B = request.rows[request.digests], rendered.digests_BV[request.digests, 0]
        stored_B = self._reader.stored(rows, view, ["digests"])["digests"]
        wrong = np.flatnonzero(digests_B != stored_B)
        if len(wrong):
            raise pixel_mismatch(self._reader, self.view_set.samples.keys[rows[wrong[0]]], view)

    def _downloaded(self, rows: np.ndarray, view: int) -> dict[int, Place] | None:
        """Where the images of these rows and of their partners lie, if they come with shards."""
        reader = self._reader
        if not isinstance(reader, RemoteReader) or not reader.holds_images:
            return None
        found: dict[int, Place] = {}
        for block in np.unique(self.view_set.block_of[rows]).tolist():
            shard = reader.shard_of(block, view)
            if shard.name not in self._places:
                self._places[shard.name] = reader.places(shard)
            found |= self._places[shard.name]  # partners are of the same block
        return found

    def _items(
        self,
        rows: np.ndarray,
        view: int,
        image_B3HW: Tensor,
        lams_B: np.ndarray,
        logits_BC: Tensor,
    ) -> Iterator[Item]:
        samples, partner = self.view_set.samples, self.view_set.partners(view)
        for i, row in enumerate(rows.tolist()):
            image_3HW = image_B3HW[i]
            item = Item(image=image_3HW, label=int(samples.labels[row]))
            item |= {"teacher_logits": logits_BC[i], "key": samples.keys[row]}
            if partner is not None:
                item["partner_label"] = int(samples.labels[partner[row]])
                item["lam"] = float(lams_B[i])
            item.batch_B3HW, item.image_3HW = image_B3HW, image_3HW
            yield item


def _checked_size(size: int) -> int:
    side = operator.index(size)
    if side < 1:
        raise ValueError(f"CachedViews(): size is {side}, not a side in pixels")
    return side


def _checked_temperature(reader: Reader, temperature: float | None) -> float | None:
    codec, given = reader.codec, temperature
    if given is not None and not (isinstance(given, numbers.Real) and 0 < given < math.inf):
        message = f"CachedViews(): temperature is {given!r}, not a number above 0"
        raise OptionError(message, option="temperature", value=given)
    if codec.truncated:
        if temperature is None:
            raise OptionError(
                f"a {codec.name} cache needs the temperature that its targets are used at",
                option="temperature",
                suggestion=codec.temperatures[-1],
            )
        codec.refuse_temperature(temperature)
    return temperature


def pixel_mismatch(reader: Reader, key: str, view: int) -> PixelMismatch:
    """The error for a view whose pixels are not those that the teacher saw."""
    drift = comparison.differences(reader.manifest.libraries, library_versions())
    versions = ", ".join(map(str, drift)) or "unchanged"
    return PixelMismatch(
        f"the pixels of view {view} of {key} are not those the teacher saw "
        f"(library versions: {versions})",
        key=key,
        view=view,
        libraries=drift,
    )


class _SharedNames(MutableSet[str]):
    """A set of some of these names, in memory that processes share."""

    def __init__(self, names: Sequence[str], flags: torch.Tensor) -> None:
        self.index, self.flags = {name: i for i, name in enumerate(names)}, flags

    def __contains__(self, name: object) -> bool:
        return name in self.index and bool(self.flags[self.index[str(name)]])

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.index if name in self)

    def __len__(self) -> int:
        return int(self.flags.sum())

    def add(self, value: str) -> None:
        if value in self.index:
            self.flags[self.index[value]] = True

    def discard(self, value: str) -> None:
        if value in self.index:
            self.flags[self.index[value]] = False
