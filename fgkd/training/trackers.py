"""Experiment trackers: an epoch's metrics, written to TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgkd import distributed, files


class TensorBoard:
    """Scalars of one run in RUN/tensorboard, written by rank 0; does nothing unless enabled.

    step: the step a resumed run continues from; scalars logged after it by an earlier process are
    discarded.
    """

    def __init__(self, run: Path, enabled: bool, step: int) -> None:
        self._writer: Any = None
        if enabled and distributed.rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            folder = run / "tensorboard"
            try:
                self._writer = SummaryWriter(str(folder), purge_step=step + 1)
            except OSError as error:
                raise files.write_error(folder, error) from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Log every number of an epoch's row at its step."""
        if self._writer:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the log."""
        if self._writer:
            self._writer.close()
