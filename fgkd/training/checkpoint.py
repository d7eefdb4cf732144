"""Training checkpoints: saved atomically, loaded without unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fgkd import files
from fgkd.errors import CheckpointError


def save(path: Path, state: Mapping[str, object]) -> None:
    """Write tensors and plain values atomically; equal states give equal bytes."""
    with files.replacing(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU with `weights_only=True`, whatever device it was saved on.

    Raises: CheckpointError when it is missing, truncated or holds anything but tensors and plain
    values.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}", path=path, reason="missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises loading it as code
            reason = "it is no checkpoint, or holds more than tensors and plain values"
        message = f"checkpoint {path} cannot be read: {reason}"
        raise CheckpointError(message, path=path, reason=reason) from None
    if not isinstance(state, dict):
        reason = f"it holds a {type(state).__name__}, not a dict of tensors"
        message = f"checkpoint {path} cannot be used: {reason}"
        raise CheckpointError(message, path=path, reason=reason)
    return state


def to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A contiguous copy on the CPU, which later training steps do not change."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
