"""The one training loop, passed a step closure; and evaluation. Knows no file and no option.

Shape legend: B batch, N images, K classes.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import distributed, optim, rng
from .batch import Batch
from .errors import FgkdError
from .fetch import CleanView, Fetcher, Request
from .models import Classifier
from .workers import fetch

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]  # (model, micro-batch) -> losses
MIN_LOSS_SCALE = 2.0**-10  # gradients that overflow even at this loss scale are not finite at all


@dataclass
class State:
    """What training changes: a checkpoint is this and nothing else (randomness is keyed)."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Any = None  # timm.utils.ModelEmaV3 or None
    step: int = 0  # steps taken
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch, weighted by samples
    best: dict[str, Any] = field(default_factory=dict)

    def save(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "step": self.step,
            "sums": self.sums,
            "best": self.best,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises: FgkdError when it is of another model."""
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.ema:
                self.ema.module.load_state_dict(saved["ema"])
            self.step, self.sums, self.best = saved["step"], saved["sums"], saved["best"]
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FgkdError(
                f"the checkpoint is not of this run: {reason}",
                "start anew: --overwrite instead of --resume",
            ) from None


@dataclass(frozen=True)
class Report:
    """One optimizer step, as it happened. loss and parts are over the global batch."""

    step: int
    epoch: int
    epoch_ends: bool
    losses: dict[str, float]
    lr: float
    grad_norm: float
    skipped: bool  # float16 gradients overflowed: no update, and the loss scale is halved
    num_images: int
    stopping: bool
    bad: list[tuple[str, str]]
    times: dict[str, float]  # wait_s for data, step_s in all


def fit(
    state: State,
    *,
    batches: Iterable[Batch],
    step_fn: Step,
    steps_per_epoch: int,
    lr_at: Callable[[int], float],
    seed: int,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    grad_accum_steps: int = 1,
    clip_grad: float | None = None,
    clip_mode: str = "norm",
    compiled: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Report]:
    """Take one optimizer step a batch and report it; the caller evaluates, saves and stops.

    step_fn(model, micro_batch) returns a dict with `loss`; its other entries are logged. Each entry
    is the micro-batch's part of a mean over the global batch: a mean over images times
    `image_share`, one over labelled images times `label_share`, so that any cut of a batch into
    ranks and micro-batches adds up to the same.

    Raises: FgkdError before the update when a loss or (without a scaler) a gradient is not finite.
    """
    net = _distribute(state.model, device)
    forward: Any = torch.compile(net) if compiled else net
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    clock = time.perf_counter()
    for batch in batches:
        wait_s = time.perf_counter() - clock
        step, epoch = batch.spec.step, batch.spec.epoch
        images, labels, stop = distributed.sums(
            [float(batch.count), batch.num_labelled(), float(should_stop())], device
        )
        state.model.train()
        means: dict[str, float] = {}
        parts = list(batch.split(grad_accum_steps, images, labels, device))
        for micro, part in enumerate(parts):
            rng.seed_torch("dropout", seed, step, micro, distributed.rank())
            state.model.set_drop_path_draws(seed, step, part.row_ids)
            with _sync(net, micro + 1 == len(parts)), _autocast(device, amp_dtype):
                out = _call(step_fn, forward, part, compiled)
                # DistributedDataParallel takes the mean over ranks of what is to be a sum.
                total = state.scaler.scale(out["loss"] * distributed.world())
                with state.model.statistics_kept():
                    total.backward()
            for name, value in out.items():
                means[name] = means.get(name, 0.0) + float(value.detach())
        means = dict(zip(means, distributed.sums(list(means.values()), device), strict=True))
        _check_finite(means, step, epoch)
        lr, norm, skipped = lr_at(step), 0.0, False
        if images:
            optim.set_lr(state.optimizer, lr)
            state.scaler.unscale_(state.optimizer)
            norm = optim.clip_grad(parameters, clip_grad, clip_mode)
            rng.seed_torch("update", seed, step)  # what kron draws is that of all ranks
            skipped = _update(state, norm, step)
        state.step = step + 1
        for name, mean in (means | {"images": 1.0}).items():
            state.sums[name] = state.sums.get(name, 0.0) + mean * images
        ends = state.step % steps_per_epoch == 0
        times = {"wait_s": wait_s, "step_s": time.perf_counter() - clock}
        yield Report(
            *(state.step, epoch, ends, means, lr, norm, skipped),
            *(int(images), stop > 0, batch.bad, times),
        )
        clock = time.perf_counter()


def _update(state: State, norm: float, step: int) -> bool:
    """Move the weights and their average; True if float16 gradients overflowed and none moved."""
    if not (state.scaler.is_enabled() or math.isfinite(norm)):
        raise _not_finite(f"the gradient is not finite at step {step} (norm {norm})")
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    skipped = state.scaler.get_scale() < scale
    if skipped and scale < MIN_LOSS_SCALE:
        raise _not_finite(f"the gradient is not finite at step {step}, at a loss scale of {scale}")
    if state.ema and not skipped:
        state.ema.update(state.model, step=step + 1)  # timm counts updates from 1
    return skipped


def _call(step_fn: Step, model: Any, part: Batch, compiled: bool) -> dict[str, Tensor]:
    if not compiled:
        return step_fn(model, part)
    from torch._dynamo.exc import TorchDynamoException

    try:
        return step_fn(model, part)
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise FgkdError(
            f"--compile: torch cannot compile this model here: {reason[:300]}",
            "the same command without --compile, or install a C++ compiler: apt-get install g++",
        ) from error


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world() == 1:
        return model
    # Of a token's gradient [1, 1, D], whose strides mean nothing; once a process, on every run.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def _sync(model: Any, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Leave gradients local until the last micro-batch."""
    is_ddp = isinstance(model, nn.parallel.DistributedDataParallel)
    return model.no_sync() if is_ddp and not now else contextlib.nullcontext()


def _autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def _check_finite(means: dict[str, float], step: int, epoch: int) -> None:
    if not all(map(math.isfinite, means.values())):
        raise _not_finite(f"the loss is not finite at step {step} (epoch {epoch + 1}): {means}")


def _not_finite(what: str) -> FgkdError:
    return FgkdError(
        f"{what}; no update was made",
        "start anew with a lower --lr, with --clip-grad 1, or without --amp",
    )


def logits_of(model: Classifier, image_u8_BVHW3: Tensor, **how: Any) -> Tensor:
    """float32 logits [B * V, K] on the CPU, in (image, view) order; `how`: as of `ask`."""
    return ask(model, image_u8_BVHW3, **how)()


def ask(
    model: Classifier,
    image_u8_BVHW3: Tensor,
    *,
    device: torch.device,
    max_batch: int,
    amp_dtype: torch.dtype | None = None,
) -> Callable[[], Tensor]:
    """Ask for logits, `max_batch` views at a time; the function returned waits for them.

    A GPU works on by itself between the two, and can be asked again.
    """
    model.eval()
    pieces = [torch.zeros(0, len(model.config["label_names"]))]
    for images in image_u8_BVHW3.flatten(0, 1).split(max_batch):
        if device.type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        if len(images):
            with torch.inference_mode(), _autocast(device, amp_dtype):
                answer_BK = model(images).answer_BK.float()
                pieces.append(answer_BK.to("cpu", non_blocking=device.type == "cuda"))
    done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait() -> Tensor:
        if done:
            done.synchronize()
        return torch.cat(pieces)

    return wait


def clean_requests(rows: np.ndarray, batch_size: int, num_views: int = 1) -> list[Request]:
    """Requests for the first views of these rows, in batches, without digests."""
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [Request(part, range(num_views), digests=np.zeros(len(part), bool)) for part in parts]


def evaluate(
    model: Classifier,
    fetcher: Fetcher,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> tuple[np.ndarray, Tensor, list[tuple[str, str]]]:
    """(rows, float32 logits [N, K], bad images) of every image once, over all ranks.

    Where the fetcher has several views of an image, its logits are their mean.
    """
    rows = distributed.share(np.arange(len(fetcher.samples)))
    assert isinstance(fetcher.view, CleanView)
    num_views = fetcher.view.num_views
    requests = clean_requests(rows, batch_size, num_views)
    done = [
        (
            answer.rows,
            logits_of(model, answer.images[0], device=device, max_batch=batch_size)
            .unflatten(0, (len(answer.rows), num_views))
            .mean(1),
            answer.bad,
        )
        for answer in fetch(fetcher, requests, workers)
    ]
    everyone = [row for part in distributed.gather(done) for row in part]
    return (
        np.concatenate([rows for rows, _, _ in everyone]),
        torch.cat([logits for _, logits, _ in everyone]),
        [bad for _, _, bads in everyone for bad in bads],
    )
