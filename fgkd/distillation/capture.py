"""Capture: running the teachers over every view and writing the shards of a cache.

Shape legend: B images of a request, V views, N = B * V, K classes.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from fgkd import distributed, files
from fgkd.cache.shards import ShardJob
from fgkd.cache.writer import Captured, Writer
from fgkd.data import Dataset
from fgkd.data.image_store import ImageStore
from fgkd.device import memory_in_use
from fgkd.distillation.teachers import Teachers
from fgkd.errors import FgkdError
from fgkd.evaluation import inference
from fgkd.loading.workers import render
from fgkd.progress import SILENT, Pace, Progress
from fgkd.views.clean import clean_renderer
from fgkd.views.rendering import RenderedViews, Request, Unreadable
from fgkd.views.view_set import ViewSet

SAVE_EVERY_S = 60.0  # how often what is there of a shard is kept, but not so often that it takes
SAVE_SHARE = 20  # more than one part in so many of the time
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
        self._resumed: dict[str, Captured] = {}  # by the name of the shard
        self._next_save = 0.0
        self.targets_kept = 0  # of a shard that was not full when the capture ended

    def requests(self, job: ShardJob) -> Iterator[tuple[Request, np.ndarray]]:
        """The shard's views in teacher batches, with each row's place in the shard.

        Those that an earlier capture has kept are left out.
        """
        views = range(job.start, job.stop)
        done = self._resumed[job.name].done_VS.copy() if job.name in self._resumed else None
        for request, places in self.views.block_requests(job.block, views, self.teachers.max_batch):
            numbers = np.array(request.views) - job.start
            if done is None or not done[np.ix_(numbers, places)].all():
                yield request, places

    def _num_targets(self, job: ShardJob) -> int:
        """How many views the requests of a shard have."""
        if job.name not in self._resumed:
            return len(self.writer.block_rows[job.block]) * (job.stop - job.start)
        return sum(len(one.rows) * len(one.views) for one, _ in self.requests(job))

    def write_train(self, jobs: list[ShardJob], progress: Progress = SILENT) -> bool:
        """Write these shards; False if `progress` asked to stop before the last.

        What is there of a shard that is not full is kept for the next time: when the capture ends
        early, and every minute or so.
        """
        self._resumed = {j.name: found for j in jobs if (found := self.writer.begun(j))}
        try:
            finished = self._write_train(jobs, progress)
        except BaseException:
            with contextlib.suppress(FgkdError):  # on a full disk, say; the first error counts
                self._keep_open()
            raise
        self._keep_open()
        return finished

    def _keep_open(self) -> None:
        if self._open is not None:
            self.writer.save_begun(self._open)
            self.targets_kept = self._open.done_VS.size - self._open.left
            self._open = None

    def _write_train(self, jobs: list[ShardJob], progress: Progress) -> bool:
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

        for name, full in [(n, one) for n, one in self._resumed.items() if not one.left]:
            self.writer.publish(full)  # it could not be written the last time
            jobs = [job for job in jobs if job.name != name]
        sizes = [self._num_targets(job) for job in jobs]
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
                line = pace.add(done, num, waited, now - clock, units=num)
                clock = now
                shard = min(int(np.searchsorted(ends, done, "right")) + 1, len(jobs))
                place = f"shard {shard}/{len(jobs)}  target {done:,}/{sum(sizes):,}"
                progress.status(partial(self._status, place, pace))
                progress.advance(done, sum(sizes))
                if line:
                    progress.interim(f"{place}  {line}")
                if progress.stop_requested():
                    break
            for one in kept:
                one.result()
        return done == sum(sizes)

    def _status(self, place: str, pace: Pace) -> str:
        memory = files.human_bytes(memory_in_use(self.teachers.device))
        return f"{place}  {pace.now}  {memory}"

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
        if self._open is None:
            self._open = self._resumed.pop(job.name, None) or self.writer.captured(job)
            self._next_save = time.monotonic() + SAVE_EVERY_S
        held = self._open
        logits_BVK = logits_NK.reshape(*answer.digests_BV.shape, logits_NK.shape[-1])
        partners_BV = None if request.partners is None else request.partners[answer.at]
        mixing = (partners_BV, answer.lams_BV, answer.boxes_BV4)
        held.put(places[answer.at], request.views, logits_BVK, answer.digests_BV, *mixing)
        held.mark(places, request.views, [one.key for one in answer.unreadable])
        if not held.left:
            self._open = None  # what waits to be kept is of the next shard
            try:
                self.writer.publish(held)
            except FgkdError:
                with contextlib.suppress(FgkdError):
                    self.writer.save_begun(held)
                raise
        elif (began := time.monotonic()) >= self._next_save:
            self.writer.save_begun(held)
            took = time.monotonic() - began
            self._next_save = began + max(SAVE_EVERY_S, SAVE_SHARE * took)

    def write_val(self) -> None:
        """Write the clean logits of the validation images."""
        samples = self.dataset.splits["val"]
        answers: list[torch.Tensor] = []
        unreadable: list[Unreadable] = []
        for model, compiled in self.teachers.passes():
            renderer = clean_renderer(samples, model.eval_transform, self.skip_unreadable)
            rows, logits_NK, unreadable = inference.evaluate(
                model,
                renderer,
                batch_size=self.teachers.max_batch,
                workers=self.workers,
                device=self.teachers.device,
                amp_dtype=self.teachers.amp_dtype,
                compiled=compiled,
            )
            answers.append(logits_NK)
        full_NK = np.zeros((len(samples), len(self.dataset.classes)), np.float32)
        full_NK[rows] = self.teachers.average(answers)
        if distributed.rank() == 0:
            self.writer.publish_val(full_NK, [one.key for one in unreadable])


def image_reader(dataset: Dataset) -> Callable[[str, int], bytes]:
    """A function (split, row) -> encoded image bytes, for formats that hold the images."""
    return lambda split, row: dataset.splits[split].read(row)
