"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from fgkd.config import OptimSpec
from fgkd.errors import OptionError, UnknownName

SCHEDULES = ("cosine", "linear", "step", "constant")


def lr_at(
    *,
    step: int,
    total_steps: int,
    warmup_steps: int,
    lr: float,
    min_lr: float,
    warmup_lr: float = 0.0,
    schedule: str = "cosine",
    decay_steps: int = 1,
    decay_rate: float = 0.1,
) -> float:
    """The learning rate of the update about to be taken; `step` counts updates from 0.

    Warmup rises in a line from `warmup_lr`, which no step has (a step at rate 0 is a step wasted),
    to `lr`, which step `warmup_steps` has. From there `cosine` and `linear` fall to `min_lr`, which
    the last step has; `step` multiplies by `decay_rate` every `decay_steps`, not below `min_lr`.

    `cosine` is timm's CosineLRScheduler with `t_initial=total_steps - warmup_steps - 1,
    warmup_t=warmup_steps + 1, warmup_prefix=True, t_in_epochs=False` at its update `step + 1`.

    Raises: UnknownName; OptionError if the rate would rise (`lr` not above `min_lr`) or never be
    reached.
    """
    if schedule not in SCHEDULES:
        message = f"unknown schedule {schedule!r}"
        raise UnknownName(message, option="sched", value=schedule, known=SCHEDULES)
    if schedule != "constant" and lr <= min_lr:
        what = f"the learning rate would rise during training: lr {lr:g} <= min_lr {min_lr:g}"
        raise OptionError(what, option="min_lr", value=min_lr, suggestion=0)
    if warmup_steps >= total_steps:
        what = f"warmup takes {warmup_steps} steps of {total_steps}: lr {lr:g} is never reached"
        raise OptionError(what, option="warmup_epochs", value=warmup_steps, suggestion=0)
    if step < warmup_steps:
        return warmup_lr + (lr - warmup_lr) * (step + 1) / (warmup_steps + 1)
    since_warmup = step - warmup_steps
    progress = min(1.0, since_warmup / max(1, total_steps - warmup_steps - 1))
    if schedule == "cosine":
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return min_lr + (lr - min_lr) * (1 - progress)
    if schedule == "step":
        return max(min_lr, lr * decay_rate ** (since_warmup // decay_steps))
    return lr


def warmup_epochs(spec: OptimSpec) -> float:
    """Epochs of warmup; by default 2, but at most a quarter of the run."""
    given = spec.warmup_epochs
    return min(2.0, spec.epochs / 4) if given is None else float(given)
