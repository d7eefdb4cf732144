"""The training loop: forward, backward, update and report, for any step function.

It reads no files and no options; what happens between steps is the caller's.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgkd import compilation, distributed, rng
from fgkd.errors import CheckpointError, FgkdError, NotFinite
from fgkd.loading.batch import Batch
from fgkd.models import Classifier
from fgkd.training import optim
from fgkd.views.rendering import Unreadable

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]  # (model, micro-batch) -> losses
MIN_LOSS_SCALE = 2.0**-10  # gradients that overflow even at this loss scale are not finite at all


@dataclass
class State:
    """Everything that training changes, and so all that a checkpoint holds.

    Random draws are functions of keys, so no generator state is saved.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Any = None  # timm.utils.ModelEmaV3 or None
    step: int = 0  # steps taken
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch, weighted by samples
    best: dict[str, float] = field(default_factory=dict)  # figures of the best epoch

    def save(self) -> dict[str, object]:
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

    def restore(self, saved: Mapping[str, Any], path: Path | None = None) -> None:
        """Continue from a checkpoint, of this path. Raises: CheckpointError if of another model."""
        try:
            self.model.load_state_dict(saved["model"])
            optim.restore(self.optimizer, saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.ema:
                self.ema.module.load_state_dict(saved["ema"])
            self.step, self.sums, self.best = saved["step"], saved["sums"], saved["best"]
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"the checkpoint is not of this run: {reason}"
            raise CheckpointError(message, path=path, reason=reason) from None


@dataclass(frozen=True)
class Report:
    """What one optimizer step did. Losses are means over the global batch.

    settled: the state is that after this step and no later one has begun, so it can be evaluated
    and saved; so at an epoch's end, every `checkpoint_steps` and where training stops.
    """

    step: int
    epoch: int
    epoch_ends: bool
    settled: bool
    losses: dict[str, float]
    lr: float
    grad_norm: float
    skipped: bool  # float16 gradients overflowed: no update, and the loss scale is halved
    num_images: int
    stopping: bool
    unreadable: list[Unreadable]
    times: dict[str, float]  # wait_s: waiting for data; step_s: in total


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
    compiled_sizes: Collection[int] = (),
    checkpoint_steps: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Report]:
    """Take one optimizer step per batch and yield its report; the caller evaluates and saves.

    The report of the step after which `should_stop()` was true is the last. One that is not
    `settled` comes when the next step's forward and backward passes are launched, so that a GPU
    need not wait while its figures are read.

    step_fn(model, micro_batch) returns a dict with `loss`; its other entries are logged. Each entry
    is the micro-batch's share of a mean over the global batch: a mean over images times
    `image_share`, a mean over labelled images times `label_share`. So the result does not depend
    on how a batch is split into ranks and micro-batches.

    compiled_sizes: rows of the micro-batches that take the compiled model, which is compiled for
    each of them; others, such as a short last one, do not.

    checkpoint_steps: how often, in steps, a report is to be settled within an epoch; 0: never.

    Raises: NotFinite, before the update, when a loss or (without a scaler) a gradient is nan or
    inf; CompileError when torch.compile fails.
    """
    net = _distribute(state.model, device)
    compiled: Any = torch.compile(net, dynamic=False) if compiled_sizes else net
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    stream, clock = iter(batches), time.perf_counter()
    batch, wait_s = _take(stream)
    launched: _Launched | None = None  # the step before, whose report is due
    while batch is not None:
        if isinstance(batch, Exception):
            raise batch
        step, epoch = batch.spec.step, batch.spec.epoch
        images, labels, stop = distributed.sums(
            [float(batch.count), batch.num_labelled(), float(should_stop())], device
        )
        if launched is None:  # at first, and where the caller may have evaluated the model
            state.model.train()
        losses: dict[str, Tensor | float] = {}
        parts = list(batch.split(grad_accum_steps, images, labels, device))
        for micro, part in enumerate(parts):
            rng.seed_torch("dropout", seed, step, micro, distributed.rank())
            state.model.set_drop_path_draws(seed, step, part.row_ids)
            with _sync(net, micro + 1 == len(parts)), _autocast(device, amp_dtype):
                if len(part.row_ids) in compiled_sizes:
                    with compilation.errors_explained():
                        out = step_fn(compiled, part)
                else:
                    out = step_fn(net, part)
                # DistributedDataParallel averages gradients over ranks; they are to be summed.
                total = state.scaler.scale(out["loss"] * distributed.world())
                with state.model.statistics_kept():
                    total.backward()
            for name, value in out.items():
                losses[name] = losses.get(name, 0.0) + value.detach().double()
        lr, norm, skipped = lr_at(step), torch.zeros((), device=device), False
        if images:
            optim.set_lr(state.optimizer, lr)
            state.scaler.unscale_(state.optimizer)
            norm = optim.clip_grad(parameters, clip_grad, clip_mode)
        figures = _Figures(losses, norm, state.scaler.is_enabled())
        if launched:
            yield launched.report(state, time.perf_counter() - clock)
            launched, clock = None, time.perf_counter()  # its batch's memory is free
        following, waited_s = _take(stream) if not stop else (None, 0.0)
        figures.go_on(waited_s)
        if state.scaler.is_enabled() or not optim.skip_unless(figures.are_finite, state.optimizer):
            figures.check(step, epoch)
        if images:
            rng.seed_torch(
                "update", seed, step
            )  # kron draws random numbers; all ranks need the same
            skipped = _update(state, step)
        ends = (step + 1) % steps_per_epoch == 0
        saves = checkpoint_steps > 0 and (step + 1) % checkpoint_steps == 0
        settled = ends or saves or not isinstance(following, Batch)
        launched = _Launched(batch, figures, ends, settled, lr, skipped, images, stop > 0, wait_s)
        if settled:
            yield launched.report(state, time.perf_counter() - clock)
            launched, clock = None, time.perf_counter()
        batch, wait_s = following, 0.0


