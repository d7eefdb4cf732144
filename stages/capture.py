"""Running the teacher over the shards of a cache that are left to write.

Shape legend: B images of a request, V views, N = B * V, K classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import distributed, models
from fgkd.cache.shards import ShardJob
from fgkd.cache.writer import Captured, Writer
from fgkd.config import CacheLogitsConfig
from fgkd.data import Dataset
from fgkd.data.image_store import ImageStore
from fgkd.evaluation import inference
from fgkd.loading.workers import render
from fgkd.views import orders
from fgkd.views.rendering import KeyedView, RenderedViews, Request, ViewRenderer, clean_renderer

from . import session

KEPT_AHEAD = 2  # answers that may wait to be encoded while the teacher goes on


@dataclass(frozen=True)
class Teachers:
    """One teacher, or several whose answers are averaged into one."""

    models: list[models.Classifier]
    paths: list[Path]
    ensemble: str  # logits or probs
    img_size: int  # of the digests; each teacher sees its own input size
    device: torch.device
    dtype: str
    max_batch: int

    @property
    def sizes(self) -> list[int]:
        """Sides to render each view at: the digests' first, then what the teachers take."""
        own = [model.config["input_size"][-1] for model in self.models]
        return list(dict.fromkeys([self.img_size, *own]))

    def ready(self) -> None:
        """Move the models to the device and number type."""
        kind = torch.float64 if self.dtype == "float64" else torch.float32
        for model in self.models:
            model.to(self.device, kind)
            model.to(memory_format=torch.channels_last)

    def average(self, answers: list[torch.Tensor]) -> np.ndarray:
        """float32 logits [N, K]: the mean of the logits, or the log of the mean probabilities."""
        if len(answers) == 1:
            return answers[0].numpy()
        stacked = torch.stack(answers).double()
        if self.ensemble == "probs":
            stacked = stacked.log_softmax(-1)
            mean = stacked.logsumexp(0) - np.log(len(answers))
        else:
            mean = stacked.mean(0)
        return mean.float().numpy()

    def logits_of(self, images: tuple[torch.Tensor, ...]) -> np.ndarray:
        """float32 [N, K] for the views of a request, one tensor a size."""
        return self.ask(images)()

    def ask(self, images: tuple[torch.Tensor, ...]) -> Callable[[], np.ndarray]:
        """Ask for `logits_of` these; the function returned waits for them."""
        amp = torch.bfloat16 if self.dtype == "bfloat16" else None
        of_size = dict(zip(self.sizes, images, strict=True))
        asked = [
            inference.ask(
                model,
                of_size[model.config["input_size"][-1]],
                device=self.device,
                max_batch=self.max_batch,
                amp_dtype=amp,
            )
            for model in self.models
        ]
        return lambda: self.average([wait() for wait in asked])


