"""The training loader: batches of augmented views with the teacher's logits, in keyed order.

Workers render whole batches; the main process adds their targets.
Shape legend: B batch, V views, H, W pixels, 3 channels, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from fgkd import distributed, rng
from fgkd.cache.reader import Reader
from fgkd.cache.remote import Stream
from fgkd.data.image_store import ImageStore
from fgkd.errors import OptionError
from fgkd.loading.batch import Batch
from fgkd.loading.cached_views import CHECK_EVERY, pixel_mismatch
from fgkd.loading.epoch_targets import EpochTargets, Need
from fgkd.loading.schedule import BatchSpec, Schedule
from fgkd.loading.workers import render
from fgkd.views.rendering import RenderedViews, Request
from fgkd.views.view_set import ViewSet


class TrainLoader:
    """Batches of a run from any step on, the same for every number of workers.

    With a cache, each batch carries the teacher's logits of exactly its views, a small share of
    the pixels is compared with the cache's digests (unless the views are not of the cache's size),
    and each image file with its content hash when it is first read. Mixed views come in pairs.
    temperature: at which a `topk` cache's targets are to be exact. shard_buffer: read the cache
    shard by shard, rows shuffled within so many shards (0: all rows are shuffled). skip_unreadable:
    leave out images that cannot be read. store: where decoded images are. teacher_size: side of the
    images for a live teacher, in pixels; None: it takes the student's.
    Raises: OptionError for mixed views and a batch size that is odd on some rank.
    """

    def __init__(
        self,
        views: ViewSet,
        schedule: Schedule,
        *,
        workers: int = 0,
        skip_unreadable: bool = False,
        cache: Reader | None = None,
        temperature: float | None = None,
        shard_buffer: int = 0,
        store: ImageStore | None = None,
        teacher_size: int | None = None,
    ) -> None:
        self.views, self.samples = views, views.samples
        self.schedule, self.cache, self.workers = schedule, cache, workers
        self.temperature = temperature
        self.check_pixels = cache is not None and views.size == cache.identity.views.img_size
        self.renderer = views.renderer(
            list(dict.fromkeys([views.size, teacher_size or views.size])),
            hashes=cache.samples["train"].hashes if cache else None,
            skip_unreadable=skip_unreadable,
            store=store,
        )
        self.unit = 2 if views.recipe.mixes else 1
        even = 2 * distributed.world()
        if views.recipe.mixes and schedule.batch_size % even:
            raise OptionError(
                f"batch_size {schedule.batch_size} is not even on each of "
                f"{distributed.world()} process(es), but mixup and cutmix need pairs",
                option="batch_size",
                value=schedule.batch_size,
                suggestion=max(1, schedule.batch_size // even) * even,
            )
        self.shard_buffer = shard_buffer
        self.stream = Stream(cache, views.blocks) if cache and shard_buffer else None
        self.target_names = [*cache.codec.arrays(), "digests"] if cache else []

    def usual_sizes(self, num_parts: int) -> set[int]:
        """Rows of this rank's micro-batches, `num_parts` of a step; short steps are left out."""
        schedule = self.schedule
        if self.stream and distributed.world() > 1:
            own = len(distributed.share(np.arange(schedule.num_samples), self.unit))
            steps = set(np.diff(self._cuts(own)).tolist())
        else:
            rows = np.arange(min(schedule.batch_size, schedule.num_samples))
            steps = {len(distributed.share(rows, self.unit))}
        parts = range(num_parts)
        return {n * (i + 1) // num_parts - n * i // num_parts for n in steps for i in parts}

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from step `first_step` to the end of the run."""
        # Not yet answered by the workers: a step, its rows, and the blocks it is the last to use.
        sent: deque[tuple[BatchSpec, np.ndarray, list[int]]] = deque()

        def requests() -> Iterator[Request]:
            epoch, step = divmod(first_step, self.schedule.steps_per_epoch)
            for e in range(epoch, self.schedule.epochs):
                specs = self.schedule.epoch_specs(e, step if e == epoch else 0, self._order(e))
                shares = self._shares(specs)
                asked = [self._stand_in(s, rows) for s, rows in zip(specs, shares, strict=True)]
                needs = [self._blocks_of(rows) for rows in asked]
                if targets:
                    planned = zip(specs, asked, strict=True)
                    following = (e + 1) % self.schedule.views
                    targets.plan(
                        (Need(spec.step, spec.view, rows) for spec, rows in planned),
                        following if e + 1 < self.schedule.epochs else None,
                    )
                spent = _last_uses(needs)
                for i, (spec, rows) in enumerate(zip(specs, shares, strict=True)):
                    if self.stream:
                        self.stream.need(e, spec.view, needs[i])
                        coming = itertools.chain.from_iterable(needs[i + 1 :])
                        self.stream.announce(e, spec.view, coming, 2 * self.shard_buffer)
                    sent.append((spec, rows, spent[i]))
                    yield self._request(spec, asked[i], e == epoch)

        ahead = self.cache is not None and self.stream is None
        targets = EpochTargets(self.cache) if self.cache and ahead else None
        with contextlib.closing(targets) if targets else contextlib.nullcontext():
            for answer in render(self.renderer, requests(), self.workers):
                spec, rows, spent_blocks = sent.popleft()
                if targets:
                    held = targets.of(spec.step, answer.rows)
                elif self.cache:
                    held = self.cache.stored(answer.rows, spec.view, self.target_names)
                else:
                    held = {}
                yield self._join(spec, answer, held, len(rows))
                if self.stream:
                    self.stream.done(spec.epoch, spent_blocks)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch: all mixed, or shard by shard."""
        view = epoch % self.schedule.views
        return self.views.order(self.schedule.seed, epoch, view, self.shard_buffer)

    def _blocks_of(self, rows: np.ndarray) -> list[int]:
        return np.unique(self.stream.block_of[rows]).tolist() if self.stream else []

    def _shares(self, specs: list[BatchSpec]) -> list[np.ndarray]:
        """This rank's rows of each step, without those that have no target.

        Shard by shard, a rank takes a run of the remaining order, so that it needs few shards that
        another rank reads too; else its part of every batch.
        """
        unit = self.unit
        if self.stream and distributed.world() > 1 and specs:
            order = self._order(specs[0].epoch)
            own = distributed.share(order, unit)
            steps, cuts = self.schedule.steps_per_epoch, self._cuts(len(own))
            first = steps - len(specs)
            shares = [own[cuts[i] : cuts[i + 1]] for i in range(first, steps)]
        else:
            shares = [distributed.share(spec.rows, unit) for spec in specs]
        return [rows[self.views.has_views[rows]] for rows in shares]

    def _cuts(self, num_rows: int) -> list[int]:
        """Where each step of an epoch begins and ends in a rank's run of rows."""
        steps, unit = self.schedule.steps_per_epoch, self.unit
        return [num_rows * i // steps // unit * unit for i in range(steps)] + [num_rows]

    def _stand_in(self, spec: BatchSpec, rows: np.ndarray) -> np.ndarray:
        """The rows to load: of several ranks, every one must take part in every step."""
        if distributed.world() == 1 or len(rows):
            return rows
        return spec.rows[self.views.has_views[spec.rows]][:1]

    def _request(self, spec: BatchSpec, rows: np.ndarray, first_epoch: bool) -> Request:
        place = spec.start + np.arange(len(rows))
        return self.views.request(
            rows,
            [spec.view],
            digests=place % CHECK_EVERY == 0,
            check_content=first_epoch,
            places=self.stream.places(self._with_partners(rows, spec.view))
            if self.stream
            else None,
        )

    def _with_partners(self, rows: np.ndarray, view: int) -> np.ndarray:
        partner = self.views.partners(view)
        return rows if partner is None else np.union1d(rows, partner[rows])

    def _join(
        self, spec: BatchSpec, answer: RenderedViews, held: dict[str, np.ndarray], num_rows: int
    ) -> Batch:
        if distributed.world() > 1 and not len(answer.rows):
            return self._blank(spec, answer)
        rows, teacher_BK = answer.rows, None
        if self.cache:
            self._check_digests(spec, answer, held.pop("digests"))
            teacher_BK = torch.from_numpy(self.cache.codec.decode(held, self.temperature))
        partner = self.views.partners(spec.view)
        labels = self.samples.labels
        return Batch(
            spec,
            len(rows) if num_rows else 0,
            self._row_ids(rows),
            answer.images[0][:, 0],
            torch.from_numpy(labels[rows]),
            teacher_BK,
            None if partner is None else torch.from_numpy(labels[partner[rows]]),
            None if partner is None else torch.from_numpy(answer.lams_BV[:, 0]),
            answer.unreadable,
            answer.images[1][:, 0] if len(answer.images) > 1 else None,
        )

    def _row_ids(self, rows: np.ndarray) -> np.ndarray:
        """uint64 [B], the keys of these samples' own draws."""
        keys = self.samples.keys
        return np.array([rng.hash64(keys[row]) for row in rows.tolist()], np.uint64)

    def _blank(self, spec: BatchSpec, answer: RenderedViews) -> Batch:
        """A black image that counts for nothing: no image of this rank's share could be read."""
        images = [torch.zeros(1, *one.shape[2:], dtype=torch.uint8) for one in answer.images]
        label = torch.zeros(1, dtype=torch.int64)
        teacher = torch.zeros(1, self.cache.codec.num_classes) if self.cache else None
        return Batch(
            spec,
            0,
            self._row_ids(np.zeros(1, np.int64)),
            images[0],
            label,
            teacher,
            None,
            None,
            answer.unreadable,
            images[1] if len(images) > 1 else None,
        )

    def _check_digests(self, spec: BatchSpec, answer: RenderedViews, stored_B: np.ndarray) -> None:
        digests_B = answer.digests_BV[:, 0]
        wrong = (digests_B != 0) & (digests_B != stored_B)
        if self.check_pixels and wrong.any():
            key = self.samples.keys[answer.rows[wrong][0]]
            assert self.cache is not None
            raise pixel_mismatch(self.cache, key, spec.view)


def _last_uses(needs: list[list[int]]) -> list[list[int]]:
    """For each step, the blocks that no later one needs."""
    last = {block: i for i, blocks in enumerate(needs) for block in blocks}
    spent: list[list[int]] = [[] for _ in needs]
    for block, i in last.items():
        spent[i].append(block)
    return spent
