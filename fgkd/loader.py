"""Views and targets to batches: the keyed order of a run, joined with the cache's slabs.

Workers render whole batches; the main process only slices the epoch's slab of targets.
Shape legend: B batch, V views, H, W pixels, 3 channels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import distributed, plan, rng, views
from .cache import manifest, store
from .cache.reader import Reader
from .data import Samples
from .errors import FgkdError
from .fetch import Fetched, Fetcher, KeyedView, Request, fetch
from .plan import BatchSpec, Schedule

CHECK_EVERY = 100  # one training view in so many is compared with the cache's digest


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
    partner_labels_B: torch.Tensor | None  # of mixed views, else None
    lam_B: torch.Tensor | None
    bad: list[tuple[str, str]]


class TrainLoader:
    """Batches of a run from any step on, the same for every number of workers.

    With a cache, each batch carries the teacher's logits of exactly its views, a small share of
    the pixels is compared with the cache's digests (unless `size` is not the cache's), and each
    image file with its content hash when it is first read. With mixup or cutmix a batch is made of
    pairs inside blocks of `block_size` samples.
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
        block_size: int,
        cache: Reader | None = None,
        temperature: float | None = None,
    ) -> None:
        self.samples, self.schedule, self.cache, self.workers = samples, schedule, cache, workers
        self.temperature = temperature
        self.check_pixels = cache is not None and size == cache.identity["views"]["img_size"]
        hashes = cache.identity["train"]["hashes"] if cache else None
        self.fetcher = Fetcher(KeyedView(samples, recipe, view_seed), [size], hashes, skip_bad)
        self.row_ids = np.array([rng.hash64(key) for key in samples.keys], np.uint64)
        bad = cache.bad_keys if cache else set()
        self.usable = np.array([key not in bad for key in samples.keys])
        self.unit = 2 if recipe.mixes else 1
        if schedule.batch_size % (self.unit * distributed.world()):
            raise FgkdError(
                f"--batch-size {schedule.batch_size} is not even on each of "
                f"{distributed.world()} process(es), but mixup and cutmix need pairs",
                f"--batch-size {schedule.batch_size + 1}",
            )
        blocks = plan.blocks(view_seed, len(samples), block_size)
        self._partners = functools.lru_cache(2)(
            lambda view: plan.partners(view_seed, view, blocks) if recipe.mixes else None
        )

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from step `first_step` to the end of the run."""
        specs: list[BatchSpec] = []  # sent to the workers, not yet answered

        def requests() -> Iterator[Request]:
            epoch, step = divmod(first_step, self.schedule.steps_per_epoch)
            for e in range(epoch, self.schedule.epochs):
                partner = self._partners(e % self.schedule.views)
                for spec in self.schedule.epoch_specs(e, step if e == epoch else 0, partner):
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
        rows = distributed.share(spec.rows, self.unit)
        return rows[self.usable[rows]]

    def _request(self, spec: BatchSpec, first_epoch: bool) -> Request:
        rows = self._share(spec)
        if distributed.world() > 1 and not len(rows):
            rows = spec.rows[:1]  # every rank must take part in every step
        place = spec.start + np.flatnonzero(np.isin(spec.rows, rows))
        partner = self._partners(spec.view)
        partners = None if partner is None else partner[rows][:, None]
        return Request(rows, [spec.view], partners, place % CHECK_EVERY == 0, first_epoch)

    def _join(self, spec: BatchSpec, answer: Fetched, slab: dict[str, np.ndarray]) -> Batch:
        rows, teacher_BK = answer.rows, None
        if self.cache:
            self._check_digests(spec, answer, slab)
            arrays = {name: array[rows] for name, array in slab.items() if name != "digests"}
            teacher_BK = torch.from_numpy(self.cache.codec.decode(arrays, self.temperature))
        partner = self._partners(spec.view)
        labels = self.samples.labels
        return Batch(
            spec,
            len(rows) if len(self._share(spec)) else 0,
            self.row_ids[rows],
            answer.images[0][:, 0],
            torch.from_numpy(labels[rows]),
            teacher_BK,
            None if partner is None else torch.from_numpy(labels[partner[rows]]),
            None if partner is None else torch.from_numpy(answer.lams_BV[:, 0]),
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
