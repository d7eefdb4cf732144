"""The student's training step: label loss and distillation loss of a batch."""

from __future__ import annotations

import torch

from fgkd import distributed, losses
from fgkd.config import LossSpec
from fgkd.loading.batch import Batch
from fgkd.models import Classifier
from fgkd.training import loop


def distils(spec: LossSpec) -> bool:
    """Whether the loss has a distillation term."""
    return spec.distillation == "logits" and spec.distill_loss_weight > 0


def student_step(
    spec: LossSpec,
    teacher: Classifier | None = None,
    *,
    dtype: str = "float32",
    gather: bool = True,
    class_weights_K: torch.Tensor | None = None,
) -> loop.Step:
    """The step function: class head to the labels, distillation head (or the same) to the teacher.

    A term whose weight is 0 is computed for the log only.

    teacher: a live teacher in eval mode on the device, which runs in `dtype` on the batch's images
    of its size, or on the student's; None takes the batch's stored logits. gather: let losses that
    compare rows see the rows of all ranks.
    class_weights_K: for losses that weigh classes, on the device.
    """

    def teacher_logits(batch: Batch) -> torch.Tensor:
        assert teacher is not None
        own = batch.teacher_image_u8_BHW3
        images = batch.image_u8_BHW3 if own is None else own
        amp = torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.no_grad(), amp:
            return teacher(images).answer_BK.float()

    def step(net: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        def gather_rows(rows_BK: torch.Tensor) -> torch.Tensor:
            return distributed.gather_rows(rows_BK[: batch.count])  # not the placeholder rows

        out = net(batch.image_u8_BHW3)
        task = losses.task_loss(
            logits=out.head_BK,
            labels=batch.labels_B,
            smoothing=spec.smoothing,
            partner_labels=batch.partner_labels_B,
            lam=batch.lam_B,
        )
        task = task * batch.label_share
        if not distils(spec):
            return {"loss": spec.task_loss_weight * task}
        teacher_BK = batch.teacher_BK if teacher is None else teacher_logits(batch)
        assert teacher_BK is not None
        distill = losses.distill_loss(
            name=spec.kd_loss,
            student_logits=out.head_BK if out.dist_BK is None else out.dist_BK,
            teacher_logits=teacher_BK,
            labels=batch.labels_B,
            temperature=spec.temperature,
            standardize=spec.logit_standardization,
            gather=gather_rows if gather and distributed.world() > 1 else None,
            class_weights=class_weights_K,
        )
        distill = distill * batch.image_share
        loss = spec.task_loss_weight * task + spec.distill_loss_weight * distill
        return {"loss": loss, "task_loss": task, "distill_loss": distill}

    return step


def label_step(smoothing: float) -> loop.Step:
    """The step function of a teacher or any other model that learns labels alone."""

    def step(net: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        loss = losses.task_loss(
            logits=net(batch.image_u8_BHW3).answer_BK,
            labels=batch.labels_B,
            smoothing=smoothing,
            partner_labels=batch.partner_labels_B,
            lam=batch.lam_B,
        )
        return {"loss": loss * batch.label_share}

    return step