class Capture:
    """Writes what is missing of a cache."""

    def __init__(
        self,
        writer: Writer,
        teachers: Teachers,
        dataset: Dataset,
        view: KeyedView,
        options: CacheLogitsConfig,
        images: ImageStore | None = None,
    ) -> None:
        self.writer, self.teachers, self.dataset = writer, teachers, dataset
        self.view, self.recipe, self.options, self.images = view, view.recipe, options, images
        self._open: Captured | None = None  # the shard that is being filled

    def requests(self, job: ShardJob) -> Iterator[tuple[Request, np.ndarray]]:
        """The shard's views in teacher batches, with each row's place in the shard.

        An image is decoded once for all its views; mixed views go pair by pair, view by view.
        Batches depend on the plan and the batch size alone.
        """
        rows, batch = self.writer.block_rows[job.block], self.options.batch_size
        if not self.recipe.mixes:
            chunk = max(1, batch // (job.stop - job.start))
            for i in range(0, len(rows), chunk):
                places = np.arange(i, min(i + chunk, len(rows)))
                yield Request(rows[places], range(job.start, job.stop), check_content=True), places
            return
        place_of = np.empty(int(rows.max()) + 1, np.int64)
        place_of[rows] = np.arange(len(rows))
        for view in range(job.start, job.stop):
            partner = orders.partners(self.options.seed, view, self.writer.block_rows)
            first, alone = rows[rows < partner[rows]], rows[rows == partner[rows]]
            paired = np.concatenate([np.stack([first, partner[first]], 1).reshape(-1), alone])
            for i in range(0, len(paired), max(2, batch // 2 * 2)):
                part = paired[i : i + max(2, batch // 2 * 2)]
                request = Request(part, [view], partner[part][:, None], check_content=True)
                yield request, place_of[part]

    def write_train(self, jobs: list[ShardJob], stop: session.StopSignal) -> None:
        """Publish these shards; a signal ends it between two batches."""
        renderer = ViewRenderer(
            self.view,
            self.teachers.sizes,
            self.writer.samples["train"].hashes,
            self.options.skip_bad_images,
            self.images,
        )
        sent: deque[tuple[ShardJob, Request, np.ndarray]] = deque()

        def requests() -> Iterator[Request]:
            for job in jobs:
                for request, places in self.requests(job):
                    sent.append((job, request, places))
                    yield request

        sizes = [len(self.writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs]
        ends = np.cumsum(sizes)
        pace = session.Pace(sum(sizes), 10.0)
        kept: deque[Future[None]] = deque()
        done, clock = 0, time.perf_counter()
        with ThreadPoolExecutor(1) as keeper:  # encodes and writes while the teacher answers
            for answer in render(renderer, requests(), self.options.workers):
                waited = time.perf_counter() - clock
                job, request, places = sent.popleft()
                wait = self.teachers.ask(answer.images)
                answer = replace(answer, images=())
                kept.append(keeper.submit(self.keep, job, request, places, answer, wait))
                if len(kept) > KEPT_AHEAD:
                    kept.popleft().result()
                num = len(request.rows) * len(request.views)
                done, now = done + num, time.perf_counter()
                line = pace.add(done, num, waited, now - clock, units=num)
                clock = now
                if line:
                    shard = f"shard {np.searchsorted(ends, done, 'right')}/{len(jobs)}"
                    session.echo(f"{shard}  target {done:,}/{sum(sizes):,}  {line}")
                if stop.requested():
                    break
            for one in kept:
                one.result()
        pace.close()

    def keep(
        self,
        job: ShardJob,
        request: Request,
        places: np.ndarray,
        answer: RenderedViews,
        wait: Callable[[], np.ndarray],
    ) -> None:
        """Encode an answer, whose rows are at these places of the shard; publish a full shard."""
        logits_NK = wait()
        held = self._open = self._open or self.writer.captured(job)
        logits_BVK = logits_NK.reshape(*answer.digests_BV.shape, logits_NK.shape[-1])
        partners_BV = None if request.partners is None else request.partners[answer.at]
        mixing = (partners_BV, answer.lams_BV, answer.boxes_BV4)
        held.put(places[answer.at], request.views, logits_BVK, answer.digests_BV, *mixing)
        held.unreadable |= {key for key, _ in answer.bad}
        held.left -= len(request.rows) * len(request.views)
        if not held.left:
            self._open = None
            self.writer.publish(held)

    def write_val(self) -> None:
        """Publish the clean logits of the validation images."""
        samples = self.dataset.splits["val"]
        answers: list[torch.Tensor] = []
        bad: list[tuple[str, str]] = []
        for model in self.teachers.models:
            renderer = clean_renderer(samples, model.config, self.options.skip_bad_images)
            rows, logits_NK, bad = inference.evaluate(
                model,
                renderer,
                batch_size=self.options.batch_size,
                workers=self.options.workers,
                device=self.teachers.device,
            )
            answers.append(logits_NK)
        full_NK = np.zeros((len(samples), len(self.dataset.classes)), np.float32)
        full_NK[rows] = self.teachers.average(answers)
        if distributed.rank() == 0:
            self.writer.publish_val(full_NK, [key for key, _ in bad])


def read_image(dataset: Dataset) -> Any:
    """(split, row) -> encoded bytes, for formats that hold the images."""
    return lambda split, row: dataset.splits[split].read(row)
