"""Training runs as numbered steps: which samples and which view each step shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgkd.views.orders import epoch_order


@dataclass(frozen=True)
class BatchSpec:
    """One step's rows in the global order: what a rank slices and a worker loads."""

    step: int
    epoch: int
    view: int
    start: int
    rows: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """A run as numbered steps; epoch e shows view e mod `views`; short last batches count too."""

    seed: int
    num_samples: int
    batch_size: int
    epochs: int
    views: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def epoch_specs(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> list[BatchSpec]:
        """The batches of one epoch from its step `first_step` on; order: its rows, in order."""
        if order is None:
            order = epoch_order(self.seed, epoch, self.num_samples)
        return [
            BatchSpec(
                epoch * self.steps_per_epoch + i,
                epoch,
                epoch % self.views,
                i * self.batch_size,
                order[i * self.batch_size : (i + 1) * self.batch_size],
            )
            for i in range(first_step, self.steps_per_epoch)
        ]
