"""Capture: running the teachers over every view and writing the shards of a cache.

Shape legend: B images of a request, V views, N = B * V, K classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from fgkd import distributed
from fgkd.cache.shards import ShardJob
from fgkd.cache.writer import Captured, Writer
from fgkd.data import Dataset
from fgkd.data.image_store import ImageStore
from fgkd.distillation.teachers import Teachers
from fgkd.evaluation import inference
from fgkd.loading.workers import render
from fgkd.progress import SILENT, Pace, Progress
from fgkd.views.clean import clean_renderer
from fgkd.views.rendering import RenderedViews, Request, Unreadable
from fgkd.views.view_set import ViewSet

KEPT_AHEAD = 2  # batches that may wait to be encoded while the teacher continues


class Capture:
    """Writes the missing shards of a cache.

    workers: data loading processes. skip_unreadable: leave out images that cannot be read. images:
    an image store to read from. One shard is filled at a time.
    """

    def __init__(
        self,
        writer: Writer,
        teachers: Teachers,
        dataset: Dataset,
        views: ViewSet,
        *,
        workers: int = 0,
        skip_unreadable: bool = False,
        images: ImageStore | None = None,
    ) -> None:
        self.writer, self.teachers, self.dataset = writer, teachers, dataset
        self.views, self.images = views, images
        self.workers, self.skip_unreadable = workers, skip_unreadable
        self._open: Captured | None = None

    def requests(self, job: ShardJob) -> Iterator[tuple[Request, np.ndarray]]:
        """The shard's views in teacher batches, with each row's place in the shard."""
        views = range(job.start, job.stop)
        return self.views.block_requests(job.block, views, self.teachers.max_batch)

    def write_train(self, jobs: list[ShardJob], progress: Progress = SILENT) -> bool:
        """Write these shards; False if `progress` asked to stop before the last."""
        renderer = self.views.renderer(
            self.teachers.sizes,
            hashes=self.writer.samples["train"].hashes,
            skip_unreadable=self.skip_unreadable,
            store=self.images,
        )
        sent: deque[tuple[ShardJob, Request, np.ndarray]] = deque()

        def requests() -> Iterator[Request]:
            for job in jobs:
                for request, places in self.requests(job):
                    sent.append((job, request, places))
                    yield request

        sizes = [len(self.writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs]
        ends = np.cumsum(sizes)
        pace = Pace(sum(sizes))
        kept: deque[Future[None]] = deque()
        done, clock = 0, time.perf_counter()
        with ThreadPoolExecutor(1) as keeper:  # encodes and writes while the teacher computes
            for answer in render(renderer, requests(), self.workers):
                waited = time.perf_counter() - clock
                job, request, places = sent.popleft()
                wait = self.teachers.forward_async(answer.images)
                answer = replace(answer, images=())
                kept.append(keeper.submit(self.keep, job, request, places, answer, wait))
                if len(kept) > KEPT_AHEAD:
                    kept.popleft().result()
                num = len(request.rows) * len(request.views)
                done, now = done + num, time.perf_counter()
                progress.advance(done, sum(sizes))
                line = pace.add(done, num, waited, now - clock, units=num)
                clock = now
                if line:
                    shard = f"shard {np.searchsorted(ends, done, 'right')}/{len(jobs)}"
                    progress.message(f"{shard}  target {done:,}/{sum(sizes):,}  {line}")
                if progress.stop_requested():
                    break
            for one in kept:
                one.result()
        return done == sum(sizes)

    def keep(
        self,
        job: ShardJob,
        request: Request,
        places: np.ndarray,
        answer: RenderedViews,
        wait: Callable[[], np.ndarray],
    ) -> None:
        """Encode a batch, at these places of the shard; write the shard once it is full."""
        logits_NK = wait()
        held = self._open = self._open or self.writer.captured(job)
        logits_BVK = logits_NK.reshape(*answer.digests_BV.shape, logits_NK.shape[-1])
        partners_BV = None if request.partners is None else request.partners[answer.at]
        mixing = (partners_BV, answer.lams_BV, answer.boxes_BV4)
        held.put(places[answer.at], request.views, logits_BVK, answer.digests_BV, *mixing)
        held.unreadable |= {one.key for one in answer.unreadable}
        held.left -= len(request.rows) * len(request.views)
        if not held.left:
            self._open = None
            self.writer.publish(held)

    def write_val(self) -> None:
        """Write the clean logits of the validation images."""
        samples = self.dataset.splits["val"]
        answers: list[torch.Tensor] = []
        unreadable: list[Unreadable] = []
        for model in self.teachers.models:
            renderer = clean_renderer(samples, model.eval_transform, self.skip_unreadable)
            rows, logits_NK, unreadable = inference.evaluate(
                model,
                renderer,
                batch_size=self.teachers.max_batch,
                workers=self.workers,
                device=self.teachers.device,
            )
            answers.append(logits_NK)
        full_NK = np.zeros((len(samples), len(self.dataset.classes)), np.float32)
        full_NK[rows] = self.teachers.average(answers)
        if distributed.rank() == 0:
            self.writer.publish_val(full_NK, [one.key for one in unreadable])


def image_reader(dataset: Dataset) -> Callable[[str, int], bytes]:
    """A function (split, row) -> encoded image bytes, for formats that hold the images."""
    return lambda split, row: dataset.splits[split].read(row)