def _take(stream: Iterator[Batch]) -> tuple[Batch | Exception | None, float]:
    """The next batch (None after the last) and the seconds spent waiting for it.

    An error is returned, not raised, because the present step must be finished first.
    """
    clock = time.perf_counter()
    try:
        batch: Batch | Exception | None = next(stream, None)
    except Exception as error:
        batch = error
    return batch, time.perf_counter() - clock


class _Figures:
    """Losses and gradient norm of a step, copied to the CPU asynchronously.

    While they are copied, the next batch is fetched and, if the optimizer itself can skip steps
    that are not finite, the update is launched, so that the GPU is never idle. CUDA events measure
    for how long it was.
    """

    def __init__(self, losses: Mapping[str, Any], norm: Tensor, scaled: bool) -> None:
        self.names, self.scaled, self.idle_s = list(losses), scaled, 0.0
        values = torch.stack([*losses.values(), norm.double()])
        distributed.add_up(values[:-1])
        self.are_finite = torch.isfinite(values[:-1] if scaled else values).all()
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._reached: list[torch.cuda.Event] = []
        self._device = values.device
        self._mark()

    def go_on(self, waited_s: float) -> None:
        """Note that the next batch has arrived, after so many seconds of waiting."""
        self.idle_s = waited_s
        self._mark()

    def _mark(self) -> None:
        """Record a CUDA event after the work launched so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            self._reached.append(torch.cuda.current_stream(self._device).record_event(event))

    def check(self, step: int, epoch: int) -> tuple[dict[str, float], float]:
        """Wait for (losses, norm). Raises: NotFinite; a scaled norm may be infinite."""
        if self._reached:
            before, after = self._reached
            after.synchronize()
            self.idle_s = before.elapsed_time(after) / 1e3
        *losses, norm = self._values.tolist()
        means = dict(zip(self.names, losses, strict=True))
        if not all(map(math.isfinite, losses)):
            raise _not_finite(
                f"the loss is not finite at step {step} (epoch {epoch + 1}): {means}", step
            )
        if not (self.scaled or math.isfinite(norm)):
            raise _not_finite(f"the gradient is not finite at step {step} (norm {norm})", step)
        return means, norm


@dataclass
class _Launched:
    """A step whose figures are not read yet; its batch is kept, which may still be copied."""

    batch: Batch
    figures: _Figures
    epoch_ends: bool
    settled: bool
    lr: float
    skipped: bool
    images: float
    stopping: bool
    wait_s: float

    def report(self, state: State, step_s: float) -> Report:
        """Wait for the figures and count the step in `state`. Raises: NotFinite."""
        step, epoch = self.batch.spec.step, self.batch.spec.epoch
        means, grad_norm = self.figures.check(step, epoch)
        state.step = step + 1
        for name, mean in (means | {"images": 1.0}).items():
            state.sums[name] = state.sums.get(name, 0.0) + mean * self.images
        return Report(
            step=state.step,
            epoch=epoch,
            epoch_ends=self.epoch_ends,
            settled=self.settled,
            losses=means,
            lr=self.lr,
            grad_norm=grad_norm,
            skipped=self.skipped,
            num_images=int(self.images),
            stopping=self.stopping,
            unreadable=self.batch.unreadable,
            times={"wait_s": self.wait_s + self.figures.idle_s, "step_s": step_s},
        )


def _update(state: State, step: int) -> bool:
    """Update weights and EMA; True if float16 gradients overflowed and the step was skipped."""
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    skipped = state.scaler.get_scale() < scale
    if skipped and scale < MIN_LOSS_SCALE:
        raise _not_finite(
            f"the gradient is not finite at step {step}, at a loss scale of {scale}", step
        )
    if state.ema and not skipped:
        state.ema.update(state.model, step=step + 1)  # timm counts updates from 1
    return skipped


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world() == 1:
        return model
    # About the gradient of a token [1, 1, D], whose strides are arbitrary.
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


def _not_finite(what: str, step: int) -> FgkdError:
    return NotFinite(f"{what}; no update was made", step=step)
