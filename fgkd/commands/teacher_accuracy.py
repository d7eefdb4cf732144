"""The accuracy of a cache's teacher, from what the cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fgkd.cache.reader import Reader
from fgkd.evaluation import metrics


@dataclass(frozen=True)
class TeacherAccuracy:
    """The accuracy of a cache's teacher: top-1 in percent on training views and clean val images.

    None: no labels there. chance_pct: of always predicting the most frequent class.
    """

    views_pct: float | None
    val_pct: float | None
    chance_pct: float

    @property
    def is_near_chance(self) -> bool:
        """Whether the teacher knows next to nothing of these classes."""
        known = [pct for pct in (self.views_pct, self.val_pct) if pct is not None]
        bound = self.chance_pct + 0.05 * (100 - self.chance_pct)
        return bool(known) and self.chance_pct < 100 and max(known) < bound

    def lines(self) -> list[str]:
        """The figures as text, with a warning where it is due."""
        named = {"train's views": self.views_pct, "val": self.val_pct}
        parts = [f"{pct:.2f} % on {name}" for name, pct in named.items() if pct is not None]
        lines = [f"the teacher's top-1: {', '.join(parts)}"] if parts else []
        if self.is_near_chance:
            lines.append(
                f"WARNING: that is near chance ({self.chance_pct:.2f} %): is this teacher trained "
                "for these classes, in this order, and are mean, std and image size its own?"
            )
        return lines


def teacher_accuracy(folder: Path) -> TeacherAccuracy | None:
    """The accuracy of the teacher of a complete cache; None if it has no labelled image."""
    reader = Reader(folder)
    labels = np.concatenate([reader.samples[split].labels for split in ("train", "val")])
    labels = labels[labels >= 0]
    if not len(labels):
        return None
    val_pct, logits_NK = None, reader.val_logits()
    labels_N = torch.from_numpy(reader.samples["val"].labels.astype(np.int64))
    if logits_NK is not None and bool((labels_N >= 0).any()):
        val_pct = metrics.top1_pct(logits_NK=torch.from_numpy(logits_NK), labels_N=labels_N)
    chance = 100 * np.bincount(labels).max() / len(labels)
    return TeacherAccuracy(reader.teacher_top1, val_pct, float(chance))
