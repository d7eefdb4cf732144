"""Training batches, and their division into micro-batches.

Shape legend: B batch, H, W pixels, 3 channels, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgkd import distributed, losses
from fgkd.device import to_device
from fgkd.loading.schedule import BatchSpec
from fgkd.views.rendering import Unreadable

TENSORS = (
    "image_u8_BHW3",
    "labels_B",
    "teacher_BK",
    "partner_labels_B",
    "lam_B",
    "teacher_image_u8_BHW3",
)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a training step, in main memory.

    count: the number of rows that contribute to the loss; 0 for the placeholder row of a rank that
    has no images of this step. teacher_image_u8_BHW3: the same views at the size of a live teacher,
    where that is another. image_share, label_share: the batch's share of the global batch's images,
    and of its labelled images: a mean over the batch times the share adds up over ranks.
    """

    spec: BatchSpec
    count: int
    row_ids: np.ndarray  # uint64 [B], the keys of per-sample draws
    image_u8_BHW3: Tensor
    labels_B: Tensor
    teacher_BK: Tensor | None  # float32, from the cache
    partner_labels_B: Tensor | None  # of mixed views, else None
    lam_B: Tensor | None
    unreadable: list[Unreadable]
    teacher_image_u8_BHW3: Tensor | None = None
    image_share: float = 1.0
    label_share: float = 1.0

    def num_labelled(self) -> float:
        """The number of rows with a label, among those that count."""
        known_B = losses.labelled(
            labels=self.labels_B, partner_labels=self.partner_labels_B, lam=self.lam_B
        )
        return float(known_B.sum()) if self.count else 0.0

    def split(
        self, num_parts: int, images: float, labels: float, device: torch.device
    ) -> Iterator[Batch]:
        """Micro-batches of near-equal size on the device; none of an empty batch.

        images, labels: how many the global batch has. Each of several ranks yields `num_parts`,
        since losses may use collectives; where it has too few rows, a placeholder row is added.
        """
        n = len(self.row_ids)
        if distributed.world() == 1:
            num_parts = min(num_parts, n)
        for i in range(num_parts):
            start, stop = n * i // num_parts, n * (i + 1) // num_parts
            count = (stop - start) if self.count else 0
            part = self._cut(slice(start, max(stop, start + 1)), count)
            shares = (count / max(images, 1.0), part.num_labelled() / max(labels, 1.0))
            tensors = {name: getattr(part, name) for name in TENSORS}
            moved: dict[str, Any] = {
                name: None if tensor is None else to_device(tensor, device)
                for name, tensor in tensors.items()
            }
            yield dataclasses.replace(part, image_share=shares[0], label_share=shares[1], **moved)

    def _cut(self, rows: slice, count: int) -> Batch:
        tensors = {name: getattr(self, name) for name in TENSORS}
        cut: dict[str, Any] = {k: None if v is None else v[rows] for k, v in tensors.items()}
        return dataclasses.replace(self, count=count, row_ids=self.row_ids[rows], **cut)
