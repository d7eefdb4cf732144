"""`--tensorboard`: the rows of metrics.jsonl as scalars, in RUN/tensorboard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fgkd import distributed, files
from fgkd.errors import FgkdError


def check(wanted: bool) -> None:
    """Before anything is written. Raises: FgkdError when TensorBoard is not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise FgkdError("--tensorboard: the package is not installed", "pip install tensorboard")


class Board:
    """Scalars of one run, written by rank 0; nothing where `wanted` is false.

    step: the one a resumed run continues from. What an earlier process wrote beyond it is void.
    """

    def __init__(self, run: Path, wanted: bool, step: int) -> None:
        self._writer: Any = None
        if wanted and distributed.rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            folder = run / "tensorboard"
            try:
                self._writer = SummaryWriter(str(folder), purge_step=step + 1)
            except OSError as error:
                raise files.write_error(folder, error) from error

    def add(self, row: dict[str, Any]) -> None:
        """Every number of an epoch's row, at its step, where a reader sees it at once."""
        if self._writer:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._writer.close()
