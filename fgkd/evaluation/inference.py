"""Batched inference: logits of a stream of batches or of a whole split.

Shape legend: B images, V views, H, W pixels, 3 channels, N = B * V, K classes.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkd import distributed
from fgkd.device import to_device
from fgkd.loading.workers import render
from fgkd.models import Classifier
from fgkd.models.classifier import Logits
from fgkd.progress import SILENT, Progress
from fgkd.views.clean import CleanView
from fgkd.views.rendering import RenderedViews, Request, Unreadable, ViewRenderer

Compiled = Callable[[Tensor], Logits]


def logits(model: Classifier, image_u8_BVHW3: Tensor, **how: Any) -> Tensor:
    """float32 logits [N, K] on the CPU, in (image, view) order; `how`: as of `forward_async`."""
    return forward_async(model, image_u8_BVHW3, **how)()


def forward_async(
    model: Classifier,
    image_u8_BVHW3: Tensor,
    *,
    device: torch.device,
    max_batch: int,
    amp_dtype: torch.dtype | None = None,
    compiled: Compiled | None = None,
) -> Callable[[], Tensor]:
    """Start forward passes of `max_batch` views each; the function returned waits for the logits.

    Meanwhile a GPU computes, and more passes can be started. compiled: the model as torch.compile
    returns it, which is for one shape: the last pass is filled up with black views.
    """
    model.eval()
    run = compiled or model
    on_gpu = device.type == "cuda"
    pieces = [torch.zeros(0, len(model.classes) or model.config["num_classes"])]
    for image_u8_NHW3 in image_u8_BVHW3.flatten(0, 1).split(max_batch):
        if len(image_u8_NHW3):
            with (
                torch.inference_mode(),
                torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None),
            ):
                held_NHW3, num = to_device(image_u8_NHW3, device), len(image_u8_NHW3)
                if compiled:
                    held_NHW3 = F.pad(held_NHW3, (0,) * 7 + (max_batch - num,))
                answer_NK = run(held_NHW3).answer_BK[:num].float()
                pieces.append(answer_NK.to("cpu", non_blocking=on_gpu))
    done = torch.cuda.current_stream(device).record_event() if on_gpu else None
    return functools.partial(_wait, pieces, done, image_u8_BVHW3 if on_gpu else None)


def _wait(pieces: list[Tensor], done: torch.cuda.Event | None, held: Tensor | None) -> Tensor:
    """held: the pixels, whose memory is not to be written again before they are on the GPU."""
    if done:
        done.synchronize()
    return torch.cat(pieces)


def clean_requests(rows: np.ndarray, batch_size: int, num_views: int = 1) -> list[Request]:
    """Requests for the first views of these rows, in batches, without digests."""
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [Request(part, range(num_views), digests=np.zeros(len(part), bool)) for part in parts]


def evaluate(
    model: Classifier,
    renderer: ViewRenderer,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    compiled: Compiled | None = None,
    progress: Progress = SILENT,
) -> tuple[np.ndarray, Tensor, list[Unreadable]]:
    """(rows, float32 logits [N, K], unreadable images) of every image once, over all ranks.

    Where the renderer has several views of an image, its logits are their mean. amp_dtype and
    compiled are those of `forward_async`.
    """
    rows = distributed.share(np.arange(len(renderer.samples)))
    assert isinstance(renderer.view, CleanView)
    num_views = renderer.view.num_views
    pending: deque[tuple[RenderedViews, Callable[[], Tensor]]] = deque()
    done: list[tuple[np.ndarray, Tensor, list[Unreadable]]] = []

    finished = 0

    def finish() -> None:
        answer, wait = pending.popleft()
        logits_BK = wait().unflatten(0, (len(answer.rows), num_views)).mean(1)
        done.append((answer.rows, logits_BK, answer.unreadable))
        nonlocal finished
        finished += len(answer.rows) + len(answer.unreadable)
        progress.status(lambda: f"image {finished:,}/{len(rows):,}")
        progress.advance(finished, len(rows))

    for answer in render(renderer, clean_requests(rows, batch_size, num_views), workers):
        wait = forward_async(
            *(model, answer.images[0]),
            device=device,
            max_batch=batch_size,
            amp_dtype=amp_dtype,
            compiled=compiled,
        )
        pending.append((answer, wait))
        if len(pending) > 1:
            finish()
    while pending:
        finish()
    everyone = [row for part in distributed.gather(done) for row in part]
    return (
        np.concatenate([rows for rows, _, _ in everyone]),
        torch.cat([logits for _, logits, _ in everyone]),
        [one for _, _, unreadable in everyone for one in unreadable],
    )
