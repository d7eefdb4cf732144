"""Images on disk to batches: decode once, render keyed views, join the cache's targets.

Workers render whole batches; the main process only slices the epoch's slab of targets.
Shape legend: B batch, V views, H, W pixels, 3 channels, K classes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from . import distributed, rng, targets, views
from .cache import manifest, store
from .data import Samples
from .data.images import decode_rgb
from .errors import FgkdError
from .plan import BatchSpec, Schedule

CHECK_EVERY = 100  # one training view in so many is compared with the cache's digest


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: some views of some rows; which rows' content hash to compare."""

    rows: np.ndarray
    views: Sequence[int]
    digests: np.ndarray | None = None  # bool [B]: return these rows' pixel digests; None: all
    check_content: bool = False


@dataclass(frozen=True)
class Fetched:
    """A worker's answer. rows are those of the request that could be read, in its order."""

    rows: np.ndarray
    image_u8_BVHW3: torch.Tensor
    digests_BV: np.ndarray  # uint64, 0 where not asked for
    bad: list[tuple[str, str]]  # (key, reason) of quarantined images


class Fetcher(TorchDataset[Any]):
    """Request -> Fetched in a worker. An FgkdError is returned, not raised, to cross it whole."""

    def __init__(
        self,
        samples: Samples,
        view: Callable[[np.ndarray, int, int], np.ndarray],
        size: int,
        hashes: list[str] | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.samples, self.view, self.size = samples, view, size
        self.hashes, self.skip_bad = hashes, skip_bad

    def __getitem__(self, request: Request) -> Fetched | FgkdError:
        try:
            return self._fetch(request)
        except FgkdError as error:
            return error

    def _fetch(self, request: Request) -> Fetched:
        shape = (len(request.rows), len(request.views))
        images = np.empty((*shape, self.size, self.size, 3), np.uint8)
        digests = np.zeros(shape, np.uint64)
        good, bad = [], []
        for i, row in enumerate(request.rows):
            try:
                data = self.samples.read(row)
                image_HWC = decode_rgb(data, self.samples.paths[row])
            except FgkdError as error:
                if not self.skip_bad:
                    raise
                bad.append((self.samples.keys[row], error.what))
                continue
            if request.check_content and self.hashes:
                self._check_content(row, data)
            good.append(i)
            wants_digest = request.digests is None or request.digests[i]
            for j, number in enumerate(request.views):
                images[i, j] = self.view(image_HWC, row, number)
                if wants_digest:
                    digests[i, j] = views.pixel_digest(images[i, j])
        if bad:
            images, digests = images[good], digests[good]
        return Fetched(request.rows[good], torch.from_numpy(images), digests, bad)

    def _check_content(self, row: int, data: bytes) -> None:
        assert self.hashes is not None
        now = manifest.content_hash(data)
        if now != self.hashes[row]:
            raise FgkdError(
                f"the cache is of other data: content of {self.samples.keys[row]}: "
                f"{self.hashes[row]} -> {now}",
                "point --data at the images the cache was made of",
            )


@dataclass(frozen=True)
class KeyedView:
    """The training view of an image already decoded; picklable, and pure in (row, view)."""

    samples: Samples
    recipe: views.ViewRecipe
    seed: int
    size: int

    def __call__(self, image_HWC: np.ndarray, row: int, view: int) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        drawn = views.params(self.recipe, self.seed, self.samples.keys[row], view, (width, height))
        return views.render(image_HWC, drawn, self.size)


class CleanFetcher(Fetcher):
    """Fetches the evaluation view: Pillow decode and timm's eval transform, as uint8."""

    def __init__(self, samples: Samples, model_config: dict[str, Any], skip_bad: bool) -> None:
        from timm.data.transforms_factory import transforms_imagenet_eval

        size = model_config["input_size"][-1]
        self.transform = transforms_imagenet_eval(
            size,
            crop_pct=model_config["crop_pct"],
            crop_mode=model_config.get("crop_mode"),
            interpolation=model_config["interpolation"],
            use_prefetcher=True,
        )
        super().__init__(samples, self._clean, size, skip_bad=skip_bad)

    def _clean(self, image_HWC: np.ndarray, row: int, view: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(self.transform(Image.fromarray(image_HWC))).transpose(1, 2, 0)


def fetch(fetcher: Fetcher, requests: Iterable[Request], workers: int) -> Iterator[Fetched]:
    """Answers in the order of the requests, from `workers` processes (0: this one)."""
    loader: Any = DataLoader(
        fetcher,
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_ignore_interrupt,
    )
    for answer in loader:
        if isinstance(answer, FgkdError):
            raise answer
        yield answer


def _as_is(answer: Any) -> Any:
    return answer


def _ignore_interrupt(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle


@dataclass(frozen=True)
class Batch:
    """One rank's part of a training step, in main memory.

    count: how many of its rows to learn from; 0 marks a stand-in row of a rank without a share.
    """

    spec: BatchSpec
    count: int
    row_ids: np.ndarray  # uint64 [B], the keys of per-sample draws
    image_u8_BHW3: torch.Tensor
    labels_B: torch.Tensor
    teacher_BK: torch.Tensor | None  # float32, from the cache
    bad: list[tuple[str, str]]


class TrainLoader:
    """Batches of a run from any step on, the same for every number of workers.

    With a cache, each batch carries the teacher's logits of exactly its views, a small share of
    the pixels is compared with the cache's digests (unless `size` is not the cache's), and each
    image file with its content hash when it is first read.
    """

    def __init__(
        self,
        *,
        samples: Samples,
        schedule: Schedule,
        recipe: views.ViewRecipe,
        view_seed: int,
        size: int,
        workers: int,
        skip_bad: bool,
        cache: store.Reader | None = None,
    ) -> None:
        self.samples, self.schedule, self.cache, self.workers = samples, schedule, cache, workers
        self.check_pixels = cache is not None and size == cache.identity["views"]["img_size"]
        hashes = cache.identity["train"]["hashes"] if cache else None
        view = KeyedView(samples, recipe, view_seed, size)
        self.fetcher = Fetcher(samples, view, size, hashes, skip_bad)
        self.row_ids = np.array([rng.hash64(key) for key in samples.keys], np.uint64)
        bad = cache.bad_keys if cache else set()
        self.usable = np.array([key not in bad for key in samples.keys])

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from step `first_step` to the end of the run."""
        specs: list[BatchSpec] = []  # sent to the workers, not yet answered

        def requests() -> Iterator[Request]:
            epoch, step = divmod(first_step, self.schedule.steps_per_epoch)
            for e in range(epoch, self.schedule.epochs):
                for spec in self.schedule.epoch_specs(e, step if e == epoch else 0):
                    specs.append(spec)
                    yield self._request(spec, e == epoch)

        slab: dict[str, np.ndarray] = {}
        slab_view = -1
        for answer in fetch(self.fetcher, requests(), self.workers):
            spec = specs.pop(0)
            if self.cache and spec.view != slab_view:
                slab.clear()  # one epoch's targets in memory, never two
                slab, slab_view = self.cache.slab(spec.view), spec.view
            yield self._join(spec, answer, slab)

    def _share(self, spec: BatchSpec) -> np.ndarray:
        rows = distributed.share(spec.rows)
        return rows[self.usable[rows]]

    def _request(self, spec: BatchSpec, first_epoch: bool) -> Request:
        rows = self._share(spec)
        if distributed.world() > 1 and not len(rows):
            # Every rank must take part in every step, with an image that the teacher could read.
            rows = spec.rows[self.usable[spec.rows]][:1]
        place = spec.start + np.flatnonzero(np.isin(spec.rows, rows))
        return Request(rows, [spec.view], place % CHECK_EVERY == 0, first_epoch)

    def _join(self, spec: BatchSpec, answer: Fetched, slab: dict[str, np.ndarray]) -> Batch:
        rows, teacher_BK = answer.rows, None
        if self.cache:
            self._check_digests(spec, answer, slab)
            arrays = {name: array[rows] for name, array in slab.items() if name != "digests"}
            teacher_BK = torch.from_numpy(targets.decode(self.cache.encoding, arrays))
        return Batch(
            spec,
            len(rows) if len(self._share(spec)) else 0,
            self.row_ids[rows],
            answer.image_u8_BVHW3[:, 0],
            torch.from_numpy(self.samples.labels[rows]),
            teacher_BK,
            answer.bad,
        )

    def _check_digests(self, spec: BatchSpec, answer: Fetched, slab: dict[str, np.ndarray]) -> None:
        digests_B = answer.digests_BV[:, 0]
        wrong = (digests_B != 0) & (digests_B != slab["digests"][answer.rows])
        if self.check_pixels and wrong.any():
            key = self.samples.keys[answer.rows[wrong][0]]
            assert self.cache is not None
            then = self.cache.manifest["libraries"]
            drift = manifest.explain_mismatch(then, store.library_versions())
            raise FgkdError(
                f"the pixels of view {spec.view} of {key} are not those the teacher saw "
                f"(library versions: {', '.join(drift) or 'unchanged'})",
                "install the versions of the cache's manifest.json, or write the cache anew here",
            )
