"""A training loop over 22 random images: its batches, steps and states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fgkd import models
from fgkd.loading import schedule
from fgkd.loading.batch import Batch
from fgkd.training import loop, optim
from helpers.models import CLASSES, build, images

CPU = torch.device("cpu")
SCHEDULE = schedule.Schedule(seed=0, num_samples=22, batch_size=8, epochs=2, views=1)  # 8, 8, 6


def make_batches(first_step: int = 0) -> list[Batch]:
    """The 6 batches of a run over 22 random images, the last of each epoch short."""
    x, labels = images(22), torch.arange(22) % len(CLASSES)
    specs = [spec for epoch in range(2) for spec in SCHEDULE.epoch_specs(epoch)]
    return [
        Batch(
            spec=spec,
            count=len(spec.rows),
            row_ids=spec.rows.astype(np.uint64),
            image_u8_BHW3=x[spec.rows],
            labels_B=labels[spec.rows],
            teacher_BK=None,
            partner_labels_B=None,
            lam_B=None,
            unreadable=[],
        )
        for spec in specs[first_step:]
    ]


def lr_at(step: int) -> float:
    return 1e-2 / (1 + step)


def step_fn(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    loss = F.cross_entropy(model(batch.image_u8_BHW3).head_BK, batch.labels_B) * batch.image_share
    return {"loss": loss, "half": loss / 2}


def make_state(scale: float | None = None, ema: bool = True, **options: Any) -> loop.State:
    model = build("convnext_atto", **options)
    groups = optim.param_groups(model=model.net, weight_decay=0.05)
    return loop.State(
        model,
        optim.create_optimizer(name="adamw", groups=groups, lr=1e-3, momentum=0.9),
        torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None),
        ModelEmaV3(model, decay=0.9, use_warmup=True) if ema else None,
    )


def state_of(model: models.Classifier, opt: str = "adamw") -> loop.State:
    groups = optim.param_groups(model=model.net, weight_decay=0.05)
    optimizer = optim.create_optimizer(name=opt, groups=groups, lr=1e-3, momentum=0.9)
    return loop.State(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def start(
    state: loop.State, batches: Iterable[Batch], step: loop.Step = step_fn, **options: Any
) -> Iterator[loop.Report]:
    given: dict[str, Any] = {"steps_per_epoch": 3, "lr_at": lr_at, "seed": 0, "device": CPU}
    return loop.fit(state, batches=batches, step_fn=step, **given | options)


def fit(*args: Any, **options: Any) -> list[loop.Report]:
    return list(start(*args, **options))


def broken_gradient(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """A finite loss whose gradient is infinite at the first step but one."""
    out = step_fn(model, batch)
    if batch.spec.step == 1:
        weight = next(p for p in model.parameters() if p.requires_grad)
        out["loss"] = out["loss"] + (weight * 0).sum().sqrt()
    return out


def assert_equal_weights(a: nn.Module, b: nn.Module, atol: float = 0.0) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert (x - y).abs().max() <= atol, name
